//! The store: one tenant's keys for each call.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::resilience::{Readiness, Repeat};
use loomflow_core::rules::{PROFILE_SAMPLES, check_block_name};
use loomflow_core::{
    Asserted, Capabilities, Clock, EpisodeId, EpisodeMatch, Epoch, Erase, Erased, ExportStream, Fact,
    FactQuery, FactStore, HistoryLimit, MemoryBlock, MemoryProfile, MemoryStore, Message, NewEpisode,
    NewFact, Owned, PutBlock, RecallQuery, Result, Scope, SessionId, SystemClock, TenantData,
};
use loomflow_support_redis::Link;

use crate::codec::{self, BlockRow, Row, order_time};
use crate::config::RedisMemoryConfig;
use crate::schema::Schema;
use crate::search::Search;
use crate::tenant::{Commit, Shared};
use crate::{erasure, export};

/// The most blocks of one user.
const MAX_BLOCKS: usize = 1_024;

/// Memory in a Redis server: shared by every process that is given its URL, and as durable as the server is set up to be.
///
/// Cloning gives another handle to the same connection. See the crate's page for what is kept where.
#[derive(Clone)]
pub struct RedisMemory {
    shared: Arc<Shared>,
    facts: RedisFactStore,
    clock: Arc<dyn Clock>,
}

/// The facts of a [`RedisMemory`].
#[derive(Clone)]
pub struct RedisFactStore {
    shared: Arc<Shared>,
}

impl RedisMemory {
    /// Connects, and checks or makes the schema.
    ///
    /// - Erasures that another program began and did not live to finish are finished.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](loomflow_core::ErrorKind::Config) for settings that cannot be used, a refused login, and a
    /// schema that is missing, older or newer; [`ErrorKind::Unreachable`](loomflow_core::ErrorKind::Unreachable),
    /// [`ErrorKind::Transport`](loomflow_core::ErrorKind::Transport) or
    /// [`ErrorKind::Timeout`](loomflow_core::ErrorKind::Timeout) when nobody answers.
    pub async fn connect(config: RedisMemoryConfig) -> Result<Self> {
        let schema = Schema::new(&config)?;
        let link = Link::connect(&config.link_options()).await?;
        schema.prepare(&link, config.migrate).await?;
        // What is in the search index cannot expire together with the rest.
        let search = Search::new(config.search && config.idle_ttl.is_none());
        let shared =
            Arc::new(Shared::new(link, schema, search, config.ttl_millis(), config.operation_timeout));
        erasure::finish_others(&shared).await;
        let facts = RedisFactStore { shared: shared.clone() };
        Ok(Self { shared, facts, clock: Arc::new(SystemClock) })
    }

    /// Brings the schema up to date and does nothing else.
    ///
    /// # Errors
    ///
    /// As [`RedisMemory::connect`].
    pub async fn migrate(config: &RedisMemoryConfig) -> Result<()> {
        let schema = Schema::new(config)?;
        schema.prepare(&Link::connect(&config.link_options()).await?, true).await
    }

    /// Takes the wall clock from `clock`; only [`MemoryStore::profile`] reads it.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Whether vectors of large partitions are compared by RediSearch.
    pub async fn uses_search(&self) -> bool {
        self.shared.has_search().await
    }
}

impl fmt::Debug for RedisMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisMemory({:?})", self.shared.link)
    }
}

impl fmt::Debug for RedisFactStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisFactStore({:?})", self.shared.link)
    }
}

#[async_trait]
impl TenantData for RedisMemory {
    fn store_name(&self) -> &str {
        "memory:redis"
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        let mut get = redis::cmd("GET");
        get.arg(self.shared.schema.tenant(scope.owner()).key("e"));
        let stored: Option<String> = self.shared.link.command("epoch", Repeat::Safe, &get).await?;
        let read = |text: String| text.get(..20).and_then(|digits| digits.parse().ok());
        let number = stored.map(|text| read(text).ok_or_else(codec::unreadable)).transpose()?;
        Ok(number.map_or(Epoch::ZERO, Epoch::new))
    }

    async fn ready(&self) -> Readiness {
        self.shared.link.ready().await
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        export::stream(self.shared.clone(), scope.owner().clone()).await
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let tenant = self.shared.tenant(scope.owner());
        let gone = if what.is_everything() {
            tenant.erase_everything(scope).await?
        } else {
            tenant.erase_part(scope, what).await?
        };
        Ok(Erased::new(self.store_name())
            .with_count("episode", gone.episodes)
            .with_count("fact", gone.facts)
            .with_count("block", gone.blocks))
    }
}

#[async_trait]
impl MemoryStore for RedisMemory {
    async fn remember(&self, scope: &Scope, episode: NewEpisode) -> Result<EpisodeId> {
        self.shared.tenant(scope.owner()).remember(scope, episode).await
    }

    async fn recall(&self, scope: &Scope, query: &RecallQuery) -> Result<Vec<Owned<EpisodeMatch>>> {
        self.shared.tenant(scope.owner()).recall(query).await
    }

    async fn history(
        &self,
        scope: &Scope,
        session: &SessionId,
        limit: HistoryLimit,
    ) -> Result<Vec<Owned<Message>>> {
        self.shared.tenant(scope.owner()).history(session, limit).await
    }

    async fn blocks(&self, scope: &Scope) -> Result<Vec<Owned<MemoryBlock>>> {
        let found = export::blocks(&self.shared.tenant(scope.owner()), "blocks").await?;
        Ok(found.into_iter().map(|(owner, block)| Owned::new(owner, block)).collect())
    }

    async fn put_block(&self, scope: &Scope, block: PutBlock) -> Result<()> {
        check_block_name(&block.name)?;
        let tenant = self.shared.tenant(scope.owner());
        let name = block.name.as_bytes();
        let mut commit = Commit::new("put_block").once();
        match block.content {
            Some(content) => {
                let row = Row::write(scope.owner(), BlockRow { content, at: block.at }, false)?;
                let value = [codec::place(block.order).as_bytes(), &row].concat();
                commit.op("block", &MAX_BLOCKS.to_string(), name, value);
            }
            None => commit.op("del", "bl", name, Vec::new()),
        }
        tenant.commit(scope, commit).await.map(drop)
    }

    async fn profile(&self, scope: &Scope) -> Result<Owned<MemoryProfile>> {
        let tenant = self.shared.tenant(scope.owner());
        let mut profile = MemoryProfile::default();
        let (partition, [episodes, facts, blocks], last) = tenant.stat("profile").await?;
        let mut owners = Vec::from_iter(partition);
        for (kind, count) in [("ep", episodes), ("fa", facts), ("bl", blocks)] {
            if count > 0 {
                owners.extend(tenant.owners("profile", kind, None).await?);
            }
        }
        // What is counted is one tenant's, or it is not the caller's. A profile of nothing has no row to take an owner from.
        let foreign = owners.iter().find(|owner| !scope.owns(owner));
        let owner = foreign.or(owners.first()).unwrap_or(scope.owner()).clone();
        (profile.episodes, profile.blocks) = (episodes, blocks);
        profile.last_seen = last.as_deref().map(order_time).transpose()?;
        if episodes > 0 {
            profile.recent_sessions = tenant.recent_sessions().await?;
        }
        if facts > 0 {
            (profile.facts, profile.sample_facts) = tenant.current(self.clock.now(), PROFILE_SAMPLES).await?;
        }
        Ok(Owned::new(owner, profile))
    }

    fn facts(&self) -> Option<&dyn FactStore> {
        Some(&self.facts)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_durable(true).with_shared(true).with_vectors(true).with_lexical(true)
    }
}

#[async_trait]
impl FactStore for RedisFactStore {
    async fn assert(&self, scope: &Scope, fact: NewFact) -> Result<Asserted> {
        self.shared.tenant(scope.owner()).assert(scope, &fact).await
    }

    async fn query(&self, scope: &Scope, query: &FactQuery) -> Result<Vec<Owned<Fact>>> {
        self.shared.tenant(scope.owner()).query(query).await
    }
}
