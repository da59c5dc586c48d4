//! The store: episodes, blocks and facts of every tenant, in process.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{
    Asserted, Capabilities, Clock, EpisodeId, EpisodeMatch, Epoch, Erase, Erased, ExportStream, Fact,
    FactQuery, FactStore, HistoryLimit, MemoryBlock, MemoryProfile, MemoryStore, Message, NewEpisode,
    NewFact, Owned, Owner, PutBlock, RecallQuery, Result, Scope, SessionId, SystemClock, TenantData,
    export_from, rules,
};

use super::config::{MemoryConfig, MemoryStats};
use super::export;
use super::partition::Partition;
use super::registry::Registry;

/// Memory in this process: nothing survives a restart, and nothing leaves it.
///
/// - Each user has a partition of their own, with its own lock, its own statistics and its own bounds. No operation
///   looks at another's.
/// - Recall is hybrid: BM25 over the user's and the model's words, an exact scan of vectors, fused by reciprocal rank.
/// - Bounded by [`MemoryConfig`]: 100,000 users and 24 hours of idleness by default. A user who is evicted is
///   forgotten *as data*: blocks and facts too. What is never forgotten is that they were erased: the epoch of an
///   evicted user is kept in a compact table, and when that is full, late writes of users it does not know are refused.
/// - Idle users go when their shard is used, and when [`InMemoryMemory::evict_idle`] is called.
/// - A user who is full loses the oldest episodes. Blocks and believed facts are never dropped for want of room: what
///   does not fit is refused with [`ErrorKind::Capacity`](loomflow_core::ErrorKind::Capacity).
///
/// Cloning gives another handle to the same store.
#[derive(Clone)]
pub struct InMemoryMemory {
    registry: Arc<Registry>,
    facts: InMemoryFactStore,
    clock: Arc<dyn Clock>,
}

/// The facts of an [`InMemoryMemory`]: they share its partitions, its bounds and its erasures.
#[derive(Clone)]
pub struct InMemoryFactStore {
    registry: Arc<Registry>,
}

/// What [`InMemoryMemory::plant_for_conformance`] files.
#[doc(hidden)]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PlantedRecord {
    /// An episode.
    Episode(NewEpisode),
    /// A block.
    Block(PutBlock),
    /// A fact.
    Fact(Box<NewFact>),
}

impl InMemoryMemory {
    /// An empty memory with the default bounds.
    #[must_use]
    pub fn new() -> Self {
        Self::with_config(&MemoryConfig::default())
    }

    /// An empty memory with bounds of your choosing.
    #[must_use]
    pub fn with_config(config: &MemoryConfig) -> Self {
        Self::over(Registry::new(config))
    }

    /// Takes the wall clock from `clock`; only [`MemoryStore::profile`] reads it.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// What is held, and what was let go.
    #[must_use]
    pub fn stats(&self) -> MemoryStats {
        self.registry.stats()
    }

    /// Evicts every user who has been idle for too long, and returns how many there were. Takes time in proportion
    /// to that number.
    pub fn evict_idle(&self) -> u64 {
        self.registry.evict_idle()
    }

    /// Files a row of `owner` under the key of `filed_under`, by raw means. For the conformance suite only, which checks
    /// that such a row is noticed; nothing else may call it.
    ///
    /// # Errors
    ///
    /// As the write of such a record by its own tenant, but for erasures.
    #[doc(hidden)]
    pub fn plant_for_conformance(
        &self,
        filed_under: &Owner,
        owner: Owner,
        record: PlantedRecord,
    ) -> Result<()> {
        let limits = self.registry.limits();
        self.registry.plant(filed_under, |p| match record {
            PlantedRecord::Episode(episode) => p.remember(owner, episode, limits).map(drop),
            PlantedRecord::Block(block) => p.put_block(owner, block, limits),
            PlantedRecord::Fact(fact) => p.assert(&owner, *fact, limits).map(drop),
        })
    }

    pub(super) fn over(registry: Registry) -> Self {
        let registry = Arc::new(registry);
        let facts = InMemoryFactStore { registry: registry.clone() };
        Self { registry, facts, clock: Arc::new(SystemClock) }
    }

    fn read_list<T>(&self, scope: &Scope, look: impl FnOnce(&Partition) -> Vec<T>) -> Vec<T> {
        self.registry.read(scope, look).unwrap_or_default()
    }
}

impl Default for InMemoryMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for InMemoryMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InMemoryMemory({:?})", self.stats())
    }
}

impl fmt::Debug for InMemoryFactStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InMemoryFactStore({:?})", self.registry.stats())
    }
}

#[async_trait]
impl TenantData for InMemoryMemory {
    fn store_name(&self) -> &str {
        "memory:inmemory"
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        Ok(self.registry.epoch(scope))
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let records = self.registry.read(scope, Partition::records);
        Ok(records.map_or_else(|| export_from(Vec::new()), export::stream))
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let limits = self.registry.limits();
        let gone = self.registry.erase(scope, |p| p.erase(scope.epoch(), what, limits))?.unwrap_or_default();
        Ok(Erased::new(self.store_name())
            .with_count("episode", gone.episodes)
            .with_count("fact", gone.facts)
            .with_count("block", gone.blocks))
    }
}

#[async_trait]
impl MemoryStore for InMemoryMemory {
    async fn remember(&self, scope: &Scope, episode: NewEpisode) -> Result<EpisodeId> {
        let limits = self.registry.limits();
        self.registry.write(scope, "remember", |owner, p| p.remember(owner, episode, limits))
    }

    async fn recall(&self, scope: &Scope, query: &RecallQuery) -> Result<Vec<Owned<EpisodeMatch>>> {
        rules::check_embedding(query.embedding.as_ref(), "recall")?;
        let found = self.registry.read(scope, |p| {
            p.check_vector(query.embedding.as_ref(), "recall")?;
            Ok(p.episodes().recall(query))
        });
        found.unwrap_or_else(|| Ok(Vec::new()))
    }

    async fn history(
        &self,
        scope: &Scope,
        session: &SessionId,
        limit: HistoryLimit,
    ) -> Result<Vec<Owned<Message>>> {
        Ok(self.read_list(scope, |p| p.episodes().history(session, limit)))
    }

    async fn blocks(&self, scope: &Scope) -> Result<Vec<Owned<MemoryBlock>>> {
        Ok(self.read_list(scope, Partition::blocks))
    }

    async fn put_block(&self, scope: &Scope, block: PutBlock) -> Result<()> {
        rules::check_block_name(&block.name)?;
        let limits = self.registry.limits();
        self.registry.write(scope, "put_block", |owner, p| p.put_block(owner, block, limits))
    }

    async fn profile(&self, scope: &Scope) -> Result<Owned<MemoryProfile>> {
        let now = self.clock.now();
        let counted = |p: &Partition| (p.profile(now), p.stranger(scope.owner()).cloned());
        let Some(found) = self.registry.read_owned(scope, counted) else {
            // A profile of nothing has no record to take an owner from.
            return Ok(Owned::new(scope.owner().clone(), MemoryProfile::default()));
        };
        let filed_under = found.owner().clone();
        let (profile, stranger) = found.open(scope)?;
        Ok(Owned::new(stranger.unwrap_or(filed_under), profile))
    }

    fn facts(&self) -> Option<&dyn FactStore> {
        Some(&self.facts)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_vectors(true).with_lexical(true)
    }
}

#[async_trait]
impl FactStore for InMemoryFactStore {
    async fn assert(&self, scope: &Scope, fact: NewFact) -> Result<Asserted> {
        let limits = self.registry.limits();
        self.registry.write(scope, "assert", |owner, p| p.assert(&owner, fact, limits))
    }

    async fn query(&self, scope: &Scope, query: &FactQuery) -> Result<Vec<Owned<Fact>>> {
        rules::check_embedding(query.embedding.as_ref(), "query")?;
        let found = self.registry.read(scope, |p| {
            p.check_vector(query.embedding.as_ref(), "query")?;
            Ok(p.facts(query))
        });
        found.unwrap_or_else(|| Ok(Vec::new()))
    }
}
