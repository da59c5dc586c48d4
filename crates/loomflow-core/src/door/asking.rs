//! A call that hooks and policy do not let go on their own: somebody is asked, once over all lives of the run, and what they
//! decide is used once, under everything that is checked again when it is.

use std::sync::Arc;
use std::time::Duration;

use crate::approval::record::{Record, is_refusal};
use crate::approval::{
    Approval, ApprovalDecision, ApprovalHandler, ApprovalRequest, ApprovalState, ApprovalStore, Notified,
};
use crate::audit::{Action, Actor};
use crate::context::open_owned;
use crate::door::permit::{ASKING, Approved, Bound, Permit, about, decide, record_decision, refusal};
use crate::door::waiting::{self, Waiting};
use crate::door::{guarded, remembered};
use crate::error::{Error, ErrorKind, Result};
use crate::event::EventKind;
use crate::identity::UserId;
use crate::ids::{ApprovalId, GrantId};
use crate::redact::Redacted;
use crate::rules::approvals::{self as rules, Decider};
use crate::run::{Journaled, RunState, Step};
use crate::tool::ToolSpec;

/// How often a waiting run looks by itself whether its request was decided, should the store's notice get lost.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long it waits at the least before it looks again.
const LOOK_LATER: Duration = Duration::from_millis(10);

/// Asks somebody, waits with the run's clock stopped, and checks everything again before the call may go.
pub(super) async fn ask(
    run: &Arc<RunState>,
    spec: &ToolSpec,
    bound: Bound,
    why: Arc<str>,
    version: u64,
) -> Result<Permit> {
    let agent = &run.agent;
    let (Some(store), Some(handler)) = (&agent.approvals.store, &agent.approvals.handler) else {
        let told = format!("{why}; approval is required and there is nobody to ask");
        return deny(run, spec, &bound, told.into()).await;
    };
    let slot = run.slot();
    let id = request_id(run, &bound).await?;
    let waiting = Waiting::arm(run, store.clone(), id, slot);
    let earlier = if run.is_journaled() { waiting::look(run, &**store, id).await? } else { None };
    if let Some(earlier) = earlier {
        return go_on_asking(run, spec, bound, waiting, earlier, (store, &**handler)).await;
    }
    if let Some(grant) = remembered::covering(run, spec, &bound, &**store, version).await? {
        waiting.settled();
        record_use(run, spec, &bound, grant.id, &grant.by).await?;
        let approved =
            Approved { policy_version: version, expires_at: grant.expires_at, grant: Some(grant.id) };
        return again(run, spec, bound, approved, None).await;
    }
    waiting::lapse(run, store).await?;
    let request = ApprovalRequest { id, ..request(run, spec, &bound, why, version) };
    match waiting::create(run, store, request.clone()).await {
        Err(full) if full.kind() == ErrorKind::Capacity => {
            waiting.settled();
            run.ctx.count("loom.approval.errors", 1, &[("error", full.kind().as_str())]);
            let told = format!("{}; nobody is asked: {}", request.why, full.message());
            return deny(run, spec, &bound, told.into()).await;
        }
        stored => stored?,
    }
    run.ctx.count("loom.approval.escalations", 1, &[("effect", spec.effect.as_str())]);
    announce(run, spec, &bound, &request).await?;
    await_decision(run, spec, bound, waiting, &request, (store, Some(&**handler))).await
}

/// Goes on with what an earlier life of the run asked about this very call. A request that is stored need not have reached
/// anybody: who hears of it twice sees one id.
async fn go_on_asking(
    run: &Arc<RunState>,
    spec: &ToolSpec,
    bound: Bound,
    waiting: Waiting,
    earlier: Approval,
    (store, handler): (&Arc<dyn ApprovalStore>, &dyn ApprovalHandler),
) -> Result<Permit> {
    let request = &earlier.request;
    if request.digest != bound.digest {
        return Ok(Permit::Refused("approval was asked for other arguments than those recorded".into()));
    }
    match earlier.state {
        // It was used for this call, which was not begun (or taken back, and is good for nothing): the journal, whose only writer this life is, does not know it as
        // permitted. So nothing is done twice.
        ApprovalState::Consumed { .. } | ApprovalState::Void { .. } => {
            waiting.settled();
            let used = policy_version(run)
                .await
                .and_then(|version| rules::used_before(&earlier, bound.digest, version, run.ctx.now()));
            carry_out(run, spec, bound, request, used).await
        }
        ApprovalState::Pending => {
            announce(run, spec, &bound, request).await?;
            await_decision(run, spec, bound, waiting, request, (store, Some(handler))).await
        }
        _ => await_decision(run, spec, bound, waiting, request, (store, None)).await,
    }
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

/// How asking went.
enum Answer {
    /// Somebody decided.
    Decided,
    /// Nobody did, while they could.
    Late,
    /// Telling somebody went wrong, or nobody may decide it: what the model is told.
    Nobody(&'static str),
}

/// Tells somebody (unless they were told before), waits for their decision, and checks everything again.
async fn await_decision(
    run: &Arc<RunState>,
    spec: &ToolSpec,
    bound: Bound,
    mut waiting: Waiting,
    request: &ApprovalRequest,
    (store, handler): (&Arc<dyn ApprovalStore>, Option<&dyn ApprovalHandler>),
) -> Result<Permit> {
    waiting.begin().await?;
    keep_wall_clock(run, request).await;
    let answer = answer(run, &**store, request, handler).await?;
    let is_decided = matches!(answer, Answer::Decided);
    waiting.end(if is_decided { waiting::ANSWERED } else { waiting::UNANSWERED }).await?;
    match answer {
        Answer::Decided => dispatch(run, spec, bound, waiting, store, request).await,
        Answer::Late => expire(run, waiting, store, request).await,
        Answer::Nobody(told) => {
            let told: Arc<str> = format!("{}; {told}", request.why).into();
            match decline(run, spec, &bound, store, request, told.clone()).await {
                // A person was faster than that: theirs is the decision.
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    dispatch(run, spec, bound, waiting, store, request).await
                }
                Err(error) => Err(error),
                Ok(()) => {
                    waiting.settled();
                    resolved(run, request, "deny").await;
                    Ok(Permit::Refused(told))
                }
            }
        }
    }
}

/// Ends a request that reached nobody, and says so in the log.
async fn decline(
    run: &Arc<RunState>,
    spec: &ToolSpec,
    bound: &Bound,
    store: &Arc<dyn ApprovalStore>,
    request: &ApprovalRequest,
    told: Arc<str>,
) -> Result<()> {
    let payload = denial(run, spec, bound, &told);
    let (store, request) = (store.clone(), request.clone());
    let end = |run: Arc<RunState>| async move {
        // On record first: what a crash leaves behind is a denial in the log, and never one that is in no log.
        record_denial(&run, payload).await?;
        let declined = waiting::decline(&run, &*store, &request).await;
        if declined.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict) {
            let why = "the denial is void: somebody decided at the same moment";
            Record::of_run(&run).over(&request, None, why).await?;
        }
        declined
    };
    waiting::whole(run, end).await
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
            match decide_at_once(run, store, request, decision, by).await? {
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
    Ok(Answer::Nobody("nobody could be asked for approval"))
}

/// Records what the handler decided, in the log first: what is not on record does not count. The inner error is the decision's.
async fn decide_at_once(
    run: &RunState,
    store: &dyn ApprovalStore,
    request: &ApprovalRequest,
    decision: ApprovalDecision,
    by: Option<UserId>,
) -> Result<Result<()>> {
    if run.agent.approvals.nobody_else && (by.is_none() || by.as_ref() != run.ctx.user_id()) {
        let why = "agent and sub-agent name approvers of whom none may decide for both";
        return Ok(Err(Error::new(ErrorKind::Denied, why)));
    }
    let (scope, now) = (run.ctx.scope(), run.ctx.now());
    let found = waiting::look(run, store, request.id).await?.ok_or_else(rules::not_found)?;
    if let Err(refused) = rules::decide(&found, scope.owner(), Decider::Handler(by.as_ref()), &decision, now)
    {
        return Ok(Err(refused));
    }
    let actor = if by.is_some() { Actor::Approver } else { Actor::System };
    Record::of_run(run).decision(request, &decision, by.as_ref(), actor).await?;
    let decided = store.decide_by_handler(scope, request.id, decision, by.clone(), now).await;
    if let Err(refused) = &decided
        && is_refusal(refused)
    {
        let why = format!("the decision is void: {}", refused.message());
        Record::of_run(run).over(request, by.as_ref(), &why).await?;
    }
    Ok(decided)
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
        let found = match store.get(run.ctx.scope(), request.id, now).await {
            // Another call of the user made room by taking out what had run out of time.
            Err(error) if error.kind() == ErrorKind::NotFound && left.is_zero() => return Ok(Answer::Late),
            found => found?,
        };
        match open_owned(run.ctx.services(), run.ctx.scope(), "approvals", found).await?.state {
            ApprovalState::Decided { .. } => return Ok(Answer::Decided),
            // Only now: a handler's decision counts although nobody else could give one.
            ApprovalState::Pending if !can_be_decided(run, request) => {
                return Ok(Answer::Nobody("there is nobody who may approve it"));
            }
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

async fn resolved(run: &RunState, request: &ApprovalRequest, decision: &'static str) {
    let approval_id = request.id;
    run.emit(|| EventKind::ApprovalResolved { approval_id, decision }).await;
}

/// Ends a request whose time ran out. The log hears of it from whoever is first to look.
async fn expire(
    run: &Arc<RunState>,
    waiting: Waiting,
    store: &Arc<dyn ApprovalStore>,
    request: &ApprovalRequest,
) -> Result<Permit> {
    waiting::lapse(run, store).await?;
    waiting.settled();
    resolved(run, request, "expired").await;
    Ok(Permit::Refused(format!("{}; nobody approved it in time", request.why).into()))
}

async fn policy_version(run: &RunState) -> Result<u64> {
    let limit = run.agent.settings.hook_timeout;
    let version = guarded("the policy", limit, async { Ok(run.agent.permissions.version()) }).await;
    version.map_err(|_| Error::new(ErrorKind::Conflict, "the policy could not say its version"))
}

/// Uses the decision up and checks everything again: the binding, the policy's version, and the policy itself.
async fn dispatch(
    run: &Arc<RunState>,
    spec: &ToolSpec,
    bound: Bound,
    waiting: Waiting,
    store: &Arc<dyn ApprovalStore>,
    request: &ApprovalRequest,
) -> Result<Permit> {
    let used = match policy_version(run).await {
        Ok(version) => store.consume(run.ctx.scope(), request.id, bound.digest, version, run.ctx.now()).await,
        Err(error) => Err(error),
    };
    let used = match used {
        Err(error) if error.kind() == ErrorKind::Conflict => {
            if run.ctx.now() >= request.expires_at {
                return expire(run, waiting, store, request).await;
            }
            waiting::take_off(run, &**store, request).await?;
            Err(error)
        }
        // On an error nobody knows whether it was used. The run ends, and takes it back if it was not.
        other => Ok(other?),
    };
    waiting.settled();
    carry_out(run, spec, bound, request, used).await
}

/// Does what was decided, if it may still be used.
async fn carry_out(
    run: &RunState,
    spec: &ToolSpec,
    bound: Bound,
    request: &ApprovalRequest,
    used: Result<(ApprovalDecision, Option<UserId>)>,
) -> Result<Permit> {
    let (decision, by) = match used {
        Ok(used) => used,
        Err(error) => {
            let told = format!("{}; the approval is no longer valid: {}", request.why, error.message());
            return deny(run, spec, &bound, told.into()).await;
        }
    };
    let bound = match decision {
        ApprovalDecision::Deny { reason } => {
            resolved(run, request, "deny").await;
            let declined = if reason.is_empty() { "declined by an approver" } else { "declined: " };
            return Ok(Permit::Refused(format!("{declined}{reason}").into()));
        }
        ApprovalDecision::Approve | ApprovalDecision::ApproveAndRemember { .. } => {
            resolved(run, request, "approve").await;
            bound
        }
        ApprovalDecision::Edit { args } => {
            resolved(run, request, "edit").await;
            bound.edited(run, spec, args)?
        }
    };
    let (policy_version, expires_at) = (request.policy_version, request.expires_at);
    let approved = Approved { policy_version, expires_at, grant: None };
    again(run, spec, bound, approved, Some((request.id, by.as_ref()))).await
}

/// Asks policy once more about an approved call. It may have changed while somebody thought, and edited arguments were never
/// seen by it.
async fn again(
    run: &RunState,
    spec: &ToolSpec,
    bound: Bound,
    approved: Approved,
    used: Option<(ApprovalId, Option<&UserId>)>,
) -> Result<Permit> {
    let verdict = decide(run, spec, &bound.call).await;
    record_decision(run, spec, &bound, &verdict, used).await?;
    Ok(match refusal(run, verdict, Some(approved)) {
        Some(why) => Permit::Refused(why),
        None => Permit::Granted(Bound { approved: Some(approved), ..bound }),
    })
}

/// A denial that nobody decided: there is nobody to ask, or no asking any more.
async fn deny(run: &RunState, spec: &ToolSpec, bound: &Bound, told: Arc<str>) -> Result<Permit> {
    let payload = denial(run, spec, bound, &told);
    record_denial(run, payload).await?;
    Ok(Permit::Refused(told))
}

fn denial(run: &RunState, spec: &ToolSpec, bound: &Bound, told: &str) -> Redacted<String> {
    about(run, spec, bound).show("digest", bound.digest).str("why", told).finish()
}

async fn record_denial(run: &RunState, payload: Redacted<String>) -> Result<()> {
    run.ctx.count("loom.approvals", 1, &[("outcome", Action::ApprovalDenied.as_str())]);
    run.audit(Actor::System, Action::ApprovalDenied, payload).await
}

/// Each use of what is remembered is on record, with who gave it.
async fn record_use(run: &RunState, spec: &ToolSpec, bound: &Bound, id: GrantId, by: &UserId) -> Result<()> {
    run.ctx.count("loom.approvals", 1, &[("outcome", Action::ApprovalGranted.as_str())]);
    let payload = about(run, spec, bound).show("digest", bound.digest);
    let payload = payload.name("approver", by.as_str()).show("grant_id", id).finish();
    run.audit(Actor::Approver, Action::ApprovalGranted, payload).await
}
