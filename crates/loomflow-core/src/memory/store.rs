//! The contract of a memory backend.

use async_trait::async_trait;

use crate::error::{Error, Result};
use crate::identity::SessionId;
use crate::ids::EpisodeId;
use crate::memory::{
    EpisodeMatch, FactStore, HistoryLimit, MemoryBlock, MemoryProfile, NewEpisode, PutBlock, RecallQuery,
};
use crate::message::Message;
use crate::scope::{Owned, Scope};
use crate::tenant_data::{Erase, Erased, ExportStream, TenantData, export_from};

/// What a backend can do beyond the required operations. Isolation is not a capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// What was acknowledged survives a restart.
    pub durable: bool,
    /// Several processes may use one store at once.
    pub shared: bool,
    /// Ranks by vectors.
    pub vectors: bool,
    /// Ranks by words.
    pub lexical: bool,
}

impl Capabilities {
    /// Declares that what was acknowledged survives a restart.
    #[must_use]
    pub fn with_durable(mut self, yes: bool) -> Self {
        self.durable = yes;
        self
    }

    /// Declares that several processes may use one store at once.
    #[must_use]
    pub fn with_shared(mut self, yes: bool) -> Self {
        self.shared = yes;
        self
    }

    /// Declares that recall ranks by vectors.
    #[must_use]
    pub fn with_vectors(mut self, yes: bool) -> Self {
        self.vectors = yes;
        self
    }

    /// Declares that recall ranks by words.
    #[must_use]
    pub fn with_lexical(mut self, yes: bool) -> Self {
        self.lexical = yes;
        self
    }
}

/// What a memory backend implements. Every method works on the partition of its `scope` and on nothing else.
///
/// A backend never holds an embedder: vectors come with the record or the query, made by core through the model door.
///
/// Every future may be dropped at any await: a write that was dropped is either done whole or not at all.
///
/// # Ranking by words
///
/// A word is a maximal run of Unicode alphanumeric characters, lower-cased. With `N` texts, of which `df` have the word,
/// a word that is `tf` times in a text of `len` words, where the average text has `avg`, adds `idf × part` to its score:
///
/// - `idf = ln(1 + (N - df + 0.5) / (df + 0.5))`, which is always positive;
/// - `part = tf × (k1 + 1) / (tf + k1 × (1 - b + b × len / avg))`, with k1 = 1.2 and b = 0.75.
///
/// A word that the query says twice counts once, and of a long query the first 256 distinct words count.
///
/// The arithmetic is in [`rules`](crate::rules), for every backend to use.
///
/// # Vectors
///
/// A partition holds vectors of one model and one length: those of the first that was stored, with an episode or with a
/// fact, until everything is erased. Whatever brings another, a write or a query, fails with
/// [`ErrorKind::Config`](crate::ErrorKind::Config) before anything else is looked at but the epoch and, for an episode,
/// whether its run is known; so a changed embedder is noticed and never finds nothing in silence. A vector that has no
/// components, more than 16,000, or one that is not finite is [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput).
///
/// # Erasure
///
/// What [`TenantData::forget`] means for a memory, beside what is said there:
///
/// - Everything takes episodes, blocks and facts.
/// - A session, a moment (`before`), or both take the episodes that are of that session and older than that moment.
/// - The ids of erased episodes go from the `sources` of facts. A fact goes when one of its sources was erased and none
///   of the rest is still held.
/// - A moment without a session also takes blocks by `updated_at`, and by `known_from` those facts that have no source
///   that is still held. A session takes neither.
///
/// # Export
///
/// [`TenantData::export`] has items of the kinds `episode`, `block` and `fact`: every row, facts that are no longer
/// believed included.
#[async_trait]
pub trait MemoryStore: TenantData {
    /// Stores a turn and returns its id, which is derived from its run.
    ///
    /// - The same run again, with whatever content, succeeds, changes nothing and returns the same id.
    /// - Fails with [`ErrorKind::Erased`](crate::ErrorKind::Erased) when the scope is older than the last erasure.
    async fn remember(&self, scope: &Scope, episode: NewEpisode) -> Result<EpisodeId>;

    /// The episodes that match best: BM25 (k1 = 1.2, b = 0.75, statistics of this partition alone) and cosine, each
    /// ranked best first, fused by reciprocal rank with k = 60.
    ///
    /// - What [`RecallQuery::exclude_history`] names is taken out before anything is ranked, so that it takes nobody's
    ///   place and no rank; the statistics of BM25 still count it.
    /// - Ties within a ranking and in the fused order: newest `at` first, then the larger id.
    /// - What matches neither by a word nor by a positive cosine is left out.
    /// - With no words and no vector: the newest first, score 0.
    /// - An unknown partition recalls nothing.
    async fn recall(&self, scope: &Scope, query: &RecallQuery) -> Result<Vec<Owned<EpisodeMatch>>>;

    /// The latest messages of a session, oldest first, as [`HistoryLimit`] says. An unknown session has none.
    ///
    /// Episodes are ordered by `at`, then by id, in whatever order they were stored.
    async fn history(
        &self,
        scope: &Scope,
        session: &SessionId,
        limit: HistoryLimit,
    ) -> Result<Vec<Owned<Message>>>;

    /// All blocks, by `order`, then by name.
    async fn blocks(&self, scope: &Scope) -> Result<Vec<Owned<MemoryBlock>>>;

    /// Replaces, adds or removes one block.
    ///
    /// - Fails with [`ErrorKind::Erased`](crate::ErrorKind::Erased) when the scope is older than the last erasure.
    /// - An empty or over-long name, or one with control characters, is
    ///   [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput).
    async fn put_block(&self, scope: &Scope, block: PutBlock) -> Result<()>;

    /// What is held of this tenant, counted. An unknown partition is all zeros.
    async fn profile(&self, scope: &Scope) -> Result<Owned<MemoryProfile>>;

    /// The fact store, if the backend has one.
    fn facts(&self) -> Option<&dyn FactStore>;

    /// What the backend can do.
    fn capabilities(&self) -> Capabilities;
}

/// Remembers nothing: for an agent whose every run stands alone.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit that is what its name says")]
pub struct NoMemory;

#[async_trait]
impl TenantData for NoMemory {
    fn store_name(&self) -> &str {
        "memory:none"
    }

    async fn export(&self, _scope: &Scope) -> Result<ExportStream> {
        Ok(export_from(Vec::new()))
    }

    async fn forget(&self, _scope: &Scope, _what: &Erase) -> Result<Erased> {
        Ok(Erased::new(self.store_name()))
    }
}

#[async_trait]
impl MemoryStore for NoMemory {
    async fn remember(&self, _scope: &Scope, episode: NewEpisode) -> Result<EpisodeId> {
        Ok(episode.run.into())
    }

    async fn recall(&self, _scope: &Scope, _query: &RecallQuery) -> Result<Vec<Owned<EpisodeMatch>>> {
        Ok(Vec::new())
    }

    async fn history(
        &self,
        _scope: &Scope,
        _session: &SessionId,
        _limit: HistoryLimit,
    ) -> Result<Vec<Owned<Message>>> {
        Ok(Vec::new())
    }

    async fn blocks(&self, _scope: &Scope) -> Result<Vec<Owned<MemoryBlock>>> {
        Ok(Vec::new())
    }

    async fn put_block(&self, _scope: &Scope, _block: PutBlock) -> Result<()> {
        Err(Error::unsupported(self.store_name(), "blocks"))
    }

    async fn profile(&self, scope: &Scope) -> Result<Owned<MemoryProfile>> {
        Ok(Owned::new(scope.owner().clone(), MemoryProfile::default()))
    }

    fn facts(&self) -> Option<&dyn FactStore> {
        None
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
}
