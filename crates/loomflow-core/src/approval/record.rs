//! What the audit log says of approvals: each decision once, by whoever makes it and before it counts, and each end without one.
//!
//! It is written in the requester's partition. An entry comes before what it tells of is stored, so that no approval can be
//! used that is not on record; where the store then refuses it, a second entry says that it is void.

use crate::agent::AgentInner;
use crate::approval::{Approval, ApprovalDecision, ApprovalGrant, ApprovalRequest, ApprovalStore};
use crate::audit::{Action, Actor, AuditEvent};
use crate::context::open_all;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{SessionId, UserId};
use crate::ids::GrantId;
use crate::redact::{ObjectWriter, Redactor};
use crate::rules::approvals::{LAPSED_AT_ONCE, MAX_REQUESTS_PER_USER};
use crate::run::RunState;
use crate::scope::Scope;

/// Which entry tells of a decision.
pub(crate) fn action_of(decision: &ApprovalDecision) -> Action {
    match decision {
        ApprovalDecision::Approve | ApprovalDecision::ApproveAndRemember { .. } => Action::ApprovalGranted,
        ApprovalDecision::Deny { .. } => Action::ApprovalDenied,
        ApprovalDecision::Edit { .. } => Action::ApprovalEdited,
    }
}

/// Whether a store that answers so has certainly not recorded what it was asked to.
pub(crate) fn is_refusal(error: &Error) -> bool {
    use ErrorKind::{Capacity, Conflict, Denied, Erased, InvalidInput, NotFound};
    matches!(error.kind(), Capacity | Conflict | Denied | Erased | InvalidInput | NotFound)
}

fn about<'r>(redactor: &'r Redactor, request: &ApprovalRequest) -> ObjectWriter<'r> {
    let payload = redactor.object().show("approval_id", request.id).name("tool", &request.tool);
    payload
        .str("call_id", &request.call_id)
        .name("effect", request.effect.as_str())
        .show("digest", request.digest)
}

/// Writes into the log of one user, within a conversation where it is known.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a> {
    agent: &'a AgentInner,
    scope: &'a Scope,
    session: Option<&'a SessionId>,
}

impl<'a> Record<'a> {
    /// In the log of the scope's user.
    pub(crate) fn of(agent: &'a AgentInner, scope: &'a Scope) -> Self {
        Self { agent, scope, session: None }
    }

    /// In the log of a run's user, about its own requests.
    pub(crate) fn of_run(run: &'a RunState) -> Self {
        Self { agent: &run.agent, scope: run.ctx.scope(), session: Some(run.ctx.session_id()) }
    }

    /// Tells of a decision, and counts it. `by` is who made it; nobody where a handler did in nobody's name.
    pub(crate) async fn decision(
        self,
        request: &ApprovalRequest,
        decision: &ApprovalDecision,
        by: Option<&UserId>,
        actor: Actor,
    ) -> Result<()> {
        let mut payload = about(&self.agent.services.redactor, request);
        if let Some(by) = by {
            payload = payload.name("approver", by.as_str());
        }
        payload = match decision {
            ApprovalDecision::Deny { reason } if !reason.is_empty() => payload.str("why", reason),
            ApprovalDecision::Edit { args } => payload.json("args", args),
            ApprovalDecision::ApproveAndRemember { grant } => {
                let until = payload.show("grant_id", GrantId::from(request.id));
                until.show("remembered_until", grant.expires_at)
            }
            _ => payload,
        };
        self.write(request, actor, action_of(decision), payload).await
    }

    /// Tells that a request is over, or that an approval is void, without anything having come of it.
    pub(crate) async fn over(self, request: &ApprovalRequest, by: Option<&UserId>, why: &str) -> Result<()> {
        let mut payload = about(&self.agent.services.redactor, request).str("why", why);
        if let Some(by) = by {
            payload = payload.name("approver", by.as_str());
        }
        self.write(request, Actor::System, Action::ApprovalExpired, payload).await
    }

    /// Tells that a remembered approval was taken back.
    pub(crate) async fn revoked(self, grant: &ApprovalGrant, by: Option<&UserId>) -> Result<()> {
        let payload =
            self.agent.services.redactor.object().show("grant_id", grant.id).name("tool", &grant.tool);
        let mut payload = payload.str("why", "the remembered approval was taken back");
        if let Some(by) = by {
            payload = payload.name("by", by.as_str());
        }
        let actor = if by == self.scope.user_id() { Actor::User } else { Actor::Approver };
        self.append(AuditEvent::new(
            self.agent.services.clock.now(),
            actor,
            Action::ApprovalDenied,
            payload.finish(),
        ))
        .await
    }

    /// Tells of the requests of the scope's user whose time ran out, each once over all who look.
    pub(crate) async fn lapsed(self, store: &dyn ApprovalStore) -> Result<()> {
        for _ in 0..=MAX_REQUESTS_PER_USER / LAPSED_AT_ONCE {
            let found = store.lapsed(self.scope, self.agent.services.clock.now()).await?;
            let lapsed: Vec<Approval> =
                open_all(&self.agent.services, self.scope, "approvals", found).await?;
            for approval in &lapsed {
                Self { session: None, ..self }
                    .over(&approval.request, None, "nobody decided it, or used it, in time")
                    .await?;
            }
            if lapsed.len() < LAPSED_AT_ONCE {
                break;
            }
        }
        Ok(())
    }

    async fn write(
        self,
        request: &ApprovalRequest,
        actor: Actor,
        action: Action,
        payload: ObjectWriter<'_>,
    ) -> Result<()> {
        let mut event = AuditEvent::new(self.agent.services.clock.now(), actor, action, payload.finish());
        event.run = Some(request.run);
        event.session = self.session.cloned();
        self.append(event).await?;
        let outcome = [("outcome", action.as_str())];
        self.agent.services.telemetry.count(self.scope, "loom.approvals", 1, &outcome);
        Ok(())
    }

    /// Where the agent is told to go on without its log, what is lost is counted.
    async fn append(self, event: AuditEvent) -> Result<()> {
        let action = event.action;
        match self.agent.services.audit.append(self.scope, event).await {
            Err(_) if self.agent.settings.audit_continues => {
                let lost = [("action", action.as_str())];
                self.agent.services.telemetry.count(self.scope, "loom.audit.lost", 1, &lost);
                Ok(())
            }
            other => other.map(drop),
        }
    }
}
