//! Where a request for approval stands, who may decide it, what a decision makes, and when it may be used: the same in
//! every approval store.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::approval::{
    Approval, ApprovalDecision, ApprovalGrant, ApprovalRequest, ApprovalState, ArgumentPattern, GrantTerms,
    MAX_FIXED_ARGUMENTS,
};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::UserId;
use crate::message::Digest;
use crate::scope::Owner;
use crate::tenant_data::ExportItem;

/// How many live grants a store keeps of one user, unless it is told otherwise.
pub const MAX_GRANTS_PER_USER: usize = 100;
/// How many requests that are not over a store keeps of one user, unless it is told otherwise.
pub const MAX_REQUESTS_PER_USER: usize = 1_000;
/// How many requests that ran out of time a store hands out at a time.
pub const LAPSED_AT_ONCE: usize = 100;

/// What a receipt says where the erasure of a session leaves requests and grants.
pub const NOT_OF_A_SESSION: &str =
    "approvals: they belong to a run or a user and not to a session, and go with everything";

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a store has a method for each")]
pub enum Decider<'d> {
    /// A user.
    Person(&'d Owner),
    /// The requester's own handler, and whom it names.
    Handler(Option<&'d UserId>),
}

impl Decider<'_> {
    /// Whom a decision is recorded as made by.
    #[must_use]
    pub fn user_id(&self) -> Option<&UserId> {
        match self {
            Self::Person(owner) => owner.user_id(),
            Self::Handler(named) => *named,
        }
    }
}

/// A decision as a store writes it down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "what ApprovalState::Decided has, and nothing else")]
pub struct Recorded {
    /// What.
    pub decision: ApprovalDecision,
    /// By whom; `None` when the handler itself decided, and for the anonymous bucket.
    pub by: Option<UserId>,
}

/// Where a request stands at `now`, given what is recorded: time ends what nobody ended.
#[must_use]
pub fn state_at(recorded: &ApprovalState, expires_at: Timestamp, now: Timestamp) -> ApprovalState {
    match recorded {
        ApprovalState::Consumed { .. } | ApprovalState::Void { .. } => recorded.clone(),
        _ if now >= expires_at => ApprovalState::Expired,
        state => state.clone(),
    }
}

/// Whether a request at `state` can neither be decided nor used any more, and may make room for another.
#[must_use]
pub fn is_over(state: &ApprovalState) -> bool {
    matches!(state, ApprovalState::Consumed { .. } | ApprovalState::Void { .. } | ApprovalState::Expired)
}

/// Whether `decision` may be recorded for the request of `requester` that stands as `found` says; the grant that is to
/// be stored with it, if it makes one.
///
/// # Errors
///
/// - [`ErrorKind::Denied`] for a person who may not decide, for a handler that names the requester where they may not, or
///   somebody who is not among the approvers where there are some, and for one that remembers in the name of nobody who may.
/// - [`ErrorKind::InvalidInput`] for edited arguments that are no object, and for terms that are wider than they say.
/// - [`ErrorKind::Conflict`] for a request that is not pending.
pub fn decide(
    found: &Approval,
    requester: &Owner,
    decider: Decider<'_>,
    decision: &ApprovalDecision,
    now: Timestamp,
) -> Result<Option<ApprovalGrant>> {
    let request = &found.request;
    if let Decider::Person(person) = decider
        && !request.may_decide(requester, person)
    {
        return Err(Error::new(ErrorKind::Denied, "who asked for an approval may not give it"));
    }
    // A handler may know nobody, or somebody that only it knows of. It may not name one who is known not to be asked.
    if let Decider::Handler(Some(named)) = decider {
        let itself = requester.user_id() == Some(named);
        let stranger = !request.approvers.is_empty() && !request.approvers.contains(named);
        if if itself { !request.self_approval } else { stranger } {
            let why = "the handler names somebody who may not decide this request";
            return Err(Error::new(ErrorKind::Denied, why));
        }
    }
    let grant = match decision {
        ApprovalDecision::Edit { args } if !args.is_object() => {
            return Err(Error::invalid_input("edited arguments are a JSON object"));
        }
        ApprovalDecision::ApproveAndRemember { grant } => {
            Some(granted(request, requester, decider, grant, now)?)
        }
        _ => None,
    };
    match state_at(&found.state, request.expires_at, now) {
        ApprovalState::Pending => Ok(grant),
        ApprovalState::Expired => Err(conflict("the request has expired")),
        _ => Err(conflict("the request was decided already")),
    }
}

fn granted(
    request: &ApprovalRequest,
    requester: &Owner,
    decider: Decider<'_>,
    terms: &GrantTerms,
    now: Timestamp,
) -> Result<ApprovalGrant> {
    if requester.user_id().is_none() {
        let why = "the anonymous bucket is nobody in particular: approve the call, and remember nothing";
        return Err(Error::invalid_input(why));
    }
    let eligible = |user: &&UserId| {
        let named = Owner::new(requester.namespace().clone(), crate::Identity::User((*user).clone()));
        request.may_decide(requester, &named)
    };
    let by = decider.user_id().filter(eligible).ok_or_else(|| {
        Error::new(ErrorKind::Denied, "an approval is remembered in the name of somebody who may give it")
    })?;
    check(&terms.arguments, request)?;
    if terms.expires_at <= now {
        return Err(Error::invalid_input(
            "the grant would be over already; set `expires_at` to a later time",
        ));
    }
    Ok(ApprovalGrant {
        id: request.id.into(),
        tool: request.tool.clone(),
        effect: request.effect,
        tool_digest: request.tool_digest,
        arguments: terms.arguments.clone(),
        policy_version: request.policy_version,
        by: by.clone(),
        approvers: request.approvers.clone(),
        requested_at: request.requested_at,
        granted_at: now,
        expires_at: terms.expires_at,
    })
}

fn check(pattern: &ArgumentPattern, request: &ApprovalRequest) -> Result<()> {
    if let ArgumentPattern::Fixed { values } = pattern {
        if values.is_empty() {
            return Err(Error::invalid_input(
                "the pattern fixes no argument; name at least one, or say `any` where all arguments are meant",
            ));
        }
        if values.len() > MAX_FIXED_ARGUMENTS {
            let why = format!("the pattern fixes {} arguments, more than 64", values.len());
            return Err(Error::invalid_input(why));
        }
    }
    if pattern.matches(&request.arguments) {
        return Ok(());
    }
    Err(Error::invalid_input("the pattern does not cover the arguments of the request it is given on"))
}

/// What a decision is used for, where it may be: it is recorded as consumed together with this.
///
/// # Errors
///
/// [`ErrorKind::Conflict`] for a request that is pending, used or over, and for another call or policy than it was for.
pub fn consume(
    found: &Approval,
    binding: Digest,
    policy_version: u64,
    now: Timestamp,
) -> Result<(ApprovalDecision, Option<UserId>)> {
    let request = &found.request;
    let taken = match state_at(&found.state, request.expires_at, now) {
        ApprovalState::Decided { decision, by } => (decision, by),
        ApprovalState::Pending => return Err(conflict("nobody has decided the request")),
        ApprovalState::Expired => return Err(conflict("the request has expired")),
        ApprovalState::Void { .. } => return Err(conflict("the approval was taken back")),
        _ => return Err(conflict("the approval was used already")),
    };
    check_binding(request, binding, policy_version)?;
    Ok(taken)
}

fn check_binding(request: &ApprovalRequest, binding: Digest, policy_version: u64) -> Result<()> {
    if request.digest != binding {
        return Err(conflict("the approval was given for another call"));
    }
    if request.policy_version != policy_version {
        return Err(conflict("the policy changed since the approval was asked for"));
    }
    Ok(())
}

/// What a request was used for that this very call used, and did not come to carry out: for a later life of its run, which
/// holds the run's journal and finds there that the call was not begun. A denial is found whenever it is looked for.
///
/// # Errors
///
/// [`ErrorKind::Conflict`] for a request that was not used, and, where it would let the call run, as [`consume`].
pub fn used_before(
    found: &Approval,
    binding: Digest,
    policy_version: u64,
    now: Timestamp,
) -> Result<(ApprovalDecision, Option<UserId>)> {
    let (decision, by) = match &found.state {
        ApprovalState::Consumed { decision, by } => (decision, by),
        ApprovalState::Void { decision: denied @ ApprovalDecision::Deny { .. }, by } => (denied, by),
        ApprovalState::Void { .. } => return Err(conflict("the approval was taken back")),
        _ => return Err(conflict("the approval was not used")),
    };
    if !matches!(decision, ApprovalDecision::Deny { .. }) {
        check_binding(&found.request, binding, policy_version)?;
        if now >= found.request.expires_at {
            return Err(conflict("the request has expired"));
        }
    }
    Ok((decision.clone(), by.clone()))
}

/// What [`ApprovalStore::void`](crate::ApprovalStore::void) makes of what is recorded; `None` to leave it.
///
/// # Errors
///
/// [`ErrorKind::Conflict`] for a request that nobody has decided.
pub fn void(recorded: &ApprovalState) -> Result<Option<ApprovalState>> {
    match recorded {
        ApprovalState::Decided { decision, by } => {
            Ok(Some(ApprovalState::Void { decision: decision.clone(), by: by.clone() }))
        }
        ApprovalState::Pending => Err(conflict("nobody has decided the request")),
        _ => Ok(None),
    }
}

/// What is recorded of a request that nobody decided in time, once somebody was told of it.
#[must_use]
pub fn lapsed() -> Recorded {
    let reason = "nobody decided it in time".to_owned();
    Recorded { decision: ApprovalDecision::Deny { reason }, by: None }
}

/// A request as an export has it.
#[must_use]
pub fn export_approval(request: &ApprovalRequest, state: &ApprovalState) -> ExportItem {
    let (state, decision, by) = match state {
        ApprovalState::Pending => ("pending", None, None),
        ApprovalState::Decided { decision, by } => ("decided", Some(decision), by.as_ref()),
        ApprovalState::Consumed { decision, by } => ("consumed", Some(decision), by.as_ref()),
        ApprovalState::Void { decision, by } => ("void", Some(decision), by.as_ref()),
        ApprovalState::Expired => ("expired", None, None),
    };
    let data = json!({
        "id": request.id,
        "run_id": request.run,
        "call_id": request.call_id,
        "tool": request.tool,
        "effect": request.effect,
        "arguments": request.arguments,
        "why": request.why,
        "requested_at": request.requested_at,
        "expires_at": request.expires_at,
        "state": state,
        "decision": decision,
        "by": by,
    });
    ExportItem::new("approval", data)
}

/// A grant as an export has it.
#[must_use]
pub fn export_grant(grant: &ApprovalGrant) -> ExportItem {
    let data = json!({
        "id": grant.id,
        "tool": grant.tool,
        "effect": grant.effect,
        "arguments": grant.arguments,
        "by": grant.by,
        "requested_at": grant.requested_at,
        "granted_at": grant.granted_at,
        "expires_at": grant.expires_at,
    });
    ExportItem::new("grant", data)
}

/// The answer to somebody who is neither requester nor approver, and for an id that does not exist.
#[must_use]
pub fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such approval, or it is not yours")
}

/// The refusal of a request for which there is no room: `who` is `this user has` or `there are`.
#[must_use]
pub fn too_many_requests(who: &str, most: usize) -> Error {
    let why = format!("{who} {most} requests for approval that are not over, the most allowed");
    Error::new(ErrorKind::Capacity, why)
}

/// The refusal of a grant for which there is no room.
#[must_use]
pub fn too_many_grants(who: &str, most: usize) -> Error {
    let why =
        format!("{who} {most} remembered approvals, the most allowed; revoke one, or approve this once");
    Error::new(ErrorKind::Capacity, why)
}

fn conflict(why: &'static str) -> Error {
    Error::new(ErrorKind::Conflict, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RunId;
    use crate::tool::Effect;

    /// A crash between voiding an approval and closing its run left one that the next life of the run could use.
    #[test]
    fn what_was_taken_back_is_no_use_to_a_later_life() {
        let digest = Digest::of(&[b"call"]);
        let mut request = ApprovalRequest::new(RunId::from_u128(1), "1", "pay", Effect::Write, digest);
        request.expires_at = Timestamp::from_micros(10);
        let now = Timestamp::from_micros(5);
        let found = |state| used_before(&Approval::new(request.clone(), state), digest, 0, now);
        let (yes, no) = (ApprovalDecision::Approve, ApprovalDecision::Deny { reason: "no".to_owned() });
        let used = ApprovalState::Consumed { decision: yes.clone(), by: None };
        assert_eq!(found(used).unwrap(), (yes.clone(), None));
        for state in [
            ApprovalState::Void { decision: yes.clone(), by: None },
            ApprovalState::Decided { decision: yes, by: None },
            ApprovalState::Pending,
        ] {
            assert_eq!(found(state.clone()).unwrap_err().kind(), ErrorKind::Conflict, "{state:?}");
        }
        let denied = ApprovalState::Void { decision: no.clone(), by: None };
        assert_eq!(found(denied).unwrap(), (no, None), "a denial stays one");
    }
}
