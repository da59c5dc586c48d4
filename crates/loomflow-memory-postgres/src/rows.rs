//! Rows as records: everything is decoded from what the row itself holds, its owner first.

use std::sync::Arc;

use loomflow_core::{
    Embedding, Episode, EpisodeId, Error, ErrorKind, Fact, FactId, MemoryBlock, Message, Owned, Owner,
    Result, SessionId, Timestamp,
};
use loomflow_support_sql::postgres::failed;
use sqlx::postgres::PgRow;
use sqlx::{Decode, Postgres, Row as _, Type};

/// A row that an operation read.
#[derive(Clone, Copy)]
pub(crate) struct Read<'r> {
    pub(crate) row: &'r PgRow,
    pub(crate) operation: &'static str,
}

impl<'r> Read<'r> {
    pub(crate) fn get<T: Decode<'r, Postgres> + Type<Postgres>>(self, column: &'static str) -> Result<T> {
        self.row.try_get(column).map_err(failed(self.operation))
    }

    pub(crate) fn at(self, column: &'static str) -> Result<Timestamp> {
        self.get(column).map(Timestamp::from_micros)
    }

    pub(crate) fn maybe_at(self, column: &'static str) -> Result<Option<Timestamp>> {
        Ok(self.get::<Option<i64>>(column)?.map(Timestamp::from_micros))
    }

    pub(crate) fn id(self, column: &'static str) -> Result<u128> {
        self.bytes_of_id(self.get(column)?)
    }

    /// A record with its owner, both from the row.
    pub(crate) fn owned<T>(self, record: impl FnOnce(Self) -> Result<T>) -> Result<Owned<T>> {
        Ok(Owned::new(self.owner()?, record(self)?))
    }

    /// Whose the row says it is.
    pub(crate) fn owner(self) -> Result<Owner> {
        Owner::from_columns(self.get("namespace")?, self.get("user_id")?)
            .map_err(|e| e.with_operation(self.operation))
    }

    fn text(self, column: &'static str) -> Result<Arc<str>> {
        let bytes: &[u8] = self.get(column)?;
        std::str::from_utf8(bytes).map(Arc::from).map_err(|e| self.wrong("a text is no UTF-8", e))
    }

    pub(crate) fn embedding(self) -> Result<Option<Embedding>> {
        let Some(vector) = self.get::<Option<Vec<f32>>>("embedding")? else { return Ok(None) };
        let model = self.get::<Option<Vec<u8>>>("space_model")?.unwrap_or_default();
        let model = String::from_utf8(model).map_err(|e| self.wrong("a model's name is no UTF-8", e))?;
        Ok(Some(Embedding::new(model, vector)))
    }

    pub(crate) fn session(self) -> Result<SessionId> {
        SessionId::new(self.get::<&str>("session")?).map_err(|e| self.wrong("a session has no valid id", e))
    }

    pub(crate) fn messages(self) -> Result<Vec<Message>> {
        serde_json::from_str(self.get("messages")?)
            .map_err(|e| self.wrong("the messages of an episode are no JSON of messages", e))
    }

    pub(crate) fn episode(self) -> Result<Episode> {
        let mut episode = Episode::from(loomflow_core::NewEpisode::new(
            loomflow_core::RunId::from_u128(self.id("id")?),
            self.session()?,
            self.at("said_at")?,
            self.messages()?,
        ));
        episode.embedding = self.embedding()?;
        Ok(episode)
    }

    pub(crate) fn block(self) -> Result<MemoryBlock> {
        let place = u32::try_from(self.get::<i64>("place")?)
            .map_err(|e| self.wrong("the place of a block is out of range", e))?;
        let name: &str = self.get("name")?;
        Ok(MemoryBlock::new(name, self.text("content")?, place, self.at("updated_at")?))
    }

    pub(crate) fn fact(self) -> Result<Fact> {
        // A row as its assertion would be, and then what happened to it.
        let new = loomflow_core::NewFact::new(
            self.text("subject")?,
            "",
            self.text("object")?,
            self.at("known_from")?,
        )
        .with_validity(self.at("valid_from")?, self.maybe_at("valid_until")?)
        .with_sources(self.sources()?);
        let mut fact = Fact::from_new(FactId::from_u128(self.id("id")?), &new);
        fact.predicate = self.text("predicate")?;
        fact.confidence = u8::try_from(self.get::<i16>("confidence")?)
            .map_err(|e| self.wrong("the confidence of a fact is out of range", e))?;
        fact.known_until = self.maybe_at("known_until")?;
        Ok(fact)
    }

    pub(crate) fn sources(self) -> Result<Vec<EpisodeId>> {
        self.ids("sources")
    }

    pub(crate) fn ids(self, column: &'static str) -> Result<Vec<EpisodeId>> {
        let ids: Vec<Vec<u8>> = self.get(column)?;
        ids.iter().map(|id| self.bytes_of_id(id).map(EpisodeId::from_u128)).collect()
    }

    fn bytes_of_id(self, id: &[u8]) -> Result<u128> {
        id.try_into().map(u128::from_be_bytes).map_err(|e| self.wrong("an id has not 16 bytes", e))
    }

    fn wrong(self, what: &str, e: impl std::error::Error + Send + Sync + 'static) -> Error {
        let message = format!("{what}: the row was not written by this program");
        Error::new(ErrorKind::Internal, message).with_operation(self.operation).with_source(e)
    }
}
