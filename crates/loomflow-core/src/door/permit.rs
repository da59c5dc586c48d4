//! The first half of the tool door: hooks and policy merge as deny > ask > allow, an ask goes to somebody who may decide,
//! and what comes out is permission for one very call, or a denial the model is told about.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::approval::{
    Approval, ApprovalDecision, ApprovalHandler, ApprovalRequest, ApprovalState, ApprovalStore, Notified,
};
use crate::audit::{Action, Actor};
use crate::context::open_all;
use crate::door::guarded;
use crate::error::{Error, ErrorKind, Result};
use crate::event::EventKind;
use crate::identity::UserId;
use crate::message::{Digest, ToolCall};
use crate::permissions::Decision;
use crate::redact::ObjectWriter;
use crate::run::RunState;
use crate::scope::Owned;
use crate::tool::{ToolSpec, call_digest};

/// How often a waiting run looks by itself whether its request was decided, should the store's notice get lost.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long it waits at the least before it looks again.
const LOOK_LATER: Duration = Duration::from_millis(10);

/// A call with its arguments parsed and bound.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) call: ToolCall,
    pub(crate) arguments: Arc<Value>,
    pub(crate) digest: Digest,
    pub(crate) step: u32,
}

impl Bound {
    pub(crate) fn new(run: &RunState, step: u32, call: ToolCall, spec: &ToolSpec) -> Result<Self> {
        let arguments = Arc::new(call.parse_arguments()?);
        let digest = call_digest(run.ctx.run_id(), step, &call, spec, &arguments);
        Ok(Self { call, arguments, digest, step })
    }

    fn edited(&self, run: &RunState, spec: &ToolSpec, arguments: Value) -> Result<Self> {
        let mut call = self.call.clone();
        call.arguments = arguments.to_string().into();
        Self::new(run, self.step, call, spec)
    }
}

/// Permission for one call, or why there is none.
pub(crate) enum Permit {
    /// It may run, with these arguments.
    Granted(Bound),
    /// It may not; this is what the model is told.
    Refused(Arc<str>),
}

/// Decides about a call. Every way this can go wrong is a refusal.
pub(crate) async fn permit(run: &RunState, spec: &ToolSpec, bound: Bound) -> Result<Permit> {
    let version = run.agent.permissions.version();
    let decision = decide(run, spec, &bound.call).await;
    record_decision(run, spec, &bound, &decision).await?;
    match decision {
        Decision::Allow => Ok(Permit::Granted(bound)),
        Decision::Deny { why } => Ok(Permit::Refused(why)),
        // Rare and large: boxed, so that calls nobody asks about do not carry it.
        Decision::Ask { why } => Box::pin(ask(run, spec, bound, why, version)).await,
    }
}

/// The strictest of all hooks and the policy. An error, a panic or taking too long is a deny.
async fn decide(run: &RunState, spec: &ToolSpec, call: &ToolCall) -> Decision {
    let agent = &run.agent;
    let limit = agent.settings.hook_timeout;
    let mut strictest = Decision::Allow;
    for hook in &agent.pre_hooks {
        let decided = guarded("a hook", limit, hook.before_tool(&run.ctx, call, spec.effect)).await;
        strictest = strictest.and(decided.unwrap_or_else(|error| closed(run, "hook", &error)));
    }
    let decided = guarded("the policy", limit, agent.permissions.check(&run.ctx, call, spec.effect)).await;
    strictest.and(decided.unwrap_or_else(|error| closed(run, "policy", &error)))
}

fn closed(run: &RunState, what: &'static str, error: &Error) -> Decision {
    run.ctx.count("loom.permission.errors", 1, &[("part", what), ("error", error.kind().as_str())]);
    Decision::deny(format!("the {what} could not decide, so the call is denied"))
}

fn about<'r>(run: &'r RunState, spec: &ToolSpec, bound: &Bound) -> ObjectWriter<'r> {
    let redactor = run.ctx.redactor();
    redactor
        .object()
        .name("tool", &spec.name)
        .str("call_id", &bound.call.id)
        .name("effect", spec.effect.as_str())
}

async fn record_decision(run: &RunState, spec: &ToolSpec, bound: &Bound, decision: &Decision) -> Result<()> {
    run.ctx.count("loom.permission.decisions", 1, &[("decision", decision.as_str())]);
    let mut payload = about(run, spec, bound).name("decision", decision.as_str());
    if let Decision::Ask { why } | Decision::Deny { why } = decision {
        payload = payload.str("why", why);
    }
    run.audit(Actor::System, Action::PermissionDecision, payload.finish()).await
}

/// Asks somebody, waits with the run's clock stopped, and checks everything again before the call may go.
async fn ask(run: &RunState, spec: &ToolSpec, bound: Bound, why: Arc<str>, version: u64) -> Result<Permit> {
    let agent = &run.agent;
    let (Some(store), Some(handler)) = (&agent.approvals.store, &agent.approvals.handler) else {
        let told = format!("{why}; approval is required and there is nobody to ask");
        return deny(run, spec, &bound, Action::ApprovalDenied, None, told.into()).await;
    };
    if let Some(earlier) = asked_before(run, &**store, &bound).await? {
        return await_decision(run, spec, bound, &**store, &earlier, None).await;
    }
    let request = request(run, spec, &bound, why, version);
    store.create(run.ctx.scope(), request.clone()).await?;
    let payload = about(run, spec, &bound).show("approval_id", request.id).show("digest", bound.digest);
    let payload = payload.json("args", &bound.arguments).finish();
    run.audit(Actor::System, Action::ApprovalRequested, payload).await?;
    run.emit(|| EventKind::ApprovalRequested {
        approval_id: request.id,
        id: bound.call.id.clone(),
        name: spec.name.clone(),
        why: request.why.clone(),
        expires_at: request.expires_at,
    })
    .await;

    await_decision(run, spec, bound, &**store, &request, Some(&**handler)).await
}

/// The request that an earlier life of this run made for this very call, if it is still open: a crash while somebody thinks
/// must not lose what they decide.
async fn asked_before(
    run: &RunState,
    store: &dyn ApprovalStore,
    bound: &Bound,
) -> Result<Option<ApprovalRequest>> {
    if !run.is_journaled() {
        return Ok(None);
    }
    let own = |approval: &Owned<Approval>| run.ctx.scope().owns(approval.owner());
    let found = store.list(run.ctx.scope(), run.ctx.now()).await?.into_iter().filter(own).collect();
    let open = open_all(run.ctx.services(), run.ctx.scope(), "approvals", found).await?;
    let this = |approval: &Approval| {
        approval.request.run == run.ctx.run_id() && approval.request.digest == bound.digest
    };
    Ok(open.into_iter().find(this).map(|approval| approval.request))
}

/// Tells somebody (unless they were told before), waits for their decision, and checks everything again.
async fn await_decision(
    run: &RunState,
    spec: &ToolSpec,
    bound: Bound,
    store: &dyn ApprovalStore,
    request: &ApprovalRequest,
    handler: Option<&dyn ApprovalHandler>,
) -> Result<Permit> {
    let waited = tokio::time::Instant::now();
    keep_wall_clock(run, request).await;
    let notified = match handler {
        None => Ok(Notified::Pending),
        Some(handler) => {
            let _waiting = run.clock.waiting();
            let limit = run.agent.approvals.handler_timeout;
            guarded("the approval handler", limit, handler.notify(&run.ctx, request)).await
        }
    };
    let answered = match notified {
        Ok(Notified::Decided { decision, by }) => {
            store.decide_by_handler(run.ctx.scope(), request.id, decision, by, run.ctx.now()).await?;
            true
        }
        Ok(Notified::Pending) => wait(run, store, request).await?,
        Err(error) => {
            run.ctx.count("loom.approval.errors", 1, &[("error", error.kind().as_str())]);
            false
        }
    };
    let telemetry = &run.ctx.services().telemetry;
    telemetry.duration(run.ctx.scope(), "loom.approval.waited", waited.elapsed(), &[]);
    if answered {
        dispatch(run, spec, bound, store, request).await
    } else {
        expire(run, spec, &bound, request).await
    }
}

fn request(run: &RunState, spec: &ToolSpec, bound: &Bound, why: Arc<str>, version: u64) -> ApprovalRequest {
    let approvals = &run.agent.approvals;
    let now = run.ctx.now();
    let name = spec.name.clone();
    let mut request =
        ApprovalRequest::new(run.ctx.run_id(), bound.call.id.clone(), name, spec.effect, bound.digest);
    request.arguments = bound.arguments.clone();
    request.policy_version = version;
    request.why = why;
    request.approvers = approvals.approvers.clone();
    request.self_approval = approvals.self_approval;
    request.requested_at = now;
    request.expires_at = now.saturating_add(approvals.expires_after);
    request
}

/// A run that waits must not lose what it set aside: its wall-clock hold lives as long as the request. That of a tree of
/// runs is its root's.
async fn keep_wall_clock(run: &RunState, request: &ApprovalRequest) {
    let run = run.root();
    let Some(hold) = run.wall_clock_hold() else { return };
    let lasting =
        request.expires_at.saturating_since(request.requested_at) + run.clock.remaining() + LOOK_AGAIN;
    if run.agent.ledger.extend(run.ctx.scope(), hold, lasting).await.is_err() {
        run.ctx.count("loom.finish.errors", 1, &[("store", "ledger")]);
    }
}

/// Waits until the request is decided. False when its time ran out, or when nobody could decide it at all.
async fn wait(run: &RunState, store: &dyn ApprovalStore, request: &ApprovalRequest) -> Result<bool> {
    if request.approvers.is_empty() && !request.self_approval {
        return Ok(false);
    }
    loop {
        let now = run.ctx.now();
        let left = request.expires_at.saturating_since(now);
        let found = store.get(run.ctx.scope(), request.id, now).await?;
        let owned =
            crate::context::open_owned(run.ctx.services(), run.ctx.scope(), "approvals", found).await?;
        match owned.state {
            ApprovalState::Decided { .. } => return Ok(true),
            ApprovalState::Pending if !left.is_zero() => {}
            _ => return Ok(false),
        }
        let root = run.root();
        if let Some(runtime) = &root.agent.runtime {
            // The journal's lease must outlive the wait, or another process would take the run over.
            let settings = &root.agent.settings;
            runtime
                .renew(root.ctx.scope(), &root.lease, root.clock.remaining() + settings.session_lease)
                .await?;
        }
        // The store is asked again whichever ends first, so neither a lost notice nor a wrong one matters. Not at once,
        // though: a store whose clock disagrees with ours may answer without waiting.
        let _waiting = run.clock.waiting();
        let changed = store.changed(run.ctx.scope(), request.id);
        let round = async {
            (tokio::time::timeout(left.min(LOOK_AGAIN), changed).await, tokio::time::sleep(LOOK_LATER).await)
        };
        round.await.0.unwrap_or(Ok(()))?;
    }
}

async fn expire(run: &RunState, spec: &ToolSpec, bound: &Bound, request: &ApprovalRequest) -> Result<Permit> {
    let approval_id = request.id;
    run.emit(|| EventKind::ApprovalResolved { approval_id, decision: "expired" }).await;
    let told = format!("{}; nobody approved it in time", request.why);
    deny(run, spec, bound, Action::ApprovalExpired, None, told.into()).await
}

/// Uses the decision up and checks everything again: the binding, the policy's version, and the policy itself.
async fn dispatch(
    run: &RunState,
    spec: &ToolSpec,
    bound: Bound,
    store: &dyn ApprovalStore,
    request: &ApprovalRequest,
) -> Result<Permit> {
    let version = run.agent.permissions.version();
    let taken = store.consume(run.ctx.scope(), request.id, bound.digest, version, run.ctx.now()).await;
    let (decision, by) = match taken {
        Ok(taken) => taken,
        Err(error) if error.kind() == ErrorKind::Conflict => {
            let told = format!("{}; the approval is no longer valid: {}", request.why, error.message());
            return deny(run, spec, &bound, Action::ApprovalDenied, None, told.into()).await;
        }
        Err(error) => return Err(error),
    };
    let (approval_id, name) = (request.id, decision_name(&decision));
    run.emit(|| EventKind::ApprovalResolved { approval_id, decision: name }).await;
    let (bound, action) = match decision {
        ApprovalDecision::Deny { reason } => {
            let told = if reason.is_empty() {
                "declined by an approver".to_owned()
            } else {
                format!("declined: {reason}")
            };
            return deny(run, spec, &bound, Action::ApprovalDenied, by.as_ref(), told.into()).await;
        }
        ApprovalDecision::Approve => (bound, Action::ApprovalGranted),
        ApprovalDecision::Edit { args } => (bound.edited(run, spec, args)?, Action::ApprovalEdited),
    };
    record_approval(run, spec, &bound, action, by.as_ref(), None).await?;
    // Policy may have changed while somebody thought about it, and edited arguments were never seen by it. A deny
    // stands; an ask is what was just answered.
    match decide(run, spec, &bound.call).await {
        Decision::Deny { why } => {
            record_decision(run, spec, &bound, &Decision::Deny { why: why.clone() }).await?;
            Ok(Permit::Refused(why))
        }
        Decision::Allow | Decision::Ask { .. } => Ok(Permit::Granted(bound)),
    }
}

fn decision_name(decision: &ApprovalDecision) -> &'static str {
    match decision {
        ApprovalDecision::Approve => "approve",
        ApprovalDecision::Deny { .. } => "deny",
        ApprovalDecision::Edit { .. } => "edit",
    }
}

async fn deny(
    run: &RunState,
    spec: &ToolSpec,
    bound: &Bound,
    action: Action,
    by: Option<&UserId>,
    told: Arc<str>,
) -> Result<Permit> {
    record_approval(run, spec, bound, action, by, Some(&told)).await?;
    Ok(Permit::Refused(told))
}

async fn record_approval(
    run: &RunState,
    spec: &ToolSpec,
    bound: &Bound,
    action: Action,
    by: Option<&UserId>,
    why: Option<&str>,
) -> Result<()> {
    run.ctx.count("loom.approvals", 1, &[("outcome", action.as_str())]);
    let mut payload = about(run, spec, bound).show("digest", bound.digest);
    if let Some(by) = by {
        payload = payload.name("approver", by.as_str());
    }
    if let Some(why) = why {
        payload = payload.str("why", why);
    }
    if action == Action::ApprovalEdited {
        payload = payload.json("args", &bound.arguments);
    }
    let actor = if by.is_some() { Actor::Approver } else { Actor::System };
    run.audit(actor, action, payload.finish()).await
}
