//! The approval store of a schedule, watched: it suspends before and after everything it does, and writes down what it took.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{
    Approval, ApprovalDecision, ApprovalGrant, ApprovalId, ApprovalPage, ApprovalRequest, ApprovalStore,
    Digest, Epoch, Erase, Erased, ExportStream, GrantId, Owned, Result, Scope, TenantData, Timestamp, UserId,
};
use tokio::task::yield_now;

use super::history::{Fact, History, Said};
use super::policy::payment;

/// A store, watched.
pub(super) struct Watched {
    pub(super) store: Arc<dyn ApprovalStore>,
    pub(super) history: History,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.store)
    }
}

/// Does something with a suspension on either side of it.
async fn between<T>(work: impl Future<Output = T>) -> T {
    yield_now().await;
    let done = work.await;
    yield_now().await;
    done
}

pub(super) fn said(decision: &ApprovalDecision) -> Said {
    match decision {
        ApprovalDecision::Approve => Said::Approve,
        ApprovalDecision::Edit { args } => Said::Edit(payment(args).1),
        _ => Said::Deny,
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ApprovalStore for Watched {
    async fn create(&self, scope: &Scope, request: ApprovalRequest) -> Result<()> {
        let (call, cents) = payment(&request.arguments);
        let (id, version, expires) = (request.id, request.policy_version, request.expires_at);
        between(async {
            self.store.create(scope, request).await?;
            self.history.add(Fact::Created { id, call, cents, version, expires });
            Ok(())
        })
        .await
    }

    async fn get(&self, scope: &Scope, id: ApprovalId, now: Timestamp) -> Result<Owned<Approval>> {
        between(self.store.get(scope, id, now)).await
    }

    async fn list(&self, scope: &Scope, now: Timestamp, page: ApprovalPage) -> Result<Vec<Owned<Approval>>> {
        between(self.store.list(scope, now, page)).await
    }

    async fn lapsed(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<Approval>>> {
        between(self.store.lapsed(scope, now)).await
    }

    async fn decide(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        now: Timestamp,
    ) -> Result<()> {
        let said = said(&decision);
        between(async {
            self.store.decide(scope, id, decision, now).await?;
            self.history.add(Fact::Decided { id, said });
            Ok(())
        })
        .await
    }

    async fn decide_by_handler(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        by: Option<UserId>,
        now: Timestamp,
    ) -> Result<()> {
        let said = said(&decision);
        between(async {
            self.store.decide_by_handler(scope, id, decision, by, now).await?;
            self.history.add(Fact::Decided { id, said });
            Ok(())
        })
        .await
    }

    async fn consume(
        &self,
        scope: &Scope,
        id: ApprovalId,
        binding: Digest,
        policy_version: u64,
        now: Timestamp,
    ) -> Result<(ApprovalDecision, Option<UserId>)> {
        between(async {
            let taken = self.store.consume(scope, id, binding, policy_version, now).await?;
            self.history.add(Fact::Consumed { id, at: now });
            Ok(taken)
        })
        .await
    }

    async fn void(&self, scope: &Scope, id: ApprovalId, now: Timestamp) -> Result<bool> {
        between(async {
            let void = self.store.void(scope, id, now).await?;
            if void {
                self.history.add(Fact::Void { id, at: now });
            }
            Ok(void)
        })
        .await
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
        between(self.store.grants(scope, now)).await
    }

    async fn revoke(&self, scope: &Scope, id: GrantId) -> Result<Owned<ApprovalGrant>> {
        between(self.store.revoke(scope, id)).await
    }

    async fn changed(&self, scope: &Scope, id: ApprovalId) -> Result<()> {
        between(self.store.changed(scope, id)).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl TenantData for Watched {
    fn store_name(&self) -> &str {
        self.store.store_name()
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        self.store.epoch(scope).await
    }

    async fn ready(&self) -> loomflow_core::resilience::Readiness {
        self.store.ready().await
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        self.store.export(scope).await
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        self.store.forget(scope, what).await
    }
}
