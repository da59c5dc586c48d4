//! The store: connecting, and what each operation of the contract goes through.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::resilience::{Readiness, Repeat, Resilience};
use loomflow_core::{
    Asserted, Capabilities, Clock, EpisodeId, EpisodeMatch, Epoch, Erase, Erased, ExportStream, Fact,
    FactQuery, FactStore, HistoryLimit, MemoryBlock, MemoryProfile, MemoryStore, Message, NewEpisode,
    NewFact, Owned, Owner, PutBlock, RecallQuery, Result, Scope, SessionId, SystemClock, TenantData, rules,
};
use loomflow_support_sql::postgres::{Access, Pool, SERVER, Transaction, migrate};

use crate::PostgresMemoryConfig;
use crate::episodes::Prepared;
use crate::query::Reads;
use crate::schema::MEMORY;

pub(crate) const STORE: &str = "memory:postgres";

/// Memory on PostgreSQL, shared by any number of processes. See the crate's documentation.
///
/// Cloning gives another handle to the same connections.
#[derive(Clone)]
pub struct PostgresMemory(Arc<Inner>);

struct Inner {
    pool: Pool,
    resilience: Resilience,
    reads: Reads,
    clock: Arc<dyn Clock>,
    operation_timeout: std::time::Duration,
}

impl PostgresMemory {
    /// Connects, brings the schema up to date unless the configuration forbids it, and checks that row-level security
    /// binds the application's role in every table.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](loomflow_core::ErrorKind::Config) for a wrong connection string, a schema that is missing,
    /// older or newer than this program (a newer one is left untouched), or a role or a table that row-level security
    /// does not bind; [`ErrorKind::Unreachable`](loomflow_core::ErrorKind::Unreachable) for a server that is not there.
    /// The message says what to do.
    pub async fn connect(config: PostgresMemoryConfig) -> Result<Self> {
        let pool = Pool::connect(&config.settings(), &MEMORY, config.migrate).await?;
        Ok(Self(Arc::new(Inner {
            pool,
            resilience: Resilience::new(SERVER, config.operation_timeout),
            reads: Reads::new(&config),
            clock: Arc::new(SystemClock),
            operation_timeout: config.operation_timeout,
        })))
    }

    /// Brings the schema up to date and does nothing else. The user of the connection string makes the application's
    /// role and owns the tables.
    ///
    /// # Errors
    ///
    /// As [`PostgresMemory::connect`]; [`ErrorKind::Config`](loomflow_core::ErrorKind::Config) when the user lacks a
    /// privilege or the server has no pgvector.
    pub async fn migrate(config: &PostgresMemoryConfig) -> Result<()> {
        migrate(&config.settings(), &MEMORY).await
    }

    pub(crate) async fn begin(
        &self,
        scope: &Scope,
        access: Access,
        operation: &'static str,
    ) -> Result<Transaction> {
        self.begin_of(scope.owner(), access, operation).await
    }

    /// For what outlives its scope: an export.
    pub(crate) async fn begin_of(
        &self,
        owner: &Owner,
        access: Access,
        operation: &'static str,
    ) -> Result<Transaction> {
        self.0.pool.begin(owner, access, operation).await
    }

    pub(crate) fn reads(&self) -> Reads {
        self.0.reads
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    pub(crate) fn operation_timeout(&self) -> std::time::Duration {
        self.0.operation_timeout
    }

    async fn run<T, F, Fut>(&self, operation: &'static str, repeat: Repeat, attempt: F) -> Result<T>
    where
        F: FnMut() -> Fut + Send,
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        self.0.resilience.run(operation, repeat, attempt).await
    }
}

impl fmt::Debug for PostgresMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresMemory({:?}, {:?})", self.0.pool, self.0.resilience)
    }
}

#[async_trait]
impl TenantData for PostgresMemory {
    fn store_name(&self) -> &str {
        STORE
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        self.run("epoch", Repeat::Safe, || self.read_epoch(scope)).await
    }

    async fn ready(&self) -> Readiness {
        let answer = self.run("ready", Repeat::Safe, || self.0.pool.ping()).await;
        self.0.resilience.readiness(&answer)
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        self.run("export", Repeat::Safe, || self.open_export(scope)).await
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        // Done twice, the second time would be a conflict with the first.
        self.run("forget", Repeat::Unsafe, || self.erase(scope, what)).await
    }
}

#[async_trait]
impl MemoryStore for PostgresMemory {
    async fn remember(&self, scope: &Scope, episode: NewEpisode) -> Result<EpisodeId> {
        let prepared = Prepared::new(episode)?;
        self.run("remember", Repeat::Safe, || self.write_episode(scope, &prepared)).await
    }

    async fn recall(&self, scope: &Scope, query: &RecallQuery) -> Result<Vec<Owned<EpisodeMatch>>> {
        rules::check_embedding(query.embedding.as_ref(), "recall")?;
        self.run("recall", Repeat::Safe, || self.find_episodes(scope, query)).await
    }

    async fn history(
        &self,
        scope: &Scope,
        session: &SessionId,
        limit: HistoryLimit,
    ) -> Result<Vec<Owned<Message>>> {
        self.run("history", Repeat::Safe, || self.read_history(scope, session, limit)).await
    }

    async fn blocks(&self, scope: &Scope) -> Result<Vec<Owned<MemoryBlock>>> {
        self.run("blocks", Repeat::Safe, || self.read_blocks(scope)).await
    }

    async fn put_block(&self, scope: &Scope, block: PutBlock) -> Result<()> {
        rules::check_block_name(&block.name)?;
        // Done twice, the second time would undo what another wrote in between.
        self.run("put_block", Repeat::Unsafe, || self.write_block(scope, &block)).await
    }

    async fn profile(&self, scope: &Scope) -> Result<Owned<MemoryProfile>> {
        self.run("profile", Repeat::Safe, || self.read_profile(scope)).await
    }

    fn facts(&self) -> Option<&dyn FactStore> {
        Some(self)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_durable(true).with_shared(true).with_vectors(true).with_lexical(true)
    }
}

#[async_trait]
impl FactStore for PostgresMemory {
    async fn assert(&self, scope: &Scope, fact: NewFact) -> Result<Asserted> {
        // Done twice, the second time would call the row of the first one reinforced.
        self.run("assert", Repeat::Unsafe, || self.write_fact(scope, &fact)).await
    }

    async fn query(&self, scope: &Scope, query: &FactQuery) -> Result<Vec<Owned<Fact>>> {
        rules::check_embedding(query.embedding.as_ref(), "query")?;
        self.run("query", Repeat::Safe, || self.find_facts(scope, query)).await
    }
}
