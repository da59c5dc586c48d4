//! The records of memory, and the options of its queries.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::identity::SessionId;
use crate::ids::{EpisodeId, RunId};
use crate::memory::Fact;
use crate::message::{Message, Role};

/// A vector and the model that made it. Vectors of different models or lengths are never compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Embedding {
    /// The embedder's name.
    pub model: Arc<str>,
    /// The components.
    pub vector: Arc<[f32]>,
}

impl Embedding {
    /// A vector made by `model`.
    #[must_use]
    pub fn new(model: impl Into<Arc<str>>, vector: impl Into<Arc<[f32]>>) -> Self {
        Self { model: model.into(), vector: vector.into() }
    }
}

/// A turn to remember: everything that was said between a user's input and the reply to it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NewEpisode {
    /// The run it came from. Remembering one run twice stores it once.
    pub run: RunId,
    /// The conversation.
    pub session: SessionId,
    /// When it was said.
    pub at: Timestamp,
    /// The messages in order: the user's, then calls and outcomes of tools, then the reply. No system message.
    pub messages: Arc<[Message]>,
    /// The vector of its text, made by core; `None` without an embedder.
    pub embedding: Option<Embedding>,
}

impl NewEpisode {
    /// An episode of `run` in `session`.
    #[must_use]
    pub fn new(run: RunId, session: SessionId, at: Timestamp, messages: impl Into<Arc<[Message]>>) -> Self {
        Self { run, session, at, messages: messages.into(), embedding: None }
    }

    /// Attaches the vector of the episode's text.
    #[must_use]
    pub fn with_embedding(mut self, embedding: Embedding) -> Self {
        self.embedding = Some(embedding);
        self
    }
}

/// A remembered turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Episode {
    /// Its id, derived from its run.
    pub id: EpisodeId,
    /// The conversation.
    pub session: SessionId,
    /// When it was said.
    pub at: Timestamp,
    /// The messages in order.
    pub messages: Arc<[Message]>,
    /// The vector of its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Embedding>,
}

impl From<NewEpisode> for Episode {
    fn from(new: NewEpisode) -> Self {
        let NewEpisode { run, session, at, messages, embedding } = new;
        Self { id: run.into(), session, at, messages, embedding }
    }
}

impl Episode {
    /// The user's words, or an empty text.
    #[must_use]
    pub fn input(&self) -> &str {
        self.messages.iter().find(|m| m.role == Role::User).map_or("", |m| &m.text)
    }

    /// The reply, or an empty text.
    #[must_use]
    pub fn output(&self) -> &str {
        self.messages.iter().rev().find(|m| m.role == Role::Assistant).map_or("", |m| &m.text)
    }

    /// The texts that recall searches: the user's and the model's words, in order. Tool outcomes are not searched.
    pub fn searchable(&self) -> impl Iterator<Item = &str> {
        searchable(&self.messages)
    }
}

/// The texts among `messages` that recall searches.
pub(crate) fn searchable(messages: &[Message]) -> impl Iterator<Item = &str> {
    let said = |m: &&Message| matches!(m.role, Role::User | Role::Assistant);
    messages.iter().filter(said).map(|m| &*m.text)
}

/// An episode that recall found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EpisodeMatch {
    /// The episode.
    pub episode: Arc<Episode>,
    /// The fused score: the sum over rankings of 1 / (60 + rank), rank from 1. Higher is better.
    pub score: f64,
    /// The BM25 score, if the words matched.
    pub bm25: Option<f64>,
    /// The cosine similarity, if vectors were compared.
    pub cosine: Option<f32>,
}

impl EpisodeMatch {
    /// A match with its fused score.
    #[must_use]
    pub fn new(episode: Arc<Episode>, score: f64) -> Self {
        Self { episode, score, bm25: None, cosine: None }
    }

    /// Attaches the scores it was fused from.
    #[must_use]
    pub fn with_scores(mut self, bm25: Option<f64>, cosine: Option<f32>) -> Self {
        self.bm25 = bm25;
        self.cosine = cosine;
        self
    }
}

/// How much of a conversation to replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryLimit {
    /// The most messages. Whole episodes only, the newest first, so that a tool call is never parted from its
    /// outcome: the longest run of latest episodes whose messages fit.
    pub messages: usize,
}

impl HistoryLimit {
    /// At most this many messages.
    #[must_use]
    pub fn messages(n: usize) -> Self {
        Self { messages: n }
    }
}

impl Default for HistoryLimit {
    /// 20 messages.
    fn default() -> Self {
        Self::messages(20)
    }
}

/// What to recall.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RecallQuery {
    /// The words. With no words and no vector, the newest episodes are recalled with a score of 0.
    pub text: Arc<str>,
    /// The vector of the words, made by core; compared only with vectors of the same model and length.
    pub embedding: Option<Embedding>,
    /// The most episodes to return.
    pub limit: usize,
    /// Leaves out what [`MemoryStore::history`](crate::MemoryStore::history) returns for this session and limit,
    /// since the prompt has it already.
    pub exclude_history: Option<(SessionId, HistoryLimit)>,
}

impl RecallQuery {
    /// Recalls at most `limit` episodes about `text`.
    #[must_use]
    pub fn new(text: impl Into<Arc<str>>, limit: usize) -> Self {
        Self { text: text.into(), embedding: None, limit, exclude_history: None }
    }

    /// Adds the vector of the words.
    #[must_use]
    pub fn with_embedding(mut self, embedding: Embedding) -> Self {
        self.embedding = Some(embedding);
        self
    }

    /// Leaves out the history of `session`.
    #[must_use]
    pub fn excluding_history(mut self, session: SessionId, limit: HistoryLimit) -> Self {
        self.exclude_history = Some((session, limit));
        self
    }
}

/// A named piece of text that goes into every prompt of its tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemoryBlock {
    /// Its name; unique within the partition.
    pub name: Arc<str>,
    /// Its text.
    pub content: Arc<str>,
    /// Blocks are ordered by this, then by name.
    pub order: u32,
    /// When it was last written.
    pub updated_at: Timestamp,
}

impl MemoryBlock {
    /// A block as a store read it back.
    #[must_use]
    pub fn new(
        name: impl Into<Arc<str>>,
        content: impl Into<Arc<str>>,
        order: u32,
        updated_at: Timestamp,
    ) -> Self {
        Self { name: name.into(), content: content.into(), order, updated_at }
    }
}

/// A write of a block: replaces the block of that name, or removes it when there is no content.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PutBlock {
    /// The block's name: 1..=128 bytes without control characters.
    pub name: Arc<str>,
    /// Its new text; `None` removes the block, and removing one that is not there succeeds.
    pub content: Option<Arc<str>>,
    /// Where it stands; `None` keeps its place, or 0 for a new block.
    pub order: Option<u32>,
    /// When it is written.
    pub at: Timestamp,
}

impl PutBlock {
    /// Writes `content` under `name`.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, content: impl Into<Arc<str>>, at: Timestamp) -> Self {
        Self { name: name.into(), content: Some(content.into()), order: None, at }
    }

    /// Removes the block `name`.
    #[must_use]
    pub fn remove(name: impl Into<Arc<str>>, at: Timestamp) -> Self {
        Self { name: name.into(), content: None, order: None, at }
    }

    /// Sets where the block stands.
    #[must_use]
    pub fn with_order(mut self, order: u32) -> Self {
        self.order = Some(order);
        self
    }
}

/// What a store holds of a tenant, counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemoryProfile {
    /// Episodes held.
    pub episodes: u64,
    /// Facts that hold now.
    pub facts: u64,
    /// Blocks held.
    pub blocks: u64,
    /// When the newest episode was said.
    pub last_seen: Option<Timestamp>,
    /// The sessions of the newest episodes, newest first, at most 10.
    pub recent_sessions: Vec<SessionId>,
    /// Facts that hold now, newest first, at most 10.
    pub sample_facts: Vec<Fact>,
}
