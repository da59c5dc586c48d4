//! The suite of [`ApprovalStore`]: decided once, by somebody who may, and used once.

pub mod grants;
pub mod isolation;
pub mod single_use;
pub mod store;

use std::fmt;
use std::sync::Arc;

use loomflow_core::{
    Approval, ApprovalDecision, ApprovalGrant, ApprovalId, ApprovalPage, ApprovalRequest, ApprovalState,
    ApprovalStore, Digest, Effect, Result, Scope, Timestamp, UserId,
};

use crate::fixture::{Must as _, at, new_run, user_id};
use crate::plant::{Plant, PlantHook};
use crate::{IntoHarness, Unavailable};

/// The approval store under test.
#[derive(Clone)]
pub struct Harness {
    store: Arc<dyn ApprovalStore>,
    plant: PlantHook<Planted>,
}

/// What a plant hook is asked to write.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Planted {
    /// A pending request.
    Request(Box<ApprovalRequest>),
    /// A live grant. There is no request of its number.
    Grant(Box<ApprovalGrant>),
}

impl Harness {
    /// A harness for `store`, which may be shared with other cases and hold other requests.
    #[must_use]
    pub fn new(store: Arc<dyn ApprovalStore>) -> Self {
        Self { store, plant: PlantHook::none() }
    }

    /// Says how to write a foreign record where a tenant's own query looks. Without it the suite fails.
    #[must_use]
    pub fn with_plant<F, Fut>(mut self, plant: F) -> Self
    where
        F: Fn(Plant<Planted>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.plant = PlantHook::new(plant);
        self
    }

    pub(crate) fn store(&self) -> &dyn ApprovalStore {
        &*self.store
    }

    pub(crate) fn shared(&self) -> Arc<dyn ApprovalStore> {
        self.store.clone()
    }

    pub(crate) async fn create(&self, scope: &Scope, ask: &ApprovalRequest) {
        self.store.create(scope, ask.clone()).await.must("create");
    }

    /// One request, and that it says it is the requester's.
    pub(crate) async fn get(
        &self,
        reader: &Scope,
        requester: &Scope,
        id: ApprovalId,
        now: Timestamp,
    ) -> Approval {
        let found = self.store.get(reader, id, now).await.must("get");
        assert_eq!(found.owner(), requester.owner(), "the owner of a request is its requester");
        found.open(requester).must("opening a request as its requester")
    }

    pub(crate) async fn state(&self, scope: &Scope, id: ApprovalId, now: Timestamp) -> ApprovalState {
        self.get(scope, scope, id, now).await.state
    }

    pub(crate) async fn listed(&self, scope: &Scope, now: Timestamp) -> Vec<ApprovalId> {
        self.page(scope, now, ApprovalPage::default()).await.into_iter().map(|request| request.id).collect()
    }

    /// One page of what the scope's user is shown, and that it is theirs to see.
    pub(crate) async fn page(
        &self,
        scope: &Scope,
        now: Timestamp,
        page: ApprovalPage,
    ) -> Vec<ApprovalRequest> {
        let found = self.store.list(scope, now, page).await.must("list");
        for owned in found.clone() {
            let owner = owned.owner().clone();
            let allowed = scope.owns(&owner) || {
                let requester = loomflow_core::danger::assume_scope(
                    owner.namespace().clone(),
                    owner.identity().clone(),
                    scope.epoch(),
                );
                owned
                    .open(&requester)
                    .must("opening a listed request")
                    .request
                    .may_decide(&owner, scope.owner())
            };
            assert!(
                allowed,
                "{:?} was shown a request of {owner:?} that is none of their business",
                scope.owner()
            );
        }
        found.into_iter().map(|owned| request_of(&owned)).collect()
    }
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "approvals::Harness({}, {:?})", self.store.store_name(), self.plant)
    }
}

fn request_of(owned: &loomflow_core::Owned<Approval>) -> ApprovalRequest {
    let owner = owned.owner();
    let scope = loomflow_core::danger::assume_scope(
        owner.namespace().clone(),
        owner.identity().clone(),
        loomflow_core::Epoch::ZERO,
    );
    owned.clone().open(&scope).must("opening a request as its owner").request
}

#[doc(hidden)]
#[allow(clippy::future_not_send, reason = "a factory need not be Send")]
pub async fn provide<F, Fut, P>(factory: F) -> Result<Harness, Unavailable>
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = P>,
    P: IntoHarness<Harness>,
{
    factory().await.into_harness()
}

fn binding(text: &str) -> Digest {
    Digest::of(&[text.as_bytes()])
}

/// A request that `approvers` may decide, asked at 0 and open until 100.
fn ask(approvers: &[&str]) -> ApprovalRequest {
    let approvers: Vec<UserId> = approvers.iter().map(|name| user_id(name)).collect();
    let mut ask = ApprovalRequest::new(new_run(), "call_1", "refund", Effect::Destructive, binding("call"));
    ask.approvers = approvers.into();
    ask.policy_version = 3;
    ask.arguments = Arc::new(serde_json::json!({ "order": "o_1", "cents": 9_007_199_254_740_993_u64 }));
    ask.why = "refunds are \"destructive\"".into();
    ask.requested_at = at(0);
    ask.expires_at = at(100);
    ask
}

fn approve() -> ApprovalDecision {
    ApprovalDecision::Approve
}

crate::case::suite! { $ approvals, approvals_cases, __loomflow_approvals_case,
    /// One `#[test]` per case of the approvals suite, in a module `approvals_cases`. `factory` is an `async fn` that
    /// returns a fresh [`approvals::Harness`](crate::approvals::Harness), or `Result<Harness, Unavailable>`.
    behaviour: [
        store::a_request_comes_back_as_it_was_made,
        store::pending_requests_are_listed_oldest_first,
        store::a_list_comes_in_pages,
        store::requests_are_bounded,
        store::what_ran_out_of_time_is_handed_out_once,
        store::decisions_come_back_as_they_were_made,
        store::a_handlers_decision_names_whom_it_says,
        store::an_expired_request_can_be_neither_decided_nor_used,
        store::an_unknown_request_is_not_found,
        store::waiting_ends_with_the_decision,
        store::forgetting_takes_every_request,
        store::exports_are_complete,
        single_use::a_decision_is_used_once,
        single_use::what_is_void_is_good_for_nothing,
        single_use::a_request_is_decided_once,
        single_use::a_pending_request_cannot_be_used,
        single_use::a_decision_is_bound_to_its_call_and_policy,
        single_use::of_concurrent_decisions_one_wins,
        single_use::of_concurrent_uses_one_wins,
        grants::an_approval_that_is_remembered_makes_a_grant,
        grants::a_grant_is_never_wider_than_it_says,
        grants::only_the_decision_that_stands_makes_a_grant,
        grants::a_grant_is_revoked_by_its_user_and_by_approvers,
        grants::grants_are_bounded,
        grants::grants_go_with_their_users_data,
    ],
    isolation: [
        isolation::a_stranger_sees_and_decides_nothing,
        isolation::an_approvers_look_alike_is_a_stranger,
        isolation::an_approver_of_another_namespace_is_a_stranger,
        isolation::a_border_between_namespace_and_user_cannot_be_shifted,
        isolation::an_approver_cannot_use_a_decision,
        isolation::the_requester_decides_only_where_allowed,
        isolation::anonymous_approves_for_nobody,
        isolation::an_id_cannot_be_taken_over,
        isolation::exports_hold_their_own,
        isolation::forgetting_one_leaves_the_other,
        isolation::stale_requests_are_refused,
        isolation::two_erasures_never_share_an_epoch,
        isolation::a_foreign_request_is_withheld,
        grants::nobody_remembers_for_themselves,
        grants::nothing_is_remembered_for_anonymous,
        grants::a_grant_is_for_one_user,
        grants::a_foreign_grant_is_withheld,
    ],
}
