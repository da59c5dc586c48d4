//! What a tenant can do about approvals: see what waits for them, decide, see what is remembered, and take it back. What they
//! decide is on record before it counts.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::agent::UserAgent;
use crate::approval::record::{Record, is_refusal};
use crate::approval::{Approval, ApprovalDecision, ApprovalGrant, ApprovalPage, ApprovalStore};
use crate::audit::Actor;
use crate::closer::Handoff;
use crate::context::{open_all, open_owned};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{ApprovalId, GrantId};
use crate::rules::approvals::{self as rules, Decider};
use crate::scope::{Owned, Owner, Scope};

/// The requests that are being decided: a decision that is delivered twice at once is written down once. Of two processes,
/// the store says which was first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deciding(Arc<Mutex<HashSet<ApprovalId>>>);

impl Deciding {
    fn begin(&self, id: ApprovalId) -> Result<Decision> {
        if self.ids().insert(id) {
            return Ok(Decision { of: self.clone(), id });
        }
        Err(Error::new(ErrorKind::Conflict, "the request is being decided just now"))
    }

    fn ids(&self) -> MutexGuard<'_, HashSet<ApprovalId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Decision {
    of: Deciding,
    id: ApprovalId,
}

impl Drop for Decision {
    fn drop(&mut self) {
        self.of.ids().remove(&self.id);
    }
}

impl UserAgent {
    /// The oldest hundred of the pending requests for approval that the tenant made or may decide, oldest first. See
    /// [`UserAgent::approvals_page`].
    ///
    /// # Errors
    ///
    /// As [`UserAgent::approvals_page`].
    pub async fn approvals(&self) -> Result<Vec<Approval>> {
        self.approvals_page(ApprovalPage::default()).await
    }

    /// A page of the pending requests for approval that the tenant made or may decide, oldest first. Those of their own that
    /// ran out of time with nobody waiting are written into the audit log on the way.
    ///
    /// # Errors
    ///
    /// Whatever the approval store fails with; without one there are none.
    pub async fn approvals_page(&self, page: ApprovalPage) -> Result<Vec<Approval>> {
        let Some(store) = &self.agent.approvals.store else { return Ok(Vec::new()) };
        let scope = self.scope().await?;
        self.record_lapsed(store.clone(), scope.dup()).await?;
        let found = store.list(&scope, self.agent.services.clock.now(), page).await?;
        if found.iter().all(|approval| is_theirs(&scope, approval)) {
            return Ok(found.into_iter().map(Owned::into_value).collect());
        }
        open_all(&self.agent.services, &scope, "approvals", found).await
    }

    /// What the store hands out once is on record then, whether the caller waits for it or not.
    async fn record_lapsed(&self, store: Arc<dyn ApprovalStore>, scope: Scope) -> Result<()> {
        let slot = self.agent.closer.slot(rand::random());
        let agent = self.agent.clone();
        let work = async move { Record::of(&agent, &scope).lapsed(&*store).await };
        Handoff::new(slot, Box::pin(work)).await
    }

    /// Decides a request that the tenant may decide. The decision is written into the requester's audit log before it counts:
    /// `approval_granted`, `approval_edited` or `approval_denied`, with who decided. Where the store then refuses it, because
    /// another process was faster, an `approval_expired` says that it is void.
    ///
    /// A caller who goes away leaves the rest to the agent.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::NotFound`] for a request that is not there or not theirs to decide, [`ErrorKind::Denied`] for their own
    ///   without self-approval, [`ErrorKind::Conflict`] for one that is decided, used or expired, or is being decided.
    /// - Whatever the audit log fails with. Nothing is decided then.
    pub async fn decide(&self, id: ApprovalId, decision: ApprovalDecision) -> Result<()> {
        // Runs that wait hold the entries: deciding must not need one.
        let slot = self.agent.closer.slot(id.as_u128());
        let user = self.clone();
        Handoff::new(slot, Box::pin(async move { user.decide_on_record(id, decision).await })).await
    }

    async fn decide_on_record(&self, id: ApprovalId, decision: ApprovalDecision) -> Result<()> {
        let (agent, store) = (&self.agent, self.approval_store()?);
        let scope = self.scope().await?;
        // Nobody keeps others from deciding what is none of their business: theirs first, and then looked at again.
        let found = store.get(&scope, id, agent.services.clock.now()).await?;
        let requester = found.owner().clone();
        let found = self.theirs(&scope, found).await?;
        // Before the request is read that is decided: what is erased meanwhile has a later epoch, and nothing of it is written.
        let of_requester = agent.mint(&requester).await?;
        let now = agent.services.clock.now();
        // Who may not decide keeps nobody from deciding.
        rules::decide(&found, &requester, Decider::Person(scope.owner()), &decision, now)?;
        let _deciding = agent.deciding.begin(id)?;
        let found = store.get(&scope, id, now).await?;
        let found = self.theirs(&scope, found).await?;
        // What the store would refuse is not written down.
        rules::decide(&found, &requester, Decider::Person(scope.owner()), &decision, now)?;
        let by = scope.user_id();
        let record = Record::of(agent, &of_requester);
        record.decision(&found.request, &decision, by, Actor::Approver).await?;
        let decided = store.decide(&scope, id, decision, now).await;
        if let Err(refused) = &decided
            && is_refusal(refused)
        {
            let why = format!("the decision is void: {}", refused.message());
            record.over(&found.request, by, &why).await?;
        }
        decided
    }

    /// The live grants that the tenant has or may revoke, oldest first.
    ///
    /// # Errors
    ///
    /// Whatever the approval store fails with; without one there are none.
    pub async fn grants(&self) -> Result<Vec<ApprovalGrant>> {
        let Some(store) = &self.agent.approvals.store else { return Ok(Vec::new()) };
        let scope = self.scope().await?;
        let found = store.grants(&scope, self.agent.services.clock.now()).await?;
        let visible = |grant: &Owned<ApprovalGrant>| grant.peek().is_known_to(grant.owner(), scope.owner());
        if found.iter().all(visible) {
            return Ok(found.into_iter().map(Owned::into_value).collect());
        }
        open_all(&self.agent.services, &scope, "approvals", found).await
    }

    /// Takes back a grant that the tenant has, or that they might have given. It is void at once, and then written into the
    /// audit log of whom it was for as `approval_denied`, with its id: a log that is down keeps nobody from revoking.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for a grant that is not there or not theirs to revoke. Whatever the audit log fails with; the
    /// grant is void all the same.
    pub async fn revoke(&self, id: GrantId) -> Result<()> {
        let slot = self.agent.closer.slot(id.as_u128());
        let user = self.clone();
        Handoff::new(slot, Box::pin(async move { user.revoke_on_record(id).await })).await
    }

    async fn revoke_on_record(&self, id: GrantId) -> Result<()> {
        let scope = self.scope().await?;
        let gone = self.approval_store()?.revoke(&scope, id).await?;
        let owner = gone.owner().clone();
        let grant = if gone.peek().is_known_to(&owner, scope.owner()) {
            gone.into_value()
        } else {
            open_owned(&self.agent.services, &scope, "approvals", gone).await?
        };
        let of_owner = self.agent.mint(&owner).await?;
        Record::of(&self.agent, &of_owner).revoked(&grant, scope.user_id()).await
    }

    /// One request, which is the tenant's own or theirs to decide.
    async fn theirs(&self, scope: &Scope, found: Owned<Approval>) -> Result<Approval> {
        if is_theirs(scope, &found) {
            return Ok(found.into_value());
        }
        open_owned(&self.agent.services, scope, "approvals", found).await
    }

    fn approval_store(&self) -> Result<&dyn ApprovalStore> {
        let store = self.agent.approvals.store.as_deref();
        store.ok_or_else(|| Error::unsupported("an agent without an approval store", "approvals"))
    }
}

/// The requests of others that a tenant may decide are theirs to see; anybody else's are not.
fn is_theirs(scope: &Scope, found: &Owned<Approval>) -> bool {
    let owner: &Owner = found.owner();
    scope.owns(owner) || found.peek().request.may_decide(owner, scope.owner())
}
