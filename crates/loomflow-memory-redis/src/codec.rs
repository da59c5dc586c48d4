//! The form of what is stored: rows with their owner, entries of the index, and orders that compare as bytes.

use loomflow_core::rules::words;
use loomflow_core::{
    Digest, Episode, Error, ErrorKind, Fact, Message, Owner, Result, SessionId, Timestamp, UserId,
};
use redis::Value;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Below the terms in an entry of the index: time, number of messages, whether there is a vector, session.
const HEAD: usize = 29;
const SESSION: usize = 16;
/// How many digits the place of a block has before its row.
const PLACE: usize = 10;

/// A row, with whose it is as it was written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row<T> {
    /// The namespace.
    n: Box<str>,
    /// The user; none is the anonymous bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    u: Option<Box<str>>,
    /// The record.
    pub(crate) v: T,
    /// Whether it has a vector.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) x: bool,
}

/// An episode but for its id and its vector, which stand elsewhere.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EpisodeRow {
    session: SessionId,
    at: Timestamp,
    messages: std::sync::Arc<[Message]>,
}

/// A block but for its name and its place.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BlockRow {
    pub(crate) content: std::sync::Arc<str>,
    pub(crate) at: Timestamp,
}

impl<T: Serialize> Row<T> {
    pub(crate) fn write(owner: &Owner, value: T, vector: bool) -> Result<Vec<u8>> {
        let row = Row {
            n: owner.namespace().as_str().into(),
            u: owner.user_id().map(|id| id.as_str().into()),
            v: value,
            x: vector,
        };
        serde_json::to_vec(&row)
            .map_err(|e| Error::new(ErrorKind::Internal, "a record cannot be written as JSON").with_source(e))
    }
}

impl<T: DeserializeOwned> Row<T> {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| unreadable().with_source(e))
    }
}

impl<T> Row<T> {
    /// Whose it is, decoded; `last` is shared when it is the same, as it nearly always is.
    pub(crate) fn owner(&self, last: Option<&Owner>) -> Result<Owner> {
        let same = |o: &&Owner| {
            o.namespace().as_str() == &*self.n && o.user_id().map(UserId::as_str) == self.u.as_deref()
        };
        last.filter(same).map_or_else(|| Owner::from_columns(&self.n, self.u.as_deref()), |o| Ok(o.clone()))
    }
}

pub(crate) fn episode_row(owner: &Owner, episode: &Episode) -> Result<Vec<u8>> {
    let Episode { session, at, messages, .. } = episode;
    let row = EpisodeRow { session: session.clone(), at: *at, messages: messages.clone() };
    Row::write(owner, row, episode.embedding.is_some())
}

impl EpisodeRow {
    /// The episode `id`, still without its vector.
    pub(crate) fn into_episode(self, id: u128) -> Episode {
        let run = loomflow_core::RunId::from_u128(id);
        loomflow_core::NewEpisode::new(run, self.session, self.at, self.messages).into()
    }
}

pub(crate) fn fact_row(owner: &Owner, fact: &Fact, vector: bool) -> Result<Vec<u8>> {
    Row::write(owner, fact, vector)
}

/// An episode's entry in the index that recall scans.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) at: Timestamp,
    pub(crate) messages: usize,
    pub(crate) vector: bool,
    pub(crate) session: [u8; SESSION],
    pub(crate) terms: Box<[u64]>,
}

impl Entry {
    pub(crate) fn of(episode: &Episode) -> Self {
        Self {
            at: episode.at,
            messages: episode.messages.len(),
            vector: episode.embedding.is_some(),
            session: session_key(&episode.session),
            terms: words::of_episode(&episode.messages),
        }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + 8 * self.terms.len());
        out.extend_from_slice(&self.at.as_micros().to_be_bytes());
        out.extend_from_slice(&u32::try_from(self.messages).unwrap_or(u32::MAX).to_be_bytes());
        out.push(u8::from(self.vector));
        out.extend_from_slice(&self.session);
        out.extend_from_slice(&words::to_bytes(&self.terms));
        out
    }

    /// The entry, or its head alone, which has no terms.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        let (head, terms) = bytes.split_at_checked(HEAD).ok_or_else(unreadable)?;
        let (at, rest) = head.split_first_chunk::<8>().ok_or_else(unreadable)?;
        let (messages, rest) = rest.split_first_chunk::<4>().ok_or_else(unreadable)?;
        let (vector, session) = rest.split_first().ok_or_else(unreadable)?;
        Ok(Self {
            at: Timestamp::from_micros(i64::from_be_bytes(*at)),
            messages: u32::from_be_bytes(*messages) as usize,
            vector: *vector != 0,
            session: session.try_into().map_err(|_| unreadable())?,
            terms: words::from_bytes(terms),
        })
    }
}

/// A session in a fixed number of bytes: half of its SHA-256.
pub(crate) fn session_key(session: &SessionId) -> [u8; SESSION] {
    let digest = Digest::of(&[session.as_str().as_bytes()]);
    *digest.as_bytes().first_chunk().expect("a digest is longer")
}

/// Bytes that compare as (time, id) does.
pub(crate) fn order_key(at: Timestamp, id: u128) -> [u8; 24] {
    let mut out = [0; 24];
    out[..8].copy_from_slice(&at.as_micros().wrapping_add(i64::MIN).to_be_bytes());
    out[8..].copy_from_slice(&id.to_be_bytes());
    out
}

/// The time of an order's member.
pub(crate) fn order_time(member: &[u8]) -> Result<Timestamp> {
    let at = member.first_chunk::<8>().ok_or_else(unreadable)?;
    Ok(Timestamp::from_micros(i64::from_be_bytes(*at).wrapping_add(i64::MIN)))
}

/// Where an episode stands in its session.
pub(crate) fn session_order(session: &[u8; SESSION], at: Timestamp, id: u128) -> Vec<u8> {
    [&session[..], &order_key(at, id)].concat()
}

/// Where a believed fact stands: by subject with predicate, then by object.
pub(crate) fn believed_key(fact: &Fact) -> Vec<u8> {
    let id = fact.id.as_u128().to_be_bytes();
    [&believed_prefix(&fact.subject, &fact.predicate, Some(&fact.object))[..], &id].concat()
}

/// What the believed facts of a subject with a predicate (and an object) begin with.
pub(crate) fn believed_prefix(subject: &str, predicate: &str, object: Option<&str>) -> Vec<u8> {
    let mut out = words::pair(subject, predicate).to_be_bytes().to_vec();
    out.extend(object.map(|o| words::pair("", o).to_be_bytes()).into_iter().flatten());
    out
}

pub(crate) fn place(order: Option<u32>) -> String {
    order.map_or_else(|| "-".repeat(PLACE), |n| format!("{n:010}"))
}

/// A block's place and row.
pub(crate) fn split_place(bytes: &[u8]) -> Result<(u32, &[u8])> {
    let (place, row) = bytes.split_at_checked(PLACE).ok_or_else(unreadable)?;
    let place = std::str::from_utf8(place).ok().and_then(|p| p.parse().ok()).ok_or_else(unreadable)?;
    Ok((place, row))
}

pub(crate) fn id_of(bytes: &[u8]) -> Result<u128> {
    bytes.try_into().map(u128::from_be_bytes).map_err(|_| unreadable())
}

/// A row was not written by this program.
pub(crate) fn unreadable() -> Error {
    Error::new(ErrorKind::Internal, "Redis holds a row that this program did not write")
}

/// Takes apart what a script answered.
pub(crate) fn list(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(items) => Ok(items),
        _ => Err(unreadable()),
    }
}

pub(crate) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

pub(crate) fn text(value: Value) -> Option<String> {
    bytes(value).and_then(|b| String::from_utf8(b).ok())
}

pub(crate) fn number(value: &Value) -> u64 {
    if let Value::Int(n) = value { u64::try_from(*n).unwrap_or(0) } else { 0 }
}

/// The pairs of a flat list.
pub(crate) fn pairs(value: Value) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut items = list(value)?.into_iter();
    let mut out = Vec::with_capacity(items.len() / 2);
    while let (Some(a), Some(b)) = (items.next(), items.next()) {
        // A value that is gone by now is left out.
        if let (Some(a), Some(b)) = (bytes(a), bytes(b)) {
            out.push((a, b));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_compare_as_what_they_are_made_of() {
        let at = Timestamp::from_micros;
        let mut keys = vec![
            (Timestamp::MIN, 0),
            (at(-1), u128::MAX),
            (at(0), 1),
            (at(0), 2),
            (at((1 << 53) + 1), 0),
            (at((1 << 53) + 2), 0),
            (Timestamp::MAX, u128::MAX),
        ];
        keys.sort_by_key(|(at, id)| order_key(*at, *id));
        assert!(keys.is_sorted());
        for (at, id) in keys {
            assert_eq!(order_time(&order_key(at, id)).unwrap(), at);
        }
    }

    #[test]
    fn an_entry_comes_back_and_so_does_its_head() {
        let entry = Entry {
            at: Timestamp::from_micros(-5),
            messages: 7,
            vector: true,
            session: session_key(&SessionId::new("s").unwrap()),
            terms: [1, 1, u64::MAX].into(),
        };
        let stored = entry.to_bytes();
        assert_eq!(format!("{:?}", Entry::read(&stored).unwrap()), format!("{entry:?}"));
        let head = Entry::read(&stored[..HEAD]).unwrap();
        assert!(head.terms.is_empty() && head.messages == 7);
        assert!(Entry::read(&stored[..HEAD - 1]).is_err());
    }
}
