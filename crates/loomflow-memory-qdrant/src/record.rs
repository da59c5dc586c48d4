//! The form of a point's content, and what is read back of it.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use loomflow_core::rules::{rank, words};
use loomflow_core::{
    Embedding, Episode, EpisodeId, Error, ErrorKind, Fact, MemoryBlock, Owner, Result, Scope, SessionId,
    Timestamp,
};
use qdrant_client::Payload;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::value::Kind as Json;
use qdrant_client::qdrant::{RetrievedPoint, Struct, Value};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::unreadable;
use crate::keys::{Kind, Partition, field};

/// The names of what is within [`field::LIVE`].
const ID: &str = "id";
const AT: &str = "at";
const SESSION: &str = "session";
const MESSAGES: &str = "messages";
const WORDS: &str = "words";
const MODEL: &str = "model";
const VECTOR: &str = "vector";
const RECORD: &str = "record";

/// The largest content of one point.
const MAX_RECORD: usize = 16 * 1024 * 1024;

/// Content to write.
pub(crate) type Content = HashMap<String, Value>;

/// A point as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: String,
    /// Decoded from the point's own fields.
    pub(crate) owner: Owner,
    pub(crate) token: String,
    pub(crate) writes: Vec<String>,
    live: Option<Struct>,
}

impl Row {
    /// Reads a point that was asked for by `asked`.
    ///
    /// A point that names another owner is handed on with that owner: core refuses it, and notes it down. One that names
    /// the asking owner and lies in another partition was not written by this program, and is refused here.
    pub(crate) fn decode(point: RetrievedPoint, asked: &Partition, operation: &'static str) -> Result<Self> {
        let broken = || unreadable(operation);
        let Some(PointIdOptions::Uuid(id)) = point.id.and_then(|id| id.point_id_options) else {
            return Err(broken());
        };
        let mut payload = point.payload;
        let mut text = |name: &str| payload.remove(name).and_then(into_text);
        let partition = text(field::PARTITION).ok_or_else(broken)?;
        let namespace = text(field::NAMESPACE).ok_or_else(broken)?;
        let owner = Owner::from_columns(&namespace, text(field::USER).as_deref())?;
        let token = text(field::TOKEN).ok_or_else(broken)?;
        if partition != asked.hex() && owner == *asked.owner() {
            return Err(misfiled(operation));
        }
        let writes = match payload.remove(field::WRITES).and_then(|v| v.kind) {
            Some(Json::ListValue(list)) => list.values.into_iter().filter_map(into_text).collect(),
            _ => Vec::new(),
        };
        let live = match payload.remove(field::LIVE).and_then(|v| v.kind) {
            Some(Json::StructValue(live)) => Some(live),
            _ => None,
        };
        Ok(Self { id, owner, token, writes, live })
    }

    /// Refuses a record of another owner than the scope's, before it is written over, counted or erased as the scope's.
    pub(crate) fn check_owner(&self, scope: &Scope, operation: &'static str) -> Result<()> {
        if scope.owns(&self.owner) { Ok(()) } else { Err(misfiled(operation)) }
    }

    /// Whether it has content.
    pub(crate) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Its record, whole.
    pub(crate) fn record<T: DeserializeOwned>(&self, operation: &'static str) -> Result<T> {
        let text = self.text(RECORD).ok_or_else(|| unreadable(operation))?;
        serde_json::from_str(text).map_err(|_| unreadable(operation))
    }

    fn get(&self, name: &str) -> Option<&Json> {
        self.live.as_ref()?.fields.get(name)?.kind.as_ref()
    }

    fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Json::StringValue(text) => Some(text),
            _ => None,
        }
    }

    fn integer(&self, name: &str) -> Option<i64> {
        match self.get(name)? {
            Json::IntegerValue(n) => Some(*n),
            _ => None,
        }
    }

    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        BASE64.decode(self.text(name)?).ok()
    }
}

fn misfiled(operation: &'static str) -> Error {
    let message = "Qdrant holds a record in a partition that is not its owner's; it was withheld";
    Error::new(ErrorKind::IsolationViolation, message).with_operation(operation)
}

fn into_text(value: Value) -> Option<String> {
    match value.kind? {
        Json::StringValue(text) => Some(text),
        _ => None,
    }
}

/// What ranking and choosing needs to know of an episode.
#[derive(Debug)]
pub(crate) struct Sketch {
    pub(crate) point: String,
    pub(crate) owner: Owner,
    pub(crate) token: String,
    pub(crate) id: EpisodeId,
    pub(crate) at: Timestamp,
    pub(crate) session: SessionId,
    pub(crate) messages: usize,
    /// Empty unless they were asked for.
    pub(crate) words: Box<[u64]>,
    pub(crate) embedding: Option<Embedding>,
}

impl Sketch {
    /// The fields that are always there.
    pub(crate) const FIELDS: [&'static str; 4] = [ID, AT, SESSION, MESSAGES];
    pub(crate) const WORDS: &'static str = WORDS;
    pub(crate) const VECTOR: [&'static str; 2] = [MODEL, VECTOR];

    pub(crate) fn of(row: Row, operation: &'static str) -> Result<Self> {
        let broken = || unreadable(operation);
        let id = row.text(ID).and_then(|id| id.parse().ok()).ok_or_else(broken)?;
        let session = SessionId::new(row.text(SESSION).ok_or_else(broken)?).map_err(|_| broken())?;
        let messages = row.integer(MESSAGES).and_then(|n| usize::try_from(n).ok()).ok_or_else(broken)?;
        Ok(Self {
            id,
            at: Timestamp::from_micros(row.integer(AT).ok_or_else(broken)?),
            session,
            messages,
            words: row.bytes(WORDS).map_or_else(Box::default, |bytes| words::from_bytes(&bytes)),
            embedding: embedding(&row),
            point: row.id,
            owner: row.owner,
            token: row.token,
        })
    }
}

fn embedding(row: &Row) -> Option<Embedding> {
    Some(Embedding::new(row.text(MODEL)?, rank::vector_from_bytes(&row.bytes(VECTOR)?)))
}

/// The content of an episode.
pub(crate) fn of_episode(mut episode: Episode) -> Result<Content> {
    let embedding = episode.embedding.take();
    let mut content = content(&episode)?;
    content.insert(ID.into(), episode.id.to_string().into());
    content.insert(AT.into(), episode.at.as_micros().into());
    content.insert(SESSION.into(), episode.session.as_str().to_owned().into());
    content.insert(MESSAGES.into(), i64::try_from(episode.messages.len()).unwrap_or(i64::MAX).into());
    let terms = words::of_episode(&episode.messages);
    content.insert(WORDS.into(), BASE64.encode(words::to_bytes(&terms)).into());
    if let Some(embedding) = embedding {
        content.insert(MODEL.into(), (*embedding.model).to_owned().into());
        content.insert(VECTOR.into(), BASE64.encode(rank::vector_to_bytes(&embedding.vector)).into());
    }
    Ok(content)
}

/// An episode, with its vector.
pub(crate) fn to_episode(row: &Row, operation: &'static str) -> Result<Episode> {
    let mut episode: Episode = row.record(operation)?;
    episode.embedding = embedding(row);
    Ok(episode)
}

/// The content of a block.
pub(crate) fn of_block(block: &MemoryBlock) -> Result<Content> {
    content(block)
}

/// A row of a track.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FactRow {
    pub(crate) fact: Fact,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "packed")]
    pub(crate) embedding: Option<Embedding>,
}

/// The content of a track: its rows, in the order they were written.
pub(crate) fn of_track(rows: &[FactRow]) -> Result<Content> {
    let mut content = content(&rows)?;
    let newest = rows.iter().map(|row| row.fact.known_from.as_micros()).max();
    content.insert(AT.into(), newest.unwrap_or(i64::MIN).into());
    Ok(content)
}

/// The largest `known_from` of a track; read without its rows.
pub(crate) fn newest_of(row: &Row) -> Option<Timestamp> {
    row.integer(AT).map(Timestamp::from_micros)
}

/// The field that [`newest_of`] needs.
pub(crate) const NEWEST: &str = AT;

/// Content that is one record.
pub(crate) fn content(record: &impl Serialize) -> Result<Content> {
    let text = serde_json::to_string(record)
        .map_err(|e| Error::new(ErrorKind::Internal, "a record cannot be written as JSON").with_source(e))?;
    if text.len() > MAX_RECORD {
        let message =
            format!("the record takes {} bytes; at most {MAX_RECORD} are kept in one piece", text.len());
        return Err(Error::new(ErrorKind::Capacity, message));
    }
    Ok(HashMap::from([(RECORD.to_owned(), text.into())]))
}

/// The fields of a point of `partition` that never change.
pub(crate) fn identity(partition: &Partition, kind: Kind) -> Payload {
    let owner = partition.owner();
    let mut payload = Payload::new();
    payload.insert(field::PARTITION, partition.hex());
    payload.insert(field::KIND, kind.as_str());
    payload.insert(field::NAMESPACE, owner.namespace().as_str());
    if let Some(user) = owner.user_id() {
        payload.insert(field::USER, user.as_str());
    }
    payload
}

/// A vector in JSON, as base64.
mod packed {
    use serde::{Deserializer, Serializer, de::Error as _};

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Packed {
        model: String,
        vector: String,
    }

    pub(super) fn serialize<S: Serializer>(embedding: &Option<Embedding>, to: S) -> Result<S::Ok, S::Error> {
        embedding
            .as_ref()
            .map(|e| Packed {
                model: (*e.model).to_owned(),
                vector: BASE64.encode(rank::vector_to_bytes(&e.vector)),
            })
            .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Embedding>, D::Error> {
        let Some(packed) = Option::<Packed>::deserialize(from)? else { return Ok(None) };
        let bytes = BASE64.decode(&packed.vector).map_err(D::Error::custom)?;
        Ok(Some(Embedding::new(packed.model, rank::vector_from_bytes(&bytes))))
    }
}
