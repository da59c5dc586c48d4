//! An approval is decided once and used once, for the very call it was asked for.

use futures_util::future::join_all;
use loomflow_core::{ApprovalDecision, ApprovalState, ErrorKind};

use super::{Harness, approve, ask, binding};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, again, at, must_fail, user_id};

/// A decision is handed out once; every later use is a conflict.
pub async fn a_decision_is_used_once(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, ops) = (world.user("alice"), world.user("ops"));
    let request = ask(&["ops"]);
    h.create(&alice, &request).await;
    h.store().decide(&ops, request.id, approve(), at(1)).await.must("decide");
    h.store().consume(&alice, request.id, binding("call"), 3, at(2)).await.must("the first use");
    for now in [at(2), at(3), at(99)] {
        let used = h.store().consume(&alice, request.id, binding("call"), 3, now).await;
        must_fail(used, ErrorKind::Conflict, "a second use");
    }
    Passed
}

/// What is made void is never used, and says what it was and that it is void; what was used stays used, and what is pending
/// stays pending.
pub async fn what_is_void_is_good_for_nothing(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, bob, ops) = (world.user("alice"), world.user("bob"), world.user("ops"));
    let (taken_back, used, pending) = (ask(&["ops"]), ask(&["ops"]), ask(&["ops"]));
    for request in [&taken_back, &used, &pending] {
        h.create(&alice, request).await;
    }
    for request in [&taken_back, &used] {
        h.store().decide(&ops, request.id, approve(), at(1)).await.must("decide");
    }
    h.store().consume(&alice, used.id, binding("call"), 3, at(2)).await.must("use");
    for stranger in [&bob, &ops] {
        let void = h.store().void(stranger, taken_back.id, at(2)).await;
        must_fail(void, ErrorKind::NotFound, "somebody else takes it back");
    }
    let early = h.store().void(&alice, pending.id, at(2)).await;
    must_fail(early, ErrorKind::Conflict, "there is no decision to take back");
    assert_eq!(h.listed(&alice, at(2)).await, [pending.id], "it is still pending");
    assert!(h.store().void(&alice, taken_back.id, at(2)).await.must("void"));
    assert!(!h.store().void(&alice, taken_back.id, at(3)).await.must("void again"));
    assert!(!h.store().void(&alice, used.id, at(3)).await.must("void what was used"));
    let by = Some(user_id("ops"));
    for now in [at(3), at(1_000)] {
        let void = ApprovalState::Void { decision: approve(), by: by.clone() };
        assert_eq!(h.state(&alice, taken_back.id, now).await, void);
        let consumed = ApprovalState::Consumed { decision: approve(), by: by.clone() };
        assert_eq!(h.state(&alice, used.id, now).await, consumed);
        let late = h.store().consume(&alice, taken_back.id, binding("call"), 3, now).await;
        must_fail(late, ErrorKind::Conflict, "what is void is used");
    }
    Passed
}

/// A request is decided once; every later decision, also after it was used, is a conflict and changes nothing.
pub async fn a_request_is_decided_once(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, ops, lead) = (world.user("alice"), world.user("ops"), world.user("lead"));
    let request = ask(&["ops", "lead"]);
    h.create(&alice, &request).await;
    let deny = ApprovalDecision::Deny { reason: "no".into() };
    h.store().decide(&ops, request.id, deny.clone(), at(1)).await.must("decide");
    for decider in [&ops, &lead] {
        let twice = h.store().decide(decider, request.id, approve(), at(2)).await;
        must_fail(twice, ErrorKind::Conflict, "a second decision");
    }
    let handler = h.store().decide_by_handler(&alice, request.id, approve(), None, at(2)).await;
    must_fail(handler, ErrorKind::Conflict, "a handler's decision after a person's");
    let (decision, _) =
        h.store().consume(&alice, request.id, binding("call"), 3, at(3)).await.must("consume");
    assert_eq!(decision, deny, "the first decision stands");
    let late = h.store().decide(&ops, request.id, approve(), at(4)).await;
    must_fail(late, ErrorKind::Conflict, "a decision after the use");
    Passed
}

/// A request that nobody has decided cannot be used, and stays pending.
pub async fn a_pending_request_cannot_be_used(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    let request = ask(&["ops"]);
    h.create(&alice, &request).await;
    let used = h.store().consume(&alice, request.id, binding("call"), 3, at(1)).await;
    assert!(used.is_err(), "a pending request was used: {used:?}");
    assert_eq!(h.listed(&alice, at(1)).await, [request.id], "it is still pending");
    Passed
}

/// A decision is refused for another call, or under another version of the policy.
pub async fn a_decision_is_bound_to_its_call_and_policy(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, ops) = (world.user("alice"), world.user("ops"));
    for (bound, version, why) in [
        (binding("other"), 3, "for another call"),
        (binding("call"), 4, "under a newer policy"),
        (binding("call"), 2, "under an older policy"),
    ] {
        let request = ask(&["ops"]);
        h.create(&alice, &request).await;
        h.store().decide(&ops, request.id, approve(), at(1)).await.must("decide");
        let used = h.store().consume(&alice, request.id, bound, version, at(2)).await;
        must_fail(used, ErrorKind::Conflict, &format!("consume {why}"));
    }
    Passed
}

/// Of decisions made at once, exactly one wins, and it is the one that is used.
pub async fn of_concurrent_decisions_one_wins(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    for _ in 0..5 {
        let request = ask(&["ops", "lead"]);
        h.create(&alice, &request).await;
        let tasks = (0..20).map(|i| {
            let scope = world.user(["ops", "lead"][i % 2]);
            let (store, id) = (h.shared(), request.id);
            let decision = ApprovalDecision::Deny { reason: format!("number {i}") };
            tokio::spawn(async move { store.decide(&scope, id, decision, at(1)).await.map(|()| i) })
        });
        let mut won = Vec::new();
        for done in join_all(tasks).await {
            match done.unwrap_or_else(|e| panic!("a concurrent decision panicked: {e}")) {
                Ok(i) => won.push(i),
                Err(e) => assert_eq!(e.kind(), ErrorKind::Conflict, "{e}"),
            }
        }
        assert_eq!(won.len(), 1, "exactly one decision wins");
        let (used, _) =
            h.store().consume(&alice, request.id, binding("call"), 3, at(2)).await.must("consume");
        assert_eq!(used, ApprovalDecision::Deny { reason: format!("number {}", won[0]) });
    }
    Passed
}

/// Of uses at once, exactly one gets the decision.
pub async fn of_concurrent_uses_one_wins(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, ops) = (world.user("alice"), world.user("ops"));
    for _ in 0..5 {
        let request = ask(&["ops"]);
        h.create(&alice, &request).await;
        h.store().decide(&ops, request.id, approve(), at(1)).await.must("decide");
        let tasks = (0..20).map(|_| {
            let (store, scope, id) = (h.shared(), again(&alice), request.id);
            tokio::spawn(async move { store.consume(&scope, id, binding("call"), 3, at(2)).await.map(drop) })
        });
        let mut won = 0;
        for done in join_all(tasks).await {
            match done.unwrap_or_else(|e| panic!("a concurrent use panicked: {e}")) {
                Ok(()) => won += 1,
                Err(e) => assert_eq!(e.kind(), ErrorKind::Conflict, "{e}"),
            }
        }
        assert_eq!(won, 1, "exactly one use gets the decision");
    }
    Passed
}
