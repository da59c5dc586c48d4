//! The store: the traits of memory on one SQLite file.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream;
use loomflow_core::resilience::{Readiness, Repeat, Resilience};
use loomflow_core::{
    Asserted, Capabilities, Clock, EpisodeId, EpisodeMatch, Epoch, Erase, Erased, ExportItem, ExportStream,
    Fact, FactQuery, FactStore, HistoryLimit, MemoryBlock, MemoryProfile, MemoryStore, Message, NewEpisode,
    NewFact, Owned, Owner, PutBlock, RecallQuery, Result, Scope, SessionId, SystemClock, TenantData, rules,
};
use loomflow_support_sql::sqlite::{Database, SERVER, failed};

use crate::config::SqliteMemoryConfig;
use crate::export::Export;
use crate::schema::{self, Author, Filter, SCHEMA, STORE};
use crate::{blocks, compact, episodes, erase, facts, profile};

/// Memory in one SQLite file, which several processes may share. See the crate's documentation.
///
/// - What was acknowledged is on the disk.
/// - Writes are committed in groups; a write waits for the commit of its group.
/// - No operation reads another partition's rows, so none takes longer because there are many.
///
/// Cloning gives another handle to the same file.
#[derive(Clone)]
pub struct SqliteMemory {
    inner: Arc<Inner>,
    clock: Arc<dyn Clock>,
}

struct Inner {
    database: Database,
    guard: Resilience,
    filter: Filter,
}

impl SqliteMemory {
    /// Opens the file, creating it and bringing its schema up to date unless `config` says not to.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](loomflow_core::ErrorKind::Config) for a file that cannot be opened, that is no database or
    /// another program's, and for a schema that is newer than this program, or older where it may not be migrated. Such a
    /// file is left untouched.
    pub async fn connect(config: SqliteMemoryConfig) -> Result<Self> {
        let database = Database::open(config.file(), &SCHEMA, config.migrate).await?;
        let guard = Resilience::without_circuit(SERVER, config.operation_timeout);
        let inner = Arc::new(Inner { database, guard, filter: Filter::of(&config) });
        Ok(Self { inner, clock: Arc::new(SystemClock) })
    }

    /// Creates the file or brings its schema up to date, and nothing else.
    ///
    /// # Errors
    ///
    /// As [`SqliteMemory::connect`].
    pub async fn migrate(config: &SqliteMemoryConfig) -> Result<()> {
        Database::migrate(&config.file(), &SCHEMA).await
    }

    /// Gives the space of what was erased or replaced back to the disk, for every tenant of the file.
    ///
    /// The file only grows by itself: what is erased is overwritten where it lies, and its place is not used again. This
    /// writes the whole file anew. Meanwhile reads go on and every write waits, in other processes up to its timeout; it
    /// takes memory for about what is left in the file, and room on the disk for as much. It has no timeout of its own,
    /// and is done all the same when its caller leaves. For a quiet hour.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Capacity`](loomflow_core::ErrorKind::Capacity) for a full disk and
    /// [`ErrorKind::Overloaded`](loomflow_core::ErrorKind::Overloaded) when another process writes. Nothing is lost then.
    pub async fn compact(&self) -> Result<()> {
        self.inner.database.compact("compact", |conn| Box::pin(compact::compact(conn))).await
    }

    /// Takes the wall clock from `clock`; only [`MemoryStore::profile`] reads it.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
}

impl Inner {
    async fn next(&self, export: &mut Export) -> Result<Option<Owned<ExportItem>>> {
        if export.is_hungry() {
            let looked: &Export = export;
            let read = || async move {
                let mut read = self.database.read("export").await?;
                looked.read(&mut read, self.filter).await
            };
            let pages = self.guard.run("export", Repeat::Safe, read).await?;
            export.feed(pages);
        }
        Ok(export.next())
    }
}

fn owned<T>(rows: Vec<(Owner, T)>) -> Vec<Owned<T>> {
    rows.into_iter().map(|(owner, value)| Owned::new(owner, value)).collect()
}

impl fmt::Debug for SqliteMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteMemory({:?}, {:?})", self.inner.database, self.inner.guard)
    }
}

#[async_trait]
impl TenantData for SqliteMemory {
    fn store_name(&self) -> &str {
        STORE
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        let Inner { database, guard, .. } = &*self.inner;
        let epoch = || async {
            let mut read = database.read("epoch").await?;
            Ok(schema::state(&mut read, &schema::partition(scope), "epoch").await?.0)
        };
        guard.run("epoch", Repeat::Safe, epoch).await
    }

    async fn ready(&self) -> Readiness {
        let Inner { database, guard, .. } = &*self.inner;
        let ask = || async {
            let mut read = database.read("ready").await?;
            let asked =
                sqlx::query("SELECT 1 FROM memory_partitions LIMIT 1").fetch_optional(&mut *read).await;
            asked.map(drop).map_err(failed("ready"))
        };
        let answer = guard.run("ready", Repeat::Safe, ask).await;
        guard.readiness(&answer)
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let export = Export::new(schema::partition(scope));
        let next = async |(inner, mut export): (Arc<Inner>, Export)| {
            let item = inner.next(&mut export).await?;
            Ok(item.map(|item| (item, (inner, export))))
        };
        Ok(Box::pin(stream::try_unfold((self.inner.clone(), export), move |state| Box::pin(next(state)))))
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let Inner { database, guard, .. } = &*self.inner;
        let forget = || {
            let (author, what) = (Author::of(scope), what.clone());
            database.erase("forget", move |conn| {
                Box::pin(async move { erase::forget(conn, &author, &what).await })
            })
        };
        guard.run("forget", Repeat::Unsafe, forget).await
    }
}

#[async_trait]
impl MemoryStore for SqliteMemory {
    async fn remember(&self, scope: &Scope, episode: NewEpisode) -> Result<EpisodeId> {
        let Inner { database, guard, .. } = &*self.inner;
        let row = Arc::new(episodes::NewRow::new(Author::of(scope), episode)?);
        let remember = || {
            let row = row.clone();
            database
                .write("remember", move |conn| Box::pin(async move { episodes::remember(conn, &row).await }))
        };
        guard.run("remember", Repeat::Safe, remember).await
    }

    async fn recall(&self, scope: &Scope, query: &RecallQuery) -> Result<Vec<Owned<EpisodeMatch>>> {
        let Inner { database, guard, filter } = &*self.inner;
        episodes::check_query(query)?;
        let recall = || async {
            let mut read = database.read("recall").await?;
            episodes::recall(&mut read, *filter, scope, query).await
        };
        guard.run("recall", Repeat::Safe, recall).await
    }

    async fn history(
        &self,
        scope: &Scope,
        session: &SessionId,
        limit: HistoryLimit,
    ) -> Result<Vec<Owned<Message>>> {
        let Inner { database, guard, filter } = &*self.inner;
        let history = || async {
            let mut read = database.read("history").await?;
            episodes::history(&mut read, *filter, scope, session, limit).await
        };
        guard.run("history", Repeat::Safe, history).await
    }

    async fn blocks(&self, scope: &Scope) -> Result<Vec<Owned<MemoryBlock>>> {
        let Inner { database, guard, filter } = &*self.inner;
        let all = || async {
            let mut read = database.read("blocks").await?;
            blocks::blocks(&mut read, *filter, scope).await.map(owned)
        };
        guard.run("blocks", Repeat::Safe, all).await
    }

    async fn put_block(&self, scope: &Scope, block: PutBlock) -> Result<()> {
        let Inner { database, guard, .. } = &*self.inner;
        rules::check_block_name(&block.name)?;
        let put = || {
            let (author, block) = (Author::of(scope), block.clone());
            database.write("put_block", move |conn| {
                Box::pin(async move { blocks::put(conn, &author, &block).await })
            })
        };
        // Done twice, it could undo what another wrote between.
        guard.run("put_block", Repeat::Unsafe, put).await
    }

    async fn profile(&self, scope: &Scope) -> Result<Owned<MemoryProfile>> {
        let Inner { database, guard, filter } = &*self.inner;
        let now = self.clock.now();
        let look = || async {
            let mut read = database.read("profile").await?;
            profile::profile(&mut read, *filter, scope, now).await
        };
        guard.run("profile", Repeat::Safe, look).await
    }

    fn facts(&self) -> Option<&dyn FactStore> {
        Some(self)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_durable(true).with_shared(true).with_vectors(true).with_lexical(true)
    }
}

#[async_trait]
impl FactStore for SqliteMemory {
    async fn assert(&self, scope: &Scope, fact: NewFact) -> Result<Asserted> {
        let Inner { database, guard, .. } = &*self.inner;
        let row = Arc::new(facts::NewRow { author: Author::of(scope), fact });
        let assert = || {
            let row = row.clone();
            database.write("assert", move |conn| Box::pin(async move { facts::assert(conn, &row).await }))
        };
        guard.run("assert", Repeat::Unsafe, assert).await
    }

    async fn query(&self, scope: &Scope, query: &FactQuery) -> Result<Vec<Owned<Fact>>> {
        let Inner { database, guard, filter } = &*self.inner;
        facts::check_query(query)?;
        let find = || async {
            let mut read = database.read("query").await?;
            facts::query(&mut read, *filter, scope, query).await.map(owned)
        };
        guard.run("query", Repeat::Safe, find).await
    }
}
