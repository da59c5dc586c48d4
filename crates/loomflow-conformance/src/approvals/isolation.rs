//! Whose request it is, and who may decide it. No capability switches these cases off.

use loomflow_core::{ApprovalPage, ApprovalState, Erase, ErrorKind, Identity, Scope};

use super::{Harness, Planted, approve, ask, binding};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, again, at, canary, export, export_text, must_fail, named, user_id};
use crate::naughty;

/// Fails unless `stranger` is answered, for everything, as if the request did not exist.
async fn must_know_nothing(h: &Harness, stranger: &Scope, id: loomflow_core::ApprovalId) {
    let (store, not_found) = (h.store(), ErrorKind::NotFound);
    must_fail(store.get(stranger, id, at(1)).await, not_found, "get by a stranger");
    must_fail(store.decide(stranger, id, approve(), at(1)).await, not_found, "decide by a stranger");
    let handler = store.decide_by_handler(stranger, id, approve(), None, at(1)).await;
    must_fail(handler, not_found, "decide_by_handler by a stranger");
    let used = store.consume(stranger, id, binding("call"), 3, at(1)).await;
    must_fail(used, not_found, "consume by a stranger");
    assert!(!h.listed(stranger, at(1)).await.contains(&id), "a stranger is shown the request");
}

/// Somebody who is neither requester nor approver gets, for everything, the answer for a request that does not exist.
pub async fn a_stranger_sees_and_decides_nothing(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let (alice, stranger) = (world.scope(&a), world.scope(&b));
        let request = ask(&["ops"]);
        h.create(&alice, &request).await;
        must_know_nothing(h, &stranger, request.id).await;
        assert_eq!(h.state(&alice, request.id, at(2)).await, ApprovalState::Pending, "nothing was decided");
    }
    Passed
}

/// A user whose id looks like an approver's may decide nothing.
pub async fn an_approvers_look_alike_is_a_stranger(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let (Identity::User(approver), stranger) = (&a, &b) else { continue };
        let world = World::new();
        let requester = world.user("the requester");
        let mut request = ask(&[]);
        request.approvers = [approver.clone()].into();
        h.create(&requester, &request).await;
        must_know_nothing(h, &world.scope(stranger), request.id).await;
        h.store().decide(&world.scope(&a), request.id, approve(), at(1)).await.must("decide by the approver");
    }
    Passed
}

/// A user of the approver's name in another namespace is a stranger, as is the requester's namesake.
pub async fn an_approver_of_another_namespace_is_a_stranger(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    let mut request = ask(&["ops"]);
    request.self_approval = true;
    h.create(&alice, &request).await;
    for elsewhere in [world.beside("-1"), World::new()] {
        must_know_nothing(h, &elsewhere.user("ops"), request.id).await;
        must_know_nothing(h, &elsewhere.user("alice"), request.id).await;
    }
    Passed
}

/// The border between namespace and user cannot be moved: `a` + `b:c` is nobody of `a:b` + `c`.
pub async fn a_border_between_namespace_and_user_cannot_be_shifted(h: &Harness) -> Outcome {
    for (separator, name) in
        [("", "bc"), (":", "b:c"), ("/", "b/c"), ("|", "b|c"), ("_", "b_c"), ("u", "buc")]
    {
        let world = World::new();
        let (long, short) = (world.beside(&format!("{separator}b")).user("c"), world.user(name));
        let request = ask(&["ops"]);
        h.create(&short, &request).await;
        must_know_nothing(h, &long, request.id).await;
    }
    Passed
}

/// An approver decides and cannot take the decision for themselves; only the requester's run uses it.
pub async fn an_approver_cannot_use_a_decision(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, ops) = (world.user("alice"), world.user("ops"));
    let request = ask(&["ops"]);
    h.create(&alice, &request).await;
    let handler = h.store().decide_by_handler(&ops, request.id, approve(), None, at(1)).await;
    must_fail(handler, ErrorKind::NotFound, "decide_by_handler by an approver");
    h.store().decide(&ops, request.id, approve(), at(1)).await.must("decide");
    let used = h.store().consume(&ops, request.id, binding("call"), 3, at(2)).await;
    must_fail(used, ErrorKind::NotFound, "consume by an approver");
    h.store().consume(&alice, request.id, binding("call"), 3, at(2)).await.must("consume by the requester");
    Passed
}

/// The requester may decide only where self-approval is on; elsewhere it is denied, and the request stays pending.
pub async fn the_requester_decides_only_where_allowed(h: &Harness) -> Outcome {
    let world = World::new();
    for who in [named("alice"), Identity::Anonymous] {
        let alice = world.scope(&who);
        // Naming oneself as an approver changes nothing: the requester is the requester.
        let mut request = ask(&["alice"]);
        h.create(&alice, &request).await;
        let own = h.store().decide(&alice, request.id, approve(), at(1)).await;
        must_fail(own, ErrorKind::Denied, "a decision by the requester without self-approval");
        assert_eq!(h.state(&alice, request.id, at(1)).await, ApprovalState::Pending);
        request = ask(&[]);
        request.self_approval = true;
        h.create(&alice, &request).await;
        h.store()
            .decide(&alice, request.id, approve(), at(1))
            .await
            .must("a decision by the requester with self-approval");
        let (_, by) = h.store().consume(&alice, request.id, binding("call"), 3, at(2)).await.must("consume");
        assert_eq!(by.as_ref(), who.user_id(), "the decision is by the requester");
    }
    Passed
}

/// The anonymous bucket is nobody's approver, whatever the approvers are called.
pub async fn anonymous_approves_for_nobody(h: &Harness) -> Outcome {
    let world = World::new();
    let request = ask(&["anonymous", "null", "default", "(anonymous)"]);
    h.create(&world.user("alice"), &request).await;
    must_know_nothing(h, &world.scope(&Identity::Anonymous), request.id).await;
    Passed
}

/// Another tenant's request cannot be replaced by creating one with its id.
pub async fn an_id_cannot_be_taken_over(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    let request = ask(&["ops"]);
    h.create(&alice, &request).await;
    let mut stolen = ask(&["mallory"]);
    stolen.id = request.id;
    stolen.self_approval = true;
    for thief in [world.user("mallory"), World::new().user("alice")] {
        // Refused, or kept beside the first; never in its place.
        let _answer = h.store().create(&thief, stolen.clone()).await;
        let _answer = h.store().decide(&thief, request.id, approve(), at(1)).await;
        let found = h.get(&alice, &alice, request.id, at(1)).await;
        assert_eq!((found.request, found.state), (request.clone(), ApprovalState::Pending));
    }
    h.store().decide(&world.user("ops"), request.id, approve(), at(1)).await.must("decide by the approver");
    Passed
}

/// An export has the tenant's own requests, not those the tenant may decide.
pub async fn exports_hold_their_own(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let (alice, other, word) = (world.scope(&a), world.scope(&b), canary());
        let mut request = ask(&[]);
        request.approvers = b.user_id().cloned().into_iter().collect();
        request.arguments = std::sync::Arc::new(serde_json::json!({ "said": word }));
        h.create(&alice, &request).await;
        let text = export_text(&export(h.store(), &other).await);
        assert!(!text.contains(&word), "{b:?} exports what {a:?} asked for");
        assert!(export_text(&export(h.store(), &alice).await).contains(&word), "{a:?} exports their own");
    }
    Passed
}

/// Erasing one tenant, an approver included, leaves the requests of the other.
pub async fn forgetting_one_leaves_the_other(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let kept = world.scope(&b);
        let mut request = ask(&["ops"]);
        request.approvers = a.user_id().cloned().into_iter().chain([user_id("ops")]).collect();
        h.create(&kept, &request).await;
        h.create(&world.scope(&a), &ask(&["ops"])).await;
        h.store().forget(&world.scope_at(&a, 1), &Erase::everything()).await.must("forget");
        let found = h.get(&kept, &kept, request.id, at(1)).await;
        assert_eq!(found.request, request, "the request of {b:?} after erasing {a:?}");
        assert_eq!(h.listed(&world.user("ops"), at(1)).await, [request.id]);
        h.create(&kept, &ask(&[])).await;
    }
    Passed
}

/// A run from before an erasure cannot ask: its requests fail with `erased`, also for a user never seen.
pub async fn stale_requests_are_refused(h: &Harness) -> Outcome {
    let world = World::new();
    for seen in [true, false] {
        let name = format!("seen {seen}");
        let stale = world.user(&name);
        if seen {
            h.create(&stale, &ask(&["ops"])).await;
        }
        let later = world.user_at(&name, 2);
        h.store().forget(&later, &Erase::everything()).await.must("forget");
        assert_eq!(h.store().epoch(&stale).await.must("epoch").get(), 2, "the stored epoch");
        for epoch in [0, 1] {
            let asked = h.store().create(&world.user_at(&name, epoch), ask(&["ops"])).await;
            must_fail(asked, ErrorKind::Erased, "create by a run from before the erasure");
        }
        assert!(h.listed(&world.user("ops"), at(1)).await.is_empty());
        h.create(&later, &ask(&[])).await;
    }
    Passed
}

/// A foreign request that is filed under the tenant's key is never the tenant's: it trips the owner check or is not found,
/// and can be neither listed as their own, nor used.
pub async fn a_foreign_request_is_withheld(h: &Harness) -> Outcome {
    for i in 0..3 {
        let world = World::new();
        let foreign = match i {
            0 => world.owner(&named("user_10")),
            1 => World::new().owner(&named("user_1")),
            _ => world.owner(&Identity::Anonymous),
        };
        let tenant = world.user("user_1");
        let request = ask(&[]);
        h.plant.plant(again(&tenant), foreign.clone(), Planted::Request(Box::new(request.clone()))).await;
        match h.store().get(&tenant, request.id, at(1)).await.and_then(|found| found.open(&tenant)) {
            Err(e) if matches!(e.kind(), ErrorKind::IsolationViolation | ErrorKind::NotFound) => {}
            Err(e) => panic!("get of a foreign request failed otherwise: {e}"),
            Ok(found) => panic!("get passed a foreign request off as the tenant's own: {found:?}"),
        }
        match h.store().list(&tenant, at(1), ApprovalPage::default()).await {
            Err(e) => assert_eq!(e.kind(), ErrorKind::IsolationViolation, "list of a foreign request: {e}"),
            Ok(found) => assert!(
                !found.iter().any(|owned| tenant.owns(owned.owner())),
                "list passed a foreign request off as the tenant's own"
            ),
        }
        let own = h.store().decide_by_handler(&tenant, request.id, approve(), None, at(1)).await;
        assert!(own.is_err(), "a foreign request was decided as the tenant's own");
        let used = h.store().consume(&tenant, request.id, binding("call"), 3, at(1)).await;
        assert!(used.is_err(), "a foreign request was used as the tenant's own");
    }
    Passed
}

/// Two erasures that overlap do not share an epoch: the second is refused before it touches anything.
pub async fn two_erasures_never_share_an_epoch(h: &Harness) -> Outcome {
    let world = World::new();
    let between = world.user_at("alice", 1);
    h.store().forget(&between, &Erase::everything()).await.must("forget");
    let request = ask(&["ops"]);
    h.create(&between, &request).await;
    for epoch in [0, 1] {
        let again = h.store().forget(&world.user_at("alice", epoch), &Erase::everything()).await;
        must_fail(again, ErrorKind::Conflict, "an erasure of an epoch that is not newer");
    }
    h.store().get(&between, request.id, at(1)).await.must("get what a refused erasure left");
    h.store().forget(&world.user_at("alice", 2), &Erase::everything()).await.must("forget again");
    let late = h.store().create(&between, ask(&["ops"])).await;
    must_fail(late, ErrorKind::Erased, "a request from before the second erasure");
    Passed
}
