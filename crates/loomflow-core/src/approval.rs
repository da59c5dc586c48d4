//! Asking a person: an approval is single-use, bound to one call, and answered by somebody who may.

mod grant;
mod page;
pub(crate) mod record;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Timestamp;
use crate::context::RunContext;
use crate::error::Result;
use crate::identity::UserId;
use crate::ids::{ApprovalId, GrantId, RunId};
use crate::message::Digest;
use crate::scope::{Owned, Scope};
use crate::tenant_data::TenantData;
use crate::tool::Effect;

pub use grant::{ApprovalGrant, ArgumentPattern, GrantTerms, MAX_FIXED_ARGUMENTS};
pub use page::{ApprovalPage, MAX_APPROVAL_PAGE};

/// A request for approval of one tool call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ApprovalRequest {
    /// Its unguessable id.
    pub id: ApprovalId,
    /// The run that waits.
    pub run: RunId,
    /// The call's id within the run.
    pub call_id: Arc<str>,
    /// The tool.
    pub tool: Arc<str>,
    /// What a call of the tool does.
    pub effect: Effect,
    /// The arguments, as they would be executed.
    pub arguments: Arc<Value>,
    /// Binds the approval to run, call, tool, schema and canonical arguments.
    pub digest: Digest,
    /// Identifies the tool as it was when it was asked for: [`ToolSpec::digest`](crate::ToolSpec::digest).
    pub tool_digest: Digest,
    /// The version of the policy that asked.
    pub policy_version: u64,
    /// Why the policy asks.
    pub why: Arc<str>,
    /// Who may decide, besides the requester where `self_approval` is on.
    pub approvers: Arc<[UserId]>,
    /// Whether the requester may decide.
    pub self_approval: bool,
    /// When it was asked.
    pub requested_at: Timestamp,
    /// From when on it can no longer be decided or used.
    pub expires_at: Timestamp,
}

impl ApprovalRequest {
    /// A request for one call. `binding` is the digest of the call, from [`call_digest`](crate::call_digest).
    #[must_use]
    pub fn new(
        run: RunId,
        call_id: impl Into<Arc<str>>,
        tool: impl Into<Arc<str>>,
        effect: Effect,
        binding: Digest,
    ) -> Self {
        Self {
            id: ApprovalId::fresh(),
            run,
            call_id: call_id.into(),
            tool: tool.into(),
            effect,
            arguments: Arc::new(Value::Object(serde_json::Map::new())),
            digest: binding,
            tool_digest: Digest::of(&[]),
            policy_version: 0,
            why: "".into(),
            approvers: Arc::from([]),
            self_approval: false,
            requested_at: Timestamp::default(),
            expires_at: Timestamp::MAX,
        }
    }

    /// Whether `identity` may decide a request made by the user of `requester`.
    #[must_use]
    pub fn may_decide(&self, requester: &crate::Owner, decider: &crate::Owner) -> bool {
        if requester.namespace() != decider.namespace() {
            return false;
        }
        if requester == decider {
            return self.self_approval;
        }
        decider.user_id().is_some_and(|user| self.approvers.contains(user))
    }
}

/// What a person decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ApprovalDecision {
    /// Run it as it is.
    Approve,
    /// Do not run it.
    Deny {
        /// Why, for the model; may be empty.
        #[serde(default)]
        reason: String,
    },
    /// Run it with these arguments instead. They go through policy again: a deny stands.
    Edit {
        /// The arguments to execute: a JSON object.
        args: Value,
    },
    /// Run it as it is, and do not ask again for calls that the terms cover; see [`ApprovalGrant`].
    ///
    /// Every store refuses it with [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) where the terms do not
    /// cover the request itself, are over already, or where the requester is anonymous: that bucket is nobody in
    /// particular. A handler that decides so names somebody who may.
    ApproveAndRemember {
        /// How far and how long.
        grant: GrantTerms,
    },
}

/// Where a request stands.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ApprovalState {
    /// Nobody has decided.
    Pending,
    /// Decided, not yet used.
    Decided {
        /// What.
        decision: ApprovalDecision,
        /// By whom; `None` when the handler itself decided.
        by: Option<UserId>,
    },
    /// Used up: its call was dispatched, or told to the model as denied.
    Consumed {
        /// What was decided.
        decision: ApprovalDecision,
        /// By whom; `None` when the handler itself decided.
        by: Option<UserId>,
    },
    /// Taken back, or run out, before it was used: whatever was decided, nothing may be done on it any more.
    Void {
        /// What was decided.
        decision: ApprovalDecision,
        /// By whom; `None` when the handler itself decided, or nobody did.
        by: Option<UserId>,
    },
    /// Its time ran out before it was decided or used.
    Expired,
}

/// A request and where it stands.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Approval {
    /// The request.
    pub request: ApprovalRequest,
    /// Where it stands.
    pub state: ApprovalState,
}

impl Approval {
    /// A request that stands at `state`.
    #[must_use]
    pub fn new(request: ApprovalRequest, state: ApprovalState) -> Self {
        Self { request, state }
    }
}

/// Keeps requests for approval.
///
/// A scope here is either the requester's (create, consume, wait) or the decider's (list, get, decide). Somebody who is
/// neither gets the same [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) as for an id that does not exist.
///
/// An erasure takes a user's requests, and each grant with the request it was given on.
#[async_trait]
pub trait ApprovalStore: TenantData {
    /// Stores a request of this scope's user.
    ///
    /// - Fails with [`ErrorKind::Erased`](crate::ErrorKind::Erased) when the scope is older than the last erasure.
    /// - A full store refuses with [`ErrorKind::Capacity`](crate::ErrorKind::Capacity); nothing pending is given up.
    async fn create(&self, scope: &Scope, request: ApprovalRequest) -> Result<()>;

    /// One request: the scope's own, or one that the scope's user may decide. The owner is the requester.
    async fn get(&self, scope: &Scope, id: ApprovalId, now: Timestamp) -> Result<Owned<Approval>>;

    /// The pending requests that the scope's user made or may decide, oldest first: one page of them. A page that has fewer
    /// than it may have is the last.
    async fn list(&self, scope: &Scope, now: Timestamp, page: ApprovalPage) -> Result<Vec<Owned<Approval>>>;

    /// The scope's own requests whose time ran out before they were decided, or used. Each is handed out once, over all
    /// callers, and is [`ApprovalState::Void`] from then on: whoever gets it says so in the log. At most
    /// [`LAPSED_AT_ONCE`](crate::rules::approvals::LAPSED_AT_ONCE) at a time, oldest first.
    async fn lapsed(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<Approval>>>;

    /// Records a decision by the scope's user.
    ///
    /// It is not written into the audit log here: [`UserAgent::decide`](crate::UserAgent::decide) does that before it calls
    /// this, and so must whoever decides past an agent.
    ///
    /// - The requester without `self_approval` is [`ErrorKind::Denied`](crate::ErrorKind::Denied).
    /// - A request that is decided, consumed, void or expired is [`ErrorKind::Conflict`](crate::ErrorKind::Conflict).
    /// - Of two decisions at once, exactly one wins.
    /// - [`ApprovalDecision::ApproveAndRemember`] makes the requester's grant together with the decision, or neither. A
    ///   user who has as many live grants as the store keeps is [`ErrorKind::Capacity`](crate::ErrorKind::Capacity), and
    ///   the request stays pending. [`rules::approvals`](crate::rules::approvals) says all of this as a function.
    async fn decide(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        now: Timestamp,
    ) -> Result<()>;

    /// Records a decision that the scope's own [`ApprovalHandler`] returned at once. `by` is whom it names.
    async fn decide_by_handler(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        by: Option<UserId>,
        now: Timestamp,
    ) -> Result<()>;

    /// Takes the decision of one of the scope's own requests, once: a second call is
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict), as is one whose `binding` or `policy_version` differs from
    /// the request's, or which expired.
    async fn consume(
        &self,
        scope: &Scope,
        id: ApprovalId,
        binding: Digest,
        policy_version: u64,
        now: Timestamp,
    ) -> Result<(ApprovalDecision, Option<UserId>)>;

    /// Makes one of the scope's own requests void that is decided and not used, whatever the time is: nothing may be done on it
    /// any more. The answer says whether it was so; one that is used or void already is left as it is. A pending one is
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict).
    async fn void(&self, scope: &Scope, id: ApprovalId, now: Timestamp) -> Result<bool>;

    /// The scope's own live grants for a tool. What they cover, the caller looks at.
    async fn remembered(
        &self,
        scope: &Scope,
        tool: &str,
        now: Timestamp,
    ) -> Result<Vec<Owned<ApprovalGrant>>>;

    /// The live grants that the scope's user has or may revoke, oldest first. The owner is whom each is for.
    async fn grants(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<ApprovalGrant>>>;

    /// Takes a grant back: one of the scope's own, or one whose request the scope's user might have decided. The answer is
    /// what was taken back; of several at once, one gets it. Anybody else's, and one that is not there, is
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound).
    async fn revoke(&self, scope: &Scope, id: GrantId) -> Result<Owned<ApprovalGrant>>;

    /// Returns when one of the scope's own requests is no longer pending, or may be (a caller looks again). Safe to drop.
    async fn changed(&self, scope: &Scope, id: ApprovalId) -> Result<()>;
}

/// What a handler did with a request.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Notified {
    /// It is on its way to somebody: the run waits for [`ApprovalStore::decide`].
    Pending,
    /// It is decided already.
    Decided {
        /// What.
        decision: ApprovalDecision,
        /// By whom, if the handler knows.
        by: Option<UserId>,
    },
}

/// Takes a request to the people who may decide it.
#[async_trait]
pub trait ApprovalHandler: fmt::Debug + Send + Sync + 'static {
    /// Tells somebody, and may answer at once. An error, a panic or taking too long is a deny.
    async fn notify(&self, ctx: &RunContext, ask: &ApprovalRequest) -> Result<Notified>;
}
