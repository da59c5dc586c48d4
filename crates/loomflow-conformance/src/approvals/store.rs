//! Asking, deciding, expiring, erasing.

use std::time::Duration;

use futures_util::future::join_all;
use loomflow_core::{
    ApprovalDecision, ApprovalId, ApprovalPage, ApprovalRequest, ApprovalState, Erase, ErrorKind, RunId,
    Timestamp,
};
use serde_json::json;

use super::{Harness, approve, ask, binding};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, again, at, canary, export, export_text, must_fail, user_id};

/// A request comes back as it was made, to its requester and to its approvers.
pub async fn a_request_comes_back_as_it_was_made(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    let request = ask(&["ops", "lead"]);
    h.create(&alice, &request).await;
    for reader in [&alice, &world.user("ops"), &world.user("lead")] {
        let found = h.get(reader, &alice, request.id, at(1)).await;
        assert_eq!((found.request, found.state), (request.clone(), ApprovalState::Pending));
    }
    Passed
}

/// Requester and approvers are shown the pending requests, oldest first, and none that is decided, used or expired.
pub async fn pending_requests_are_listed_oldest_first(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, bob, ops) = (world.user("alice"), world.user("bob"), world.user("ops"));
    let mut asked = Vec::new();
    for (i, who) in [&alice, &bob, &alice, &bob, &alice].iter().enumerate() {
        let mut request = ask(&["ops"]);
        request.requested_at = at(i as i64);
        request.expires_at = at(if i == 3 { 10 } else { 100 });
        h.create(who, &request).await;
        asked.push(request.id);
    }
    assert_eq!(h.listed(&ops, at(5)).await, asked, "an approver is shown all of them");
    assert_eq!(h.listed(&alice, at(5)).await, [asked[0], asked[2], asked[4]], "a requester their own");
    h.store().decide(&ops, asked[2], approve(), at(6)).await.must("decide");
    assert_eq!(
        h.listed(&ops, at(7)).await,
        [asked[0], asked[1], asked[3], asked[4]],
        "a decided one is left out"
    );
    assert_eq!(h.listed(&ops, at(10)).await, [asked[0], asked[1], asked[4]], "an expired one is left out");
    assert!(h.listed(&world.user("nobody"), at(5)).await.is_empty());
    Passed
}

/// A list comes in pages, oldest first and of one instant by id, whole and without repetition, also when what a page ended
/// with is decided meanwhile; no page is longer than it may be.
pub async fn a_list_comes_in_pages(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, bob, ops) = (world.user("alice"), world.user("bob"), world.user("ops"));
    let mut asked = Vec::new();
    for (i, second) in [1, 1, 1, 0, 2, 2, 1].into_iter().enumerate() {
        let mut request = ask(&["ops"]);
        request.requested_at = at(second);
        h.create(if i % 2 == 0 { &alice } else { &bob }, &request).await;
        asked.push(request);
    }
    asked.sort_by_key(|request| (request.requested_at, request.id));
    let ids = |page: &[ApprovalRequest]| page.iter().map(|request| request.id).collect::<Vec<_>>();
    for limit in [1, 2, 3, 7, 8] {
        let mut seen = Vec::new();
        let mut page = ApprovalPage::first(limit);
        // One page more than there can be: the last is empty.
        for _ in 0..=asked.len() {
            let found = h.page(&ops, at(5), page).await;
            assert!(found.len() <= limit, "a page of {limit} has {}", found.len());
            let Some(last) = found.last() else { break };
            page = page.after(last);
            seen.extend(found);
        }
        assert_eq!(ids(&seen), ids(&asked), "in pages of {limit}");
    }
    let first = h.page(&ops, at(5), ApprovalPage::first(2)).await;
    h.store().decide(&ops, first[1].id, approve(), at(5)).await.must("decide");
    let rest = h.page(&ops, at(5), ApprovalPage::first(100).after(&first[1])).await;
    assert_eq!(ids(&rest), ids(&asked[2..]), "after a request that was decided meanwhile");
    let own: Vec<_> = h.page(&bob, at(5), ApprovalPage::first(2)).await;
    assert_eq!(own.len(), 2, "a requester's own are in pages, too");
    Passed
}

/// More requests that are not over than any user needs.
const NOBODY_NEEDS_MORE: usize = 1_001;

/// A user has a bounded number of requests that are not over; a further one is refused, nothing pending is given up for it, others
/// are not held back, and what is over makes room.
pub async fn requests_are_bounded(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    let mut first = None;
    // A store may look at the real time to see what is over.
    let open = || {
        let mut request = ask(&["ops"]);
        request.expires_at = Timestamp::MAX;
        request
    };
    for n in 0..NOBODY_NEEDS_MORE {
        let request = open();
        match h.store().create(&alice, request.clone()).await {
            Ok(()) => first = first.or(Some(request.id)),
            Err(full) => {
                assert_eq!(full.kind(), ErrorKind::Capacity, "{full}");
                let first = first.unwrap_or_else(|| panic!("not one request is kept"));
                let listed = h.page(&alice, at(1), ApprovalPage::first(1_000)).await;
                assert_eq!(listed.len(), n, "nothing pending was given up");
                h.create(&world.user("bob"), &open()).await;
                h.store().decide(&world.user("ops"), first, approve(), at(1)).await.must("decide");
                h.store().consume(&alice, first, binding("call"), 3, at(1)).await.must("consume");
                h.create(&alice, &open()).await;
                return Passed;
            }
        }
    }
    panic!("{NOBODY_NEEDS_MORE} requests of one user are kept, and no end in sight");
}

/// What ran out of time before it was decided or used is handed out to its requester, oldest first, and once; it can be neither
/// decided nor used. What is live, what was used, and what is somebody else's is not.
pub async fn what_ran_out_of_time_is_handed_out_once(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, bob, ops) = (world.user("alice"), world.user("bob"), world.user("ops"));
    let mut requests = Vec::new();
    for second in 0..5 {
        let mut request = ask(&["ops"]);
        request.requested_at = at(second);
        request.expires_at = at(if second == 4 { 1_000 } else { 100 });
        h.create(if second == 3 { &bob } else { &alice }, &request).await;
        requests.push(request);
    }
    let [pending, approved, used, theirs, live] = [0, 1, 2, 3, 4].map(|i: usize| requests[i].clone());
    for request in [&approved, &used] {
        h.store().decide(&ops, request.id, approve(), at(10)).await.must("decide");
    }
    h.store().consume(&alice, used.id, binding("call"), 3, at(11)).await.must("consume");
    assert!(h.store().lapsed(&alice, at(99)).await.must("lapsed").is_empty(), "nothing is over yet");
    let taken = join_all((0..8).map(|_| {
        let (store, scope) = (h.shared(), again(&alice));
        tokio::spawn(async move { store.lapsed(&scope, at(100)).await })
    }))
    .await;
    let mut lapsed = Vec::new();
    for taken in taken {
        let taken = taken.unwrap_or_else(|e| panic!("a concurrent look panicked: {e}")).must("lapsed");
        lapsed.extend(taken.into_iter().map(|owned| owned.open(&alice).must("opening one's own").request));
    }
    lapsed.sort_by_key(|request| request.requested_at);
    assert_eq!(lapsed, [pending.clone(), approved.clone()], "each once, over all who look");
    assert!(h.store().lapsed(&alice, at(101)).await.must("lapsed").is_empty());
    for id in [pending.id, approved.id] {
        let conflict = ErrorKind::Conflict;
        must_fail(
            h.store().decide(&ops, id, approve(), at(101)).await,
            conflict,
            "decide what ran out of time",
        );
        for now in [at(50), at(101)] {
            let used = h.store().consume(&alice, id, binding("call"), 3, now).await;
            must_fail(used, conflict, "use what ran out of time");
        }
    }
    assert_eq!(h.state(&alice, live.id, at(101)).await, ApprovalState::Pending);
    assert!(
        h.store().lapsed(&ops, at(101)).await.must("lapsed").is_empty(),
        "an approver's own they are not"
    );
    let bobs = h.store().lapsed(&bob, at(101)).await.must("lapsed");
    assert_eq!(
        bobs.into_iter().map(|owned| owned.open(&bob).must("one's own").request.id).collect::<Vec<_>>(),
        [theirs.id]
    );
    Passed
}

/// Each decision is seen by the requester with who made it, and is handed out as it was made.
pub async fn decisions_come_back_as_they_were_made(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, ops) = (world.user("alice"), world.user("ops"));
    for decision in [
        ApprovalDecision::Approve,
        ApprovalDecision::Deny { reason: "not \"today\"\n".into() },
        ApprovalDecision::Deny { reason: String::new() },
        ApprovalDecision::Edit {
            args: json!({"cents": 9_007_199_254_740_993_u64, "to": {"b": 1, "a": [null]}}),
        },
    ] {
        let request = ask(&["ops"]);
        h.create(&alice, &request).await;
        h.store().decide(&ops, request.id, decision.clone(), at(1)).await.must("decide");
        let by = Some(user_id("ops"));
        let expected = ApprovalState::Decided { decision: decision.clone(), by: by.clone() };
        assert_eq!(h.state(&alice, request.id, at(2)).await, expected);
        let used = h.store().consume(&alice, request.id, binding("call"), 3, at(3)).await.must("consume");
        assert_eq!(used, (decision.clone(), by.clone()));
        for now in [at(4), at(1_000)] {
            let used = ApprovalState::Consumed { decision: decision.clone(), by: by.clone() };
            assert_eq!(h.state(&alice, request.id, now).await, used, "what it was used as stays readable");
        }
    }
    Passed
}

/// A decision that the requester's own handler returned counts, and is by whom the handler names, or by nobody.
pub async fn a_handlers_decision_names_whom_it_says(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    for by in [None, Some(user_id("slack-ops"))] {
        let request = ask(&[]);
        h.create(&alice, &request).await;
        let decided = h.store().decide_by_handler(&alice, request.id, approve(), by.clone(), at(1)).await;
        decided.must("decide_by_handler");
        let twice = h.store().decide_by_handler(&alice, request.id, approve(), by.clone(), at(1)).await;
        must_fail(twice, ErrorKind::Conflict, "a handler's second decision");
        let used = h.store().consume(&alice, request.id, binding("call"), 3, at(2)).await.must("consume");
        assert_eq!(used, (approve(), by));
    }
    Passed
}

/// From its expiry on, a request can be neither decided nor used, even where it was approved before.
pub async fn an_expired_request_can_be_neither_decided_nor_used(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, ops) = (world.user("alice"), world.user("ops"));
    let (pending, approved, in_time) = (ask(&["ops"]), ask(&["ops"]), ask(&["ops"]));
    for request in [&pending, &approved, &in_time] {
        h.create(&alice, request).await;
    }
    h.store().decide(&ops, approved.id, approve(), at(99)).await.must("decide before the expiry");
    h.store().decide(&ops, in_time.id, approve(), at(99)).await.must("decide before the expiry");
    h.store().consume(&alice, in_time.id, binding("call"), 3, at(99)).await.must("consume before the expiry");
    let conflict = ErrorKind::Conflict;
    for now in [at(100), at(10_000)] {
        must_fail(
            h.store().decide(&ops, pending.id, approve(), now).await,
            conflict,
            "decide after the expiry",
        );
        let handler = h.store().decide_by_handler(&alice, pending.id, approve(), None, now).await;
        must_fail(handler, conflict, "a handler's decision after the expiry");
        for id in [pending.id, approved.id] {
            let used = h.store().consume(&alice, id, binding("call"), 3, now).await;
            must_fail(used, conflict, "consume after the expiry");
            assert_eq!(h.state(&alice, id, now).await, ApprovalState::Expired);
        }
        assert!(h.listed(&ops, now).await.is_empty(), "an expired request is not pending");
    }
    Passed
}

/// A request that never was is not found, by anybody and for anything.
pub async fn an_unknown_request_is_not_found(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    let id = ask(&[]).id;
    let not_found = ErrorKind::NotFound;
    must_fail(h.store().get(&alice, id, at(1)).await, not_found, "get");
    must_fail(h.store().decide(&alice, id, approve(), at(1)).await, not_found, "decide");
    must_fail(
        h.store().decide_by_handler(&alice, id, approve(), None, at(1)).await,
        not_found,
        "decide_by_handler",
    );
    must_fail(h.store().consume(&alice, id, binding("call"), 3, at(1)).await, not_found, "consume");
    Passed
}

/// A waiting run is told soon after the decision, and at once where there is one already.
pub async fn waiting_ends_with_the_decision(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, ops) = (world.user("alice"), world.user("ops"));
    let request = ask(&["ops"]);
    h.create(&alice, &request).await;
    let waiter = {
        let (store, scope, id) = (h.shared(), again(&alice), request.id);
        tokio::spawn(async move {
            // `changed` may return early; the waiter looks and waits again, as the loop does.
            loop {
                store.changed(&scope, id).await.must("changed");
                let found =
                    store.get(&scope, id, at(2)).await.must("get").open(&scope).must("opening one's own");
                if found.state != ApprovalState::Pending {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    h.store().decide(&ops, request.id, approve(), at(1)).await.must("decide");
    let told = tokio::time::timeout(Duration::from_secs(10), waiter).await;
    told.unwrap_or_else(|_| panic!("nobody told the waiting run within ten seconds"))
        .unwrap_or_else(|e| panic!("the waiting run failed: {e}"));
    let at_once = tokio::time::timeout(Duration::from_secs(10), h.store().changed(&alice, request.id)).await;
    at_once.unwrap_or_else(|_| panic!("waiting for what is decided already does not end")).must("changed");
    Passed
}

/// Erasing a tenant takes every request it made, decided or not; it can then be seen, decided and used by nobody.
pub async fn forgetting_takes_every_request(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, ops) = (world.user("alice"), world.user("ops"));
    let (pending, decided) = (ask(&["ops"]), ask(&["ops"]));
    for request in [&pending, &decided] {
        h.create(&alice, request).await;
    }
    h.store().decide(&ops, decided.id, approve(), at(1)).await.must("decide");
    let later = world.user_at("alice", 1);
    let line = h.store().forget(&later, &Erase::everything()).await.must("forget");
    assert_eq!((line.store.as_str(), line.total()), (h.store().store_name(), 2), "the receipt counts both");
    for id in [pending.id, decided.id] {
        for scope in [&alice, &later, &ops] {
            must_fail(h.store().get(scope, id, at(2)).await, ErrorKind::NotFound, "get after an erasure");
        }
        let used = h.store().consume(&later, id, binding("call"), 3, at(2)).await;
        must_fail(used, ErrorKind::NotFound, "consume after an erasure");
    }
    assert!(h.listed(&ops, at(2)).await.is_empty(), "the approver's list forgets it, too");
    assert!(export(h.store(), &later).await.is_empty(), "nothing is left to export");
    let again = h.store().forget(&world.user_at("alice", 2), &Erase::everything()).await.must("forget again");
    assert_eq!(again.total(), 0, "the second time there is nothing to erase");
    Passed
}

/// An export has every request of the tenant, with its arguments.
pub async fn exports_are_complete(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    let words: Vec<String> = (0..5).map(|_| canary()).collect();
    let ids: Vec<(ApprovalId, RunId)> = {
        let mut ids = Vec::new();
        for word in &words {
            let mut request = ask(&["ops"]);
            request.arguments = std::sync::Arc::new(json!({ "said": word }));
            h.create(&alice, &request).await;
            ids.push((request.id, request.run));
        }
        ids
    };
    h.store().decide(&world.user("ops"), ids[0].0, approve(), at(1)).await.must("decide");
    let items = export(h.store(), &alice).await;
    assert_eq!(items.len(), words.len(), "every request is exported, once");
    let text = export_text(&items);
    assert!(words.iter().all(|w| text.contains(w.as_str())), "requests are exported with their arguments");
    Passed
}
