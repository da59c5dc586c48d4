//! The store: the trait of approvals on one SQLite file.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use loomflow_core::resilience::{Readiness, Repeat, Resilience};
use loomflow_core::{
    Approval, ApprovalDecision, ApprovalGrant, ApprovalId, ApprovalPage, ApprovalRequest, ApprovalStore,
    Digest, Epoch, Erase, Erased, ExportStream, GrantId, Owned, Result, Scope, TenantData, Timestamp, UserId,
};
use loomflow_support_sql::Wakes;
use loomflow_support_sql::sqlite::{Database, SERVER, failed};

use crate::config::SqliteApprovalsConfig;
use crate::erase::{self, Place};
use crate::grants;
use crate::requests::{self, By};
use crate::schema::{self, Author, Filter, SCHEMA, STORE};

/// Approvals in one SQLite file, which several processes may share. See the crate's documentation.
///
/// Cloning gives another handle to the same file.
#[derive(Clone)]
pub struct SqliteApprovals(Arc<Inner>);

struct Inner {
    database: Database,
    guard: Resilience,
    filter: Filter,
    wakes: Wakes,
    most_requests: usize,
    most_grants: usize,
}

impl SqliteApprovals {
    /// Opens the file, creating it and bringing its schema up to date unless `config` says not to.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](loomflow_core::ErrorKind::Config) for a file that cannot be opened, that is no database or
    /// another program's, and for a schema that is newer than this program, or older where it may not be migrated. Such a
    /// file is left untouched.
    pub async fn connect(config: SqliteApprovalsConfig) -> Result<Self> {
        let database = Database::open(config.file(), &SCHEMA, config.migrate).await?;
        Ok(Self(Arc::new(Inner {
            database,
            guard: Resilience::without_circuit(SERVER, config.operation_timeout),
            filter: Filter::of(&config),
            wakes: Wakes::new(),
            most_requests: config.max_requests_per_user,
            most_grants: config.max_grants_per_user,
        })))
    }

    /// Creates the file or brings its schema up to date, and nothing else.
    ///
    /// # Errors
    ///
    /// As [`SqliteApprovals::connect`].
    pub async fn migrate(config: &SqliteApprovalsConfig) -> Result<()> {
        Database::migrate(&config.file(), &SCHEMA).await
    }

    async fn record(
        &self,
        scope: &Scope,
        id: ApprovalId,
        by: By,
        decision: ApprovalDecision,
        now: Timestamp,
    ) -> Result<()> {
        let Inner { database, guard, wakes, most_grants, .. } = &*self.0;
        let bounds = (now, *most_grants);
        let decide = || {
            let (author, by, decision) = (Author::of(scope), by.clone(), decision.clone());
            database.write("decide approval", move |conn| {
                Box::pin(async move { requests::decide(conn, &author, id, &by, decision, bounds).await })
            })
        };
        // Done twice, the second time would be a conflict with the first.
        guard.run("decide approval", Repeat::Unsafe, decide).await?;
        wakes.ring(id.as_u128());
        Ok(())
    }
}

impl fmt::Debug for SqliteApprovals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteApprovals({:?}, {:?})", self.0.database, self.0.guard)
    }
}

/// Reads from a connection of the readers', with one retry.
macro_rules! read {
    ($store:expr, $operation:literal, $work:path, $scope:expr $(, $argument:expr)*) => {{
        let Inner { database, guard, filter, .. } = &*$store.0;
        let author = Author::of($scope);
        let read = || async {
            let mut conn = database.read($operation).await?;
            $work(&mut conn, *filter, &author $(, $argument)*).await
        };
        guard.run($operation, Repeat::Safe, read).await
    }};
}

#[async_trait]
impl ApprovalStore for SqliteApprovals {
    async fn create(&self, scope: &Scope, request: ApprovalRequest) -> Result<()> {
        let Inner { database, guard, most_requests, .. } = &*self.0;
        let (request, most) = (Arc::new(request), *most_requests);
        let create = || {
            let (author, request) = (Author::of(scope), request.clone());
            database.write("create approval", move |conn| {
                Box::pin(async move { requests::create(conn, &author, &request, most).await })
            })
        };
        guard.run("create approval", Repeat::Unsafe, create).await
    }

    async fn get(&self, scope: &Scope, id: ApprovalId, now: Timestamp) -> Result<Owned<Approval>> {
        read!(self, "get approval", requests::get, scope, id, now)
    }

    async fn list(&self, scope: &Scope, now: Timestamp, page: ApprovalPage) -> Result<Vec<Owned<Approval>>> {
        read!(self, "list approvals", requests::list, scope, now, page)
    }

    async fn lapsed(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<Approval>>> {
        // A look before the writer is taken: most users have none.
        if !read!(self, "look for lapsed approvals", requests::has_lapsed, scope, now)? {
            return Ok(Vec::new());
        }
        let Inner { database, guard, wakes, .. } = &*self.0;
        let take = || {
            let author = Author::of(scope);
            database.write("take lapsed approvals", move |conn| {
                Box::pin(async move { requests::take_lapsed(conn, &author, now).await })
            })
        };
        let lapsed = guard.run("take lapsed approvals", Repeat::Unsafe, take).await?;
        wakes.ring_all();
        Ok(lapsed)
    }

    async fn decide(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        now: Timestamp,
    ) -> Result<()> {
        self.record(scope, id, By::Author, decision, now).await
    }

    async fn decide_by_handler(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        by: Option<UserId>,
        now: Timestamp,
    ) -> Result<()> {
        self.record(scope, id, By::Handler(by), decision, now).await
    }

    async fn consume(
        &self,
        scope: &Scope,
        id: ApprovalId,
        binding: Digest,
        policy_version: u64,
        now: Timestamp,
    ) -> Result<(ApprovalDecision, Option<UserId>)> {
        let Inner { database, guard, wakes, .. } = &*self.0;
        let bound = (binding, policy_version);
        let consume = || {
            let author = Author::of(scope);
            database.write("use approval", move |conn| {
                Box::pin(async move { requests::consume(conn, &author, id, bound, now).await })
            })
        };
        let taken = guard.run("use approval", Repeat::Unsafe, consume).await?;
        wakes.ring(id.as_u128());
        Ok(taken)
    }

    async fn void(&self, scope: &Scope, id: ApprovalId, _now: Timestamp) -> Result<bool> {
        let Inner { database, guard, wakes, .. } = &*self.0;
        let void = || {
            let author = Author::of(scope);
            database.write("void approval", move |conn| {
                Box::pin(async move { requests::void(conn, &author, id).await })
            })
        };
        let done = guard.run("void approval", Repeat::Safe, void).await?;
        wakes.ring(id.as_u128());
        Ok(done)
    }

    async fn remembered(
        &self,
        scope: &Scope,
        tool: &str,
        now: Timestamp,
    ) -> Result<Vec<Owned<ApprovalGrant>>> {
        read!(self, "find grants", grants::remembered, scope, tool, now)
    }

    async fn grants(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<ApprovalGrant>>> {
        read!(self, "list grants", grants::known, scope, now)
    }

    async fn revoke(&self, scope: &Scope, id: GrantId) -> Result<Owned<ApprovalGrant>> {
        let Inner { database, guard, .. } = &*self.0;
        let revoke = || {
            let author = Author::of(scope);
            database.erase("revoke grant", move |conn| {
                Box::pin(async move { grants::revoke(conn, &author, id).await })
            })
        };
        guard.run("revoke grant", Repeat::Unsafe, revoke).await
    }

    async fn changed(&self, scope: &Scope, id: ApprovalId) -> Result<()> {
        let has_changed = || async {
            let pending = read!(self, "await approval", requests::is_pending, scope, id)?;
            Ok(!pending)
        };
        self.0.wakes.changed(id.as_u128(), has_changed).await
    }
}

#[async_trait]
impl TenantData for SqliteApprovals {
    fn store_name(&self) -> &str {
        STORE
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        let Inner { database, guard, .. } = &*self.0;
        let author = Author::of(scope);
        let epoch = || async {
            let mut conn = database.read("epoch").await?;
            schema::epoch(&mut conn, &author.partition, "epoch").await
        };
        guard.run("epoch", Repeat::Safe, epoch).await
    }

    async fn ready(&self) -> Readiness {
        let Inner { database, guard, .. } = &*self.0;
        let ask = || async {
            let mut conn = database.read("ready").await?;
            let asked = sqlx::query("SELECT 1 FROM approvals_partitions LIMIT 1").fetch_optional(&mut *conn);
            asked.await.map(drop).map_err(failed("ready"))
        };
        let answer = guard.run("ready", Repeat::Safe, ask).await;
        guard.readiness(&answer)
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let next = async |(store, author, place): (Self, Author, Place)| {
            let Inner { database, guard, filter, .. } = &*store.0;
            let read = || async {
                let mut conn = database.read("export").await?;
                erase::page(&mut conn, *filter, &author, place.clone()).await
            };
            let page = guard.run("export", Repeat::Safe, read).await?;
            Ok(page.map(|(items, place)| (items, (store.clone(), author.clone(), place))))
        };
        let begin = (self.clone(), Author::of(scope), Place::default());
        let pages = stream::try_unfold(begin, move |state| Box::pin(next(state)));
        Ok(pages.map_ok(|items| stream::iter(items).map(Ok)).try_flatten().boxed())
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let Inner { database, guard, wakes, .. } = &*self.0;
        let forget = || {
            let (author, what) = (Author::of(scope), what.clone());
            database.erase("forget", move |conn| {
                Box::pin(async move { erase::forget(conn, &author, &what).await })
            })
        };
        let erased = guard.run("forget", Repeat::Unsafe, forget).await?;
        wakes.ring_all();
        Ok(erased)
    }
}
