//! The first half of the tool door: hooks and policy merge as deny > ask > allow, an ask goes to somebody who may decide,
//! and what comes out is permission for one very call, or a denial the model is told about.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::audit::{Action, Actor};
use crate::clock::Timestamp;
use crate::door::{asking, guarded, remembered};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::UserId;
use crate::ids::{ApprovalId, GrantId};
use crate::message::{Digest, ToolCall};
use crate::permissions::{Decision, Grounds, Judged};
use crate::redact::ObjectWriter;
use crate::run::RunState;
use crate::tool::{ToolSpec, call_digest};

/// How often a policy is asked that is exchanged while it decides.
const JUDGED_AGAIN: u32 = 3;

/// The journaled steps of a call: to be permitted, to be executed, and to be asked about.
pub(crate) const STEPS: u32 = 3;
/// The step of being executed, after that of being permitted.
pub(crate) const EXECUTING: u32 = 1;
/// The step of being asked about, after that of being permitted.
pub(super) const ASKING: u32 = 2;

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
    pub(super) policy_version: u64,
    pub(super) expires_at: Timestamp,
    /// The grant that answered, which may be taken back until the call is made.
    #[serde(default)]
    pub(super) grant: Option<GrantId>,
}

impl Bound {
    pub(crate) fn new(run: &RunState, step: u32, call: ToolCall, spec: &ToolSpec) -> Result<Self> {
        let arguments = Arc::new(call.parse_arguments()?);
        let digest = call_digest(run.ctx.run_id(), step, &call, spec, &arguments);
        Ok(Self { call, arguments, digest, step, approved: None })
    }

    pub(super) fn edited(&self, run: &RunState, spec: &ToolSpec, arguments: Value) -> Result<Self> {
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

/// What hooks and policy say about a call, together.
pub(super) struct Verdict {
    pub(super) decision: Decision,
    /// What the policy's allow rests on.
    grounds: Option<Grounds>,
    /// The version of the policy that decided; `None` where it could not.
    pub(super) version: Option<u64>,
}

/// Decides about a call. Every way this can go wrong is a refusal.
pub(crate) async fn permit(run: &Arc<RunState>, spec: &ToolSpec, bound: Bound) -> Result<Permit> {
    let verdict = decide(run, spec, &bound.call).await;
    record_decision(run, spec, &bound, &verdict, None).await?;
    match verdict.decision {
        Decision::Allow => Ok(Permit::Granted(bound)),
        Decision::Deny { why } => Ok(Permit::Refused(why)),
        // Rare and large: boxed, so that calls nobody asks about do not carry it.
        Decision::Ask { why } => {
            Box::pin(asking::ask(run, spec, bound, why, verdict.version.unwrap_or_default())).await
        }
    }
}

/// The strictest of all hooks and the policy. An error, a panic or taking too long is a deny.
pub(super) async fn decide(run: &RunState, spec: &ToolSpec, call: &ToolCall) -> Verdict {
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

pub(super) fn about<'r>(run: &'r RunState, spec: &ToolSpec, bound: &Bound) -> ObjectWriter<'r> {
    let redactor = run.ctx.redactor();
    redactor
        .object()
        .name("tool", &spec.name)
        .str("call_id", &bound.call.id)
        .name("effect", spec.effect.as_str())
}

/// Writes down what hooks and policy say, and which approval answers them where one was used: what is done is on record with
/// whoever approved it.
pub(super) async fn record_decision(
    run: &RunState,
    spec: &ToolSpec,
    bound: &Bound,
    verdict: &Verdict,
    used: Option<(ApprovalId, Option<&UserId>)>,
) -> Result<()> {
    let decision = &verdict.decision;
    run.ctx.count("loom.permission.decisions", 1, &[("decision", decision.as_str())]);
    let mut payload = about(run, spec, bound).name("decision", decision.as_str());
    if let Some((id, by)) = used {
        payload = payload.show("approval_id", id);
        payload = by.into_iter().fold(payload, |payload, by| payload.name("approver", by.as_str()));
    }
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

/// Decides again about a call that an earlier life of the run was permitted and did not come to make. Says why it must not be
/// made any more.
pub(crate) async fn still_permitted(
    run: &RunState,
    spec: &ToolSpec,
    bound: &Bound,
) -> Result<Option<Arc<str>>> {
    let verdict = decide(run, spec, &bound.call).await;
    record_decision(run, spec, bound, &verdict, None).await?;
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
pub(super) fn refusal(run: &RunState, verdict: Verdict, approved: Option<Approved>) -> Option<Arc<str>> {
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
