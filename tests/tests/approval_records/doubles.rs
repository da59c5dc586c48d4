//! Parts that go wrong on purpose: an approval store that suspends around everything it does, or that a process dies in, and
//! an audit log that refuses.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use loomflow_core::{
    Action, Approval, ApprovalDecision, ApprovalGrant, ApprovalId, ApprovalPage, ApprovalRequest,
    ApprovalStore, AuditEntry, AuditEvent, AuditLog, AuditQuery, AuditReceipt, AuditVerification, Digest,
    Epoch, Erase, Erased, Error, ErrorKind, ExportStream, GrantId, Owned, Result, Scope, TenantData,
    Timestamp, UserId,
};
use loomflow_local::{InMemoryApprovalStore, InMemoryAuditLog};
use parking_lot::Mutex;
use tokio::task::yield_now;

/// A store that suspends before and after everything it does. Told so, it never comes back from a use.
#[derive(Debug, Default)]
pub(crate) struct Slow {
    pub(crate) store: Arc<InMemoryApprovalStore>,
    pub(crate) dies_after_a_use: AtomicBool,
}

async fn between<T>(work: impl Future<Output = T>) -> T {
    yield_now().await;
    let done = work.await;
    yield_now().await;
    done
}

#[async_trait]
impl ApprovalStore for Slow {
    async fn create(&self, scope: &Scope, request: ApprovalRequest) -> Result<()> {
        between(self.store.create(scope, request)).await
    }
    async fn get(&self, scope: &Scope, id: ApprovalId, now: Timestamp) -> Result<Owned<Approval>> {
        between(self.store.get(scope, id, now)).await
    }
    async fn list(&self, scope: &Scope, now: Timestamp, page: ApprovalPage) -> Result<Vec<Owned<Approval>>> {
        self.store.list(scope, now, page).await
    }
    async fn lapsed(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<Approval>>> {
        self.store.lapsed(scope, now).await
    }
    async fn decide(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        now: Timestamp,
    ) -> Result<()> {
        between(self.store.decide(scope, id, decision, now)).await
    }
    async fn decide_by_handler(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        by: Option<UserId>,
        now: Timestamp,
    ) -> Result<()> {
        between(self.store.decide_by_handler(scope, id, decision, by, now)).await
    }
    async fn consume(
        &self,
        scope: &Scope,
        id: ApprovalId,
        binding: Digest,
        policy_version: u64,
        now: Timestamp,
    ) -> Result<(ApprovalDecision, Option<UserId>)> {
        let taken = between(self.store.consume(scope, id, binding, policy_version, now)).await;
        if taken.is_ok() && self.dies_after_a_use.swap(false, Ordering::SeqCst) {
            pending::<()>().await;
        }
        taken
    }
    async fn void(&self, scope: &Scope, id: ApprovalId, now: Timestamp) -> Result<bool> {
        between(self.store.void(scope, id, now)).await
    }
    async fn remembered(
        &self,
        scope: &Scope,
        tool: &str,
        now: Timestamp,
    ) -> Result<Vec<Owned<ApprovalGrant>>> {
        between(self.store.remembered(scope, tool, now)).await
    }
    async fn grants(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<ApprovalGrant>>> {
        self.store.grants(scope, now).await
    }
    async fn revoke(&self, scope: &Scope, id: GrantId) -> Result<Owned<ApprovalGrant>> {
        between(self.store.revoke(scope, id)).await
    }
    async fn changed(&self, scope: &Scope, id: ApprovalId) -> Result<()> {
        between(self.store.changed(scope, id)).await
    }
}

#[async_trait]
impl TenantData for Slow {
    fn store_name(&self) -> &str {
        self.store.store_name()
    }
    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        self.store.epoch(scope).await
    }
    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        self.store.export(scope).await
    }
    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        self.store.forget(scope, what).await
    }
}

/// A log that cannot be written where it is told so.
#[derive(Debug)]
pub(crate) struct Refusing {
    log: InMemoryAuditLog,
    pub(crate) refuses: Mutex<Option<Action>>,
}

impl Refusing {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { log: InMemoryAuditLog::new(), refuses: Mutex::default() })
    }
}

#[async_trait]
impl AuditLog for Refusing {
    async fn append(&self, scope: &Scope, event: AuditEvent) -> Result<AuditReceipt> {
        if *self.refuses.lock() == Some(event.action) {
            return Err(Error::new(ErrorKind::Unreachable, "the log is down"));
        }
        self.log.append(scope, event).await
    }
    async fn query(&self, scope: &Scope, query: &AuditQuery) -> Result<Vec<Owned<AuditEntry>>> {
        self.log.query(scope, query).await
    }
    async fn verify(&self) -> Result<AuditVerification> {
        self.log.verify().await
    }
}

#[async_trait]
impl TenantData for Refusing {
    fn store_name(&self) -> &str {
        self.log.store_name()
    }
    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        self.log.export(scope).await
    }
    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        self.log.forget(scope, what).await
    }
}
