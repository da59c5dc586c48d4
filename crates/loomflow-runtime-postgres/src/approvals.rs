//! The store: connecting, and what each operation of the contract goes through.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use loomflow_core::resilience::{Readiness, Repeat, Resilience};
use loomflow_core::{
    Approval, ApprovalDecision, ApprovalGrant, ApprovalId, ApprovalPage, ApprovalRequest, ApprovalStore,
    Digest, Epoch, Erase, Erased, ExportStream, GrantId, Owned, Owner, Result, Scope, TenantData, Timestamp,
    UserId,
};
use loomflow_support_sql::Wakes;
use loomflow_support_sql::postgres::{Access, Pool, SERVER, Transaction, migrate};

use crate::PostgresApprovalsConfig;
use crate::erase::Place;
use crate::query::Reads;
use crate::requests::{By, epoch};
use crate::schema::{APPROVALS, STORE};

/// Approvals on PostgreSQL, shared by any number of processes. See the crate's documentation.
///
/// Cloning gives another handle to the same connections.
#[derive(Clone)]
pub struct PostgresApprovals(Arc<Inner>);

struct Inner {
    pool: Pool,
    resilience: Resilience,
    reads: Reads,
    wakes: Wakes,
    most_requests: usize,
    most_grants: usize,
}

impl PostgresApprovals {
    /// Connects, brings the schema up to date unless the configuration forbids it, and checks that row-level security
    /// binds the application's role in every table.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](loomflow_core::ErrorKind::Config) for a wrong connection string, a schema that is missing,
    /// older or newer than this program (a newer one is left untouched), or a role or a table that row-level security
    /// does not bind; [`ErrorKind::Unreachable`](loomflow_core::ErrorKind::Unreachable) for a server that is not there.
    /// The message says what to do.
    pub async fn connect(config: PostgresApprovalsConfig) -> Result<Self> {
        let pool = Pool::connect(&config.settings(), &APPROVALS, config.migrate).await?;
        Ok(Self(Arc::new(Inner {
            pool,
            resilience: Resilience::new(SERVER, config.operation_timeout),
            reads: Reads::new(&config),
            wakes: Wakes::new(),
            most_requests: config.max_requests_per_user,
            most_grants: config.max_grants_per_user,
        })))
    }

    /// Brings the schema up to date and does nothing else. The user of the connection string makes the application's
    /// role and owns the tables.
    ///
    /// # Errors
    ///
    /// As [`PostgresApprovals::connect`]; [`ErrorKind::Config`](loomflow_core::ErrorKind::Config) when the user lacks a
    /// privilege.
    pub async fn migrate(config: &PostgresApprovalsConfig) -> Result<()> {
        migrate(&config.settings(), &APPROVALS).await
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

    pub(crate) fn most_requests(&self) -> usize {
        self.0.most_requests
    }

    pub(crate) fn most_grants(&self) -> usize {
        self.0.most_grants
    }

    async fn run<T, F, Fut>(&self, operation: &'static str, repeat: Repeat, attempt: F) -> Result<T>
    where
        F: FnMut() -> Fut + Send,
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        self.0.resilience.run(operation, repeat, attempt).await
    }

    /// Done twice, a write would be a conflict with itself: none is repeated that may have been done.
    async fn record(
        &self,
        scope: &Scope,
        id: ApprovalId,
        by: By,
        decision: ApprovalDecision,
        now: Timestamp,
    ) -> Result<()> {
        let decide = || self.write_decision(scope, id, &by, &decision, now);
        self.run("decide approval", Repeat::Unsafe, decide).await?;
        self.0.wakes.ring(id.as_u128());
        Ok(())
    }
}

impl fmt::Debug for PostgresApprovals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresApprovals({:?}, {:?})", self.0.pool, self.0.resilience)
    }
}

#[async_trait]
impl ApprovalStore for PostgresApprovals {
    async fn create(&self, scope: &Scope, request: ApprovalRequest) -> Result<()> {
        self.run("create approval", Repeat::Unsafe, || self.write_request(scope, &request)).await
    }

    async fn get(&self, scope: &Scope, id: ApprovalId, now: Timestamp) -> Result<Owned<Approval>> {
        self.run("get approval", Repeat::Safe, || self.read_one(scope, id, now)).await
    }

    async fn list(&self, scope: &Scope, now: Timestamp, page: ApprovalPage) -> Result<Vec<Owned<Approval>>> {
        self.run("list approvals", Repeat::Safe, || self.read_pending(scope, now, page)).await
    }

    async fn lapsed(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<Approval>>> {
        let lapsed =
            self.run("take lapsed approvals", Repeat::Unsafe, || self.take_lapsed(scope, now)).await?;
        for approval in &lapsed {
            self.0.wakes.ring(approval.0.as_u128());
        }
        Ok(lapsed.into_iter().map(|(_, approval)| approval).collect())
    }

    async fn decide(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        now: Timestamp,
    ) -> Result<()> {
        self.record(scope, id, By::User, decision, now).await
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
        let consume = || self.write_consumed(scope, id, (binding, policy_version), now);
        let taken = self.run("use approval", Repeat::Unsafe, consume).await?;
        self.0.wakes.ring(id.as_u128());
        Ok(taken)
    }

    async fn void(&self, scope: &Scope, id: ApprovalId, _now: Timestamp) -> Result<bool> {
        let done = self.run("void approval", Repeat::Safe, || self.write_void(scope, id)).await?;
        self.0.wakes.ring(id.as_u128());
        Ok(done)
    }

    async fn remembered(
        &self,
        scope: &Scope,
        tool: &str,
        now: Timestamp,
    ) -> Result<Vec<Owned<ApprovalGrant>>> {
        self.run("find grants", Repeat::Safe, || self.read_remembered(scope, tool, now)).await
    }

    async fn grants(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<ApprovalGrant>>> {
        self.run("list grants", Repeat::Safe, || self.read_grants(scope, now)).await
    }

    async fn revoke(&self, scope: &Scope, id: GrantId) -> Result<Owned<ApprovalGrant>> {
        self.run("revoke grant", Repeat::Unsafe, || self.delete_grant(scope, id)).await
    }

    async fn changed(&self, scope: &Scope, id: ApprovalId) -> Result<()> {
        let has_changed = || async {
            let pending = self.run("await approval", Repeat::Safe, || self.is_pending(scope, id)).await?;
            Ok(!pending)
        };
        self.0.wakes.changed(id.as_u128(), has_changed).await
    }
}

#[async_trait]
impl TenantData for PostgresApprovals {
    fn store_name(&self) -> &str {
        STORE
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        let read = || async {
            let mut tx = self.begin(scope, Access::Read, "epoch").await?;
            let stored = epoch(&mut tx, scope.owner().partition(), "epoch").await?;
            tx.commit().await?;
            Ok(stored)
        };
        self.run("epoch", Repeat::Safe, read).await
    }

    async fn ready(&self) -> Readiness {
        let answer = self.run("ready", Repeat::Safe, || self.0.pool.ping()).await;
        self.0.resilience.readiness(&answer)
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let next = async |(store, owner, place): (Self, Owner, Place)| {
            let page = store.run("export", Repeat::Safe, || store.page(&owner, place.clone())).await?;
            Ok(page.map(|(items, place)| (items, (store.clone(), owner.clone(), place))))
        };
        let begin = (self.clone(), scope.owner().clone(), Place::default());
        let pages = stream::try_unfold(begin, move |state| Box::pin(next(state)));
        Ok(pages.map_ok(|items| stream::iter(items).map(Ok)).try_flatten().boxed())
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let erased = self.run("forget", Repeat::Unsafe, || self.erase(scope, what)).await?;
        self.0.wakes.ring_all();
        Ok(erased)
    }
}
