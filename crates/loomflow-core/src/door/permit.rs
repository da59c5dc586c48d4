//! The first half of the tool door: hooks and policy merge as deny > ask > allow, an ask goes to somebody who may decide,
//! and what comes out is permission for one very call, or a denial the model is told about.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::approval::{
    Approval, ApprovalDecision, ApprovalHandler, ApprovalRequest, ApprovalState, ApprovalStore, Notified,
};
use crate::audit::{Action, Actor};
use crate::clock::Timestamp;
use crate::context::open_owned;
use crate::door::guarded;
use crate::door::remembered;
use crate::door::waiting::{self, Waiting};
use crate::error::{Error, ErrorKind, Result};
use crate::event::EventKind;
use crate::identity::UserId;
use crate::ids::{ApprovalId, GrantId};
use crate::message::{Digest, ToolCall};
use crate::permissions::{Decision, Grounds, Judged};
use crate::redact::ObjectWriter;
use crate::run::{Journaled, RunState, Step};
use crate::tool::{ToolSpec, call_digest};

/// How often a waiting run looks by itself whether its request was decided, should the store's notice get lost.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long it waits at the least before it looks again.
const LOOK_LATER: Duration = Duration::from_millis(10);

/// How often a policy is asked that is exchanged while it decides.
const JUDGED_AGAIN: u32 = 3;

/// The journaled steps of a call: to be permitted, to be executed, and to be asked about.
pub(crate) const STEPS: u32 = 3;
/// The step of being executed, after that of being permitted.
pub(crate) const EXECUTING: u32 = 1;
const ASKING: u32 = 2;

/// A call with its arguments parsed and bound.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) call: ToolCall,
    pub(crate) arguments: Arc<Value>,
    pub(crate) digest: Digest,
    pub(crate) step: u32,
    /// What its permission rests on, where somebody had to give it.
    pub(crate) approved: Option<Approved>,
}

/// How long an approval that was used is good for, should the run end between using it and doing what it was given for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Approved {
    policy_version: u64,
    expires_at: Timestamp,
    /// The grant that answered, which may be taken back until the call is made.
    #[serde(default)]
    grant: Option<GrantId>,
}

impl Bound {
    pub(crate) fn new(run: &RunState, step: u32, call: ToolCall, spec: &ToolSpec) -> Result<Self> {
        let arguments = Arc::new(call.parse_arguments()?);
        let digest = call_digest(run.ctx.run_id(), step, &call, spec, &arguments);
        Ok(Self { call, arguments, digest, step, approved: None })
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
    /// An earlier life of the run used its approval up and went away before it could say so.
    InDoubt,
}

/// What hooks and policy say about a call, together.
struct Verdict {
    decision: Decision,
    /// What the policy's allow rests on.
    grounds: Option<Grounds>,
    /// The version of the policy that decided; `None` where it could not.
    version: Option<u64>,
}

/// Decides about a call. Every way this can go wrong is a refusal.
pub(crate) async fn permit(run: &Arc<RunState>, spec: &ToolSpec, bound: Bound) -> Result<Permit> {
    let verdict = decide(run, spec, &bound.call).await;
    record_decision(run, spec, &bound, &verdict).await?;
    match verdict.decision {
        Decision::Allow => Ok(Permit::Granted(bound)),
        Decision::Deny { why } => Ok(Permit::Refused(why)),
        // Rare and large: boxed, so that calls nobody asks about do not carry it.
        Decision::Ask { why } => {
            Box::pin(ask(run, spec, bound, why, verdict.version.unwrap_or_default())).await
        }
    }
}

/// The strictest of all hooks and the policy. An error, a panic or taking too long is a deny.
async fn decide(run: &RunState, spec: &ToolSpec, call: &ToolCall) -> Verdict {
    let agent = &run.agent;
    let limit = agent.settings.hook_timeout;
    let mut strictest = Decision::Allow;
    for hook in &agent.pre_hooks {
        let decided = guarded("a hook", limit, hook.before_tool(&run.ctx, call, spec.effect)).await;
        strictest = strictest.and(decided.unwrap_or_else(|error| closed(run, "hook", &error)));
    }
    match guarded("the policy", limit, judge(run, spec, call)).await {
        Ok((version, judged)) => {
            let decision = strictest.and(judged.decision);
            Verdict { decision, grounds: judged.grounds, version: Some(version) }
        }
        Err(error) => {
            let decision = strictest.and(closed(run, "policy", &error));
            Verdict { decision, grounds: None, version: None }
        }
    }
}

/// What the policy says, and the version under which it said so: one that is exchanged meanwhile is asked again.
async fn judge(run: &RunState, spec: &ToolSpec, call: &ToolCall) -> Result<(u64, Judged)> {
    let policy = &run.agent.permissions;
    for _ in 0..JUDGED_AGAIN {
        let version = policy.version();
        let judged = policy.judge(&run.ctx, call, spec.effect).await?;
        if policy.version() == version {
            return Ok((version, judged));
        }
    }
    Err(Error::new(ErrorKind::Conflict, "the policy changes faster than it decides"))
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

async fn record_decision(run: &RunState, spec: &ToolSpec, bound: &Bound, verdict: &Verdict) -> Result<()> {
    let decision = &verdict.decision;
    run.ctx.count("loom.permission.decisions", 1, &[("decision", decision.as_str())]);
    let mut payload = about(run, spec, bound).name("decision", decision.as_str());
    if let Some(version) = verdict.version {
        // As text: a reader of JSON whose numbers are floats would round it.
        payload = payload.show("policy_version", format_args!("{version:016x}"));
    }
    match (decision, &verdict.grounds) {
        (Decision::Ask { why } | Decision::Deny { why }, _) => payload = payload.str("why", why),
        (Decision::Allow, Some(grounds)) => {
            payload = payload.name("mode", grounds.mode).str("why", &grounds.why);
        }
        (Decision::Allow, None) => {}
    }
    run.audit(Actor::System, Action::PermissionDecision, payload.finish()).await
}

/// Asks somebody, waits with the run's clock stopped, and checks everything again before the call may go.
async fn ask(
    run: &Arc<RunState>,
    spec: &ToolSpec,
    bound: Bound,
    why: Arc<str>,
    version: u64,
) -> Result<Permit> {
    let agent = &run.agent;
    let (Some(store), Some(handler)) = (&agent.approvals.store, &agent.approvals.handler) else {
        let told = format!("{why}; approval is required and there is nobody to ask");
        return deny(run, spec, &bound, Action::ApprovalDenied, None, told.into()).await;
    };
    let id = request_id(run, &bound).await?;
    if let Some(earlier) = asked_before(run, &**store, id).await? {
        if earlier.request.digest != bound.digest {
            return Ok(Permit::Refused("approval was asked for other arguments than those recorded".into()));
        }
        if earlier.state == ApprovalState::Consumed {
            return Ok(Permit::InDoubt);
        }
        let waiting = Waiting::begin(run, store.clone(), earlier.request.clone(), run.slot());
        // A request that is stored need not have reached anybody: who hears of it twice sees one id.
        let untold = earlier.state == ApprovalState::Pending;
        if untold {
            announce(run, spec, &bound, &earlier.request).await?;
        }
        let handler = untold.then_some(&**handler);
        return await_decision(run, spec, bound, waiting, &earlier.request, handler).await;
    }
    if let Some(grant) = remembered::covering(run, spec, &bound, &**store, version).await? {
        let (id, by) = (Some(grant.id), Some(&grant.by));
        record_approval(run, spec, &bound, Action::ApprovalGranted, by, id, None).await?;
        let approved =
            Approved { policy_version: version, expires_at: grant.expires_at, grant: Some(grant.id) };
        return again(run, spec, bound, approved).await;
    }
    let request = ApprovalRequest { id, ..request(run, spec, &bound, why, version) };
    let slot = run.slot();
    store.create(run.ctx.scope(), request.clone()).await?;
    let waiting = Waiting::begin(run, store.clone(), request.clone(), slot);
    run.ctx.count("loom.approval.escalations", 1, &[("effect", spec.effect.as_str())]);
    announce(run, spec, &bound, &request).await?;
    await_decision(run, spec, bound, waiting, &request, Some(&**handler)).await
}

/// Says in the log and on the stream that somebody is asked.
async fn announce(run: &RunState, spec: &ToolSpec, bound: &Bound, request: &ApprovalRequest) -> Result<()> {
    let payload = about(run, spec, bound).show("approval_id", request.id).show("digest", bound.digest);
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
    Ok(())
}

/// The id under which this call is asked about, the same in every life of the run: a crash while somebody thinks must lose
/// neither the request nor what they decided meanwhile.
async fn request_id(run: &RunState, bound: &Bound) -> Result<ApprovalId> {
    let step = Step::idempotent(bound.step + ASKING);
    let drawn = || async { Ok(ApprovalId::fresh()) };
    match run.journaled(step, || run.fingerprint("ask", &bound.call.name), drawn).await? {
        Journaled::Made(id) | Journaled::Replayed(id) => Ok(id),
        Journaled::InDoubt => {
            Err(Error::new(ErrorKind::Internal, "drawing an id is idempotent and never in doubt"))
        }
    }
}

/// The request that an earlier life of this run made for this very call.
async fn asked_before(run: &RunState, store: &dyn ApprovalStore, id: ApprovalId) -> Result<Option<Approval>> {
    if !run.is_journaled() {
        return Ok(None);
    }
    match store.get(run.ctx.scope(), id, run.ctx.now()).await {
        Ok(found) => open_owned(run.ctx.services(), run.ctx.scope(), "approvals", found).await.map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How asking went.
enum Answer {
    /// Somebody decided.
    Decided,
    /// Nobody did, while they could.
    Late,
    /// Telling somebody went wrong.
    Failed,
    /// Nobody may decide it.
    Nobody,
}

/// Tells somebody (unless they were told before), waits for their decision, and checks everything again.
async fn await_decision(
    run: &Arc<RunState>,
    spec: &ToolSpec,
    bound: Bound,
    waiting: Waiting,
    request: &ApprovalRequest,
    handler: Option<&dyn ApprovalHandler>,
) -> Result<Permit> {
    waiting.say().await?;
    keep_wall_clock(run, request).await;
    let store = waiting.store();
    let answer = answer(run, &*store, request, handler).await?;
    let is_decided = matches!(answer, Answer::Decided);
    waiting.end(if is_decided { waiting::ANSWERED } else { waiting::UNANSWERED }).await?;
    if is_decided {
        return dispatch(run, spec, bound, &*store, request).await;
    }
    give_up(run, spec, &bound, &*store, request, answer).await
}

async fn answer(
    run: &RunState,
    store: &dyn ApprovalStore,
    request: &ApprovalRequest,
    handler: Option<&dyn ApprovalHandler>,
) -> Result<Answer> {
    let notified = match handler {
        None => Ok(Notified::Pending),
        Some(handler) => {
            let _waiting = run.clock.waiting();
            let limit = run.agent.approvals.handler_timeout;
            keep_lease(run, limit).await?;
            guarded("the approval handler", limit, handler.notify(&run.ctx, request)).await
        }
    };
    let failed = match notified {
        Ok(Notified::Pending) => return wait(run, store, request).await,
        Ok(Notified::Decided { decision, by }) => {
            let scope = run.ctx.scope();
            match store.decide_by_handler(scope, request.id, decision, by, run.ctx.now()).await {
                Ok(()) => return Ok(Answer::Decided),
                // Somebody was faster, or it is over: using the decision says which.
                Err(error) if error.kind() == ErrorKind::Conflict => return Ok(Answer::Decided),
                // What a handler must not decide is the handler's error.
                Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::InvalidInput) => error,
                Err(error) => return Err(error),
            }
        }
        Err(error) => error,
    };
    run.ctx.count("loom.approval.errors", 1, &[("error", failed.kind().as_str())]);
    Ok(Answer::Failed)
}

fn request(run: &RunState, spec: &ToolSpec, bound: &Bound, why: Arc<str>, version: u64) -> ApprovalRequest {
    let approvals = &run.agent.approvals;
    let now = run.ctx.now();
    let name = spec.name.clone();
    let mut request =
        ApprovalRequest::new(run.ctx.run_id(), bound.call.id.clone(), name, spec.effect, bound.digest);
    request.arguments = bound.arguments.clone();
    request.tool_digest = spec.digest();
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

/// Whether there is anybody who may decide the request.
fn can_be_decided(run: &RunState, request: &ApprovalRequest) -> bool {
    request.self_approval || request.approvers.iter().any(|user| Some(user) != run.ctx.user_id())
}

/// Waits until the request is decided. Nobody is waited for who does not exist.
async fn wait(run: &RunState, store: &dyn ApprovalStore, request: &ApprovalRequest) -> Result<Answer> {
    loop {
        let now = run.ctx.now();
        let left = request.expires_at.saturating_since(now);
        let found = store.get(run.ctx.scope(), request.id, now).await?;
        match open_owned(run.ctx.services(), run.ctx.scope(), "approvals", found).await?.state {
            ApprovalState::Decided { .. } => return Ok(Answer::Decided),
            // Only now: a handler's decision counts although nobody else could give one.
            ApprovalState::Pending if !can_be_decided(run, request) => return Ok(Answer::Nobody),
            ApprovalState::Pending if !left.is_zero() => {}
            _ => return Ok(Answer::Late),
        }
        keep_lease(run, LOOK_AGAIN).await?;
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

/// The journal's lease must outlive what is waited for, or another process would take the run over.
async fn keep_lease(run: &RunState, wait: Duration) -> Result<()> {
    let root = run.root();
    let Some(runtime) = &root.agent.runtime else { return Ok(()) };
    let lasting = root.clock.remaining() + root.agent.settings.session_lease + wait;
    runtime.renew(root.ctx.scope(), &root.lease, lasting).await
}

/// Ends a request without an answer: it is closed in the store, too, so that nobody decides about what is over.
async fn give_up(
    run: &RunState,
    spec: &ToolSpec,
    bound: &Bound,
    store: &dyn ApprovalStore,
    request: &ApprovalRequest,
    answer: Answer,
) -> Result<Permit> {
    let approval_id = request.id;
    let (action, resolved, told) = match answer {
        Answer::Decided | Answer::Late => (Action::ApprovalExpired, "expired", "nobody approved it in time"),
        Answer::Failed => (Action::ApprovalDenied, "deny", "nobody could be asked for approval"),
        Answer::Nobody => (Action::ApprovalDenied, "deny", "there is nobody who may approve it"),
    };
    if action == Action::ApprovalDenied {
        waiting::withdraw(run, store, request).await;
    }
    run.emit(|| EventKind::ApprovalResolved { approval_id, decision: resolved }).await;
    let told = format!("{}; {told}", request.why);
    deny(run, spec, bound, action, None, told.into()).await
}

/// Uses the decision up and checks everything again: the binding, the policy's version, and the policy itself.
async fn dispatch(
    run: &RunState,
    spec: &ToolSpec,
    bound: Bound,
    store: &dyn ApprovalStore,
    request: &ApprovalRequest,
) -> Result<Permit> {
    let limit = run.agent.settings.hook_timeout;
    let version = guarded("the policy", limit, async { Ok(run.agent.permissions.version()) }).await;
    let taken = match version {
        Ok(version) => store.consume(run.ctx.scope(), request.id, bound.digest, version, run.ctx.now()).await,
        Err(_) => Err(Error::new(ErrorKind::Conflict, "the policy could not say its version")),
    };
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
    let mut grant = None;
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
        ApprovalDecision::ApproveAndRemember { .. } => {
            grant = Some(GrantId::from(request.id));
            (bound, Action::ApprovalGranted)
        }
        ApprovalDecision::Edit { args } => (bound.edited(run, spec, args)?, Action::ApprovalEdited),
    };
    record_approval(run, spec, &bound, action, by.as_ref(), grant, None).await?;
    let (policy_version, expires_at) = (request.policy_version, request.expires_at);
    let approved = Approved { policy_version, expires_at, grant: None };
    again(run, spec, bound, approved).await
}

/// Asks policy once more about an approved call. It may have changed while somebody thought, and edited arguments were never
/// seen by it.
async fn again(run: &RunState, spec: &ToolSpec, bound: Bound, approved: Approved) -> Result<Permit> {
    let verdict = decide(run, spec, &bound.call).await;
    record_decision(run, spec, &bound, &verdict).await?;
    Ok(match refusal(run, verdict, Some(approved)) {
        Some(why) => Permit::Refused(why),
        None => Permit::Granted(Bound { approved: Some(approved), ..bound }),
    })
}

/// Decides again about a call that an earlier life of the run was permitted and did not come to make. Says why it must not be
/// made any more.
pub(crate) async fn still_permitted(
    run: &RunState,
    spec: &ToolSpec,
    bound: &Bound,
) -> Result<Option<Arc<str>>> {
    let verdict = decide(run, spec, &bound.call).await;
    record_decision(run, spec, bound, &verdict).await?;
    let late = bound.approved.is_some_and(|approved| run.ctx.now() >= approved.expires_at);
    let mut approved = bound.approved.filter(|_| !late);
    if approved.is_some_and(|approved| approved.grant.is_some()) {
        // It may have been revoked since, or whoever gave it may have lost the right to.
        let covering = match (&run.agent.approvals.store, verdict.version) {
            (Some(store), Some(version)) => remembered::covering(run, spec, bound, &**store, version).await?,
            _ => None,
        };
        approved = approved.filter(|_| covering.is_some());
    }
    Ok(refusal(run, verdict, approved))
}

/// Why a call must not be made, given what hooks and policy say now and an approval that was used for it: a deny stands, and an
/// ask is answered by an approval that was asked for under this very policy.
fn refusal(run: &RunState, verdict: Verdict, approved: Option<Approved>) -> Option<Arc<str>> {
    match (verdict.decision, approved) {
        (Decision::Deny { why }, _) => Some(why),
        (Decision::Allow, _) => None,
        (Decision::Ask { .. }, Some(approved)) if verdict.version == Some(approved.policy_version) => None,
        (Decision::Ask { why }, _) => {
            run.ctx.count("loom.approval.outdated", 1, &[]);
            let told =
                "what was permitted before is no longer valid; call the tool again if it is still needed";
            Some(format!("{why}; {told}").into())
        }
    }
}

fn decision_name(decision: &ApprovalDecision) -> &'static str {
    match decision {
        ApprovalDecision::Approve | ApprovalDecision::ApproveAndRemember { .. } => "approve",
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
    record_approval(run, spec, bound, action, by, None, Some(&told)).await?;
    Ok(Permit::Refused(told))
}

async fn record_approval(
    run: &RunState,
    spec: &ToolSpec,
    bound: &Bound,
    action: Action,
    by: Option<&UserId>,
    grant: Option<GrantId>,
    why: Option<&str>,
) -> Result<()> {
    run.ctx.count("loom.approvals", 1, &[("outcome", action.as_str())]);
    let mut payload = about(run, spec, bound).show("digest", bound.digest);
    if let Some(by) = by {
        payload = payload.name("approver", by.as_str());
    }
    if let Some(grant) = grant {
        payload = payload.show("grant_id", grant);
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
