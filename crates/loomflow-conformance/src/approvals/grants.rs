//! Approvals that are remembered: made with a decision or not at all, for one user, and taken back.

use futures_util::future::join_all;
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    ApprovalDecision, ApprovalGrant, ApprovalRequest, ApprovalState, ArgumentPattern, Digest, Erase,
    ErrorKind, GrantId, GrantTerms, Identity, Scope, Timestamp,
};
use serde_json::json;

use super::{Harness, Planted, approve, ask, binding};
use crate::Outcome::{self, Passed};
use crate::fixture::{
    Must as _, World, again, at, canary, export, export_text, must_fail, named, open, user_id,
};
use crate::naughty;

/// As many as a store may refuse further ones after; one that keeps more than this of one user is not bounded.
const NOBODY_NEEDS_MORE: usize = 1_100;

fn remember(arguments: ArgumentPattern, until: Timestamp) -> ApprovalDecision {
    ApprovalDecision::ApproveAndRemember { grant: GrantTerms::new(arguments, until) }
}

fn exactly(request: &ApprovalRequest) -> ArgumentPattern {
    ArgumentPattern::exactly(&request.arguments)
}

/// Asks as `requester`, and has `ops` approve and remember for any arguments until 1,000.
async fn granted(h: &Harness, requester: &Scope, ops: &Scope) -> GrantId {
    let request = ask(&["ops"]);
    h.create(requester, &request).await;
    let decision = remember(ArgumentPattern::Any, at(1_000));
    h.store().decide(ops, request.id, decision, at(1)).await.must("approve and remember");
    request.id.into()
}

async fn remembered(h: &Harness, scope: &Scope, now: Timestamp) -> Vec<ApprovalGrant> {
    open(scope, h.store().remembered(scope, "refund", now).await.must("remembered"), "remembered")
}

async fn known(h: &Harness, scope: &Scope, now: Timestamp) -> Vec<GrantId> {
    let found = h.store().grants(scope, now).await.must("grants");
    let known = |grant: &loomflow_core::Owned<ApprovalGrant>| {
        let owner = grant.owner();
        let as_owner = assume_scope(owner.namespace().clone(), owner.identity().clone(), scope.epoch());
        let opened = grant.clone().open(&as_owner).must("opening a grant as its owner");
        assert!(
            opened.is_known_to(grant.owner(), scope.owner()),
            "{:?} is shown a grant of {:?}",
            scope.owner(),
            grant.owner()
        );
        opened.id
    };
    found.iter().map(known).collect()
}

/// A remembered approval is a decision like any other and, with it, a grant that says what it was given on.
pub async fn an_approval_that_is_remembered_makes_a_grant(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, ops) = (world.user("alice"), world.user("ops"));
    let mut request = ask(&["ops", "lead"]);
    request.tool_digest = Digest::of(&[b"the tool"]);
    h.create(&alice, &request).await;
    let patterns = ArgumentPattern::fixed(&request.arguments, ["/order", "/cents"]).must("a pattern");
    let decision = remember(patterns.clone(), at(500));
    h.store().decide(&ops, request.id, decision.clone(), at(7)).await.must("approve and remember");
    let by = Some(user_id("ops"));
    let expected = ApprovalState::Decided { decision: decision.clone(), by: by.clone() };
    assert_eq!(h.state(&alice, request.id, at(8)).await, expected);
    let used = h.store().consume(&alice, request.id, binding("call"), 3, at(8)).await.must("consume");
    assert_eq!(used, (decision, by));

    let grants = remembered(h, &alice, at(9)).await;
    assert_eq!(grants.len(), 1, "one approval makes one grant");
    let grant = &grants[0];
    assert_eq!(grant.id, GrantId::from(request.id));
    assert_eq!((&*grant.tool, grant.effect), ("refund", request.effect));
    assert_eq!((grant.tool_digest, grant.policy_version), (request.tool_digest, 3));
    assert_eq!((&grant.arguments, &grant.by), (&patterns, &user_id("ops")));
    assert_eq!(grant.approvers, request.approvers);
    assert_eq!((grant.requested_at, grant.granted_at, grant.expires_at), (at(0), at(7), at(500)));
    // It outlives the request, and nothing else.
    assert_eq!(remembered(h, &alice, at(499)).await.len(), 1);
    for now in [at(500), at(5_000)] {
        assert!(remembered(h, &alice, now).await.is_empty(), "a grant that is over is not live");
        assert!(known(h, &alice, now).await.is_empty() && known(h, &ops, now).await.is_empty());
    }
    let other = h.store().remembered(&alice, "refun", at(9)).await.must("remembered");
    assert!(other.is_empty(), "a grant is for its tool alone");
    Passed
}

/// Terms that are wider than they say, or over already, are refused, and the request stays pending.
pub async fn a_grant_is_never_wider_than_it_says(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, ops) = (world.user("alice"), world.user("ops"));
    let request = ask(&["ops"]);
    h.create(&alice, &request).await;
    let fixed = |values: &[(&str, serde_json::Value)]| ArgumentPattern::Fixed {
        values: values.iter().map(|(pointer, value)| ((*pointer).to_owned(), value.clone())).collect(),
    };
    let many: Vec<_> = (0..65).map(|n| format!("{}/order", "/x/..".repeat(n))).collect();
    let many: Vec<_> = many.iter().map(|pointer| (pointer.as_str(), json!("o_1"))).collect();
    for (arguments, why) in [
        (fixed(&[]), "fixes nothing"),
        (fixed(&many), "fixes too much"),
        (fixed(&[("/order", json!("o_2"))]), "is of other arguments"),
        (fixed(&[("/order", json!("o_1")), ("/note", json!(null))]), "fixes what is not there"),
        (fixed(&[("order", json!("o_1"))]), "has no pointer"),
        (ArgumentPattern::exactly(&json!({})), "is of other arguments"),
    ] {
        let decided = h.store().decide(&ops, request.id, remember(arguments, at(500)), at(1)).await;
        must_fail(decided, ErrorKind::InvalidInput, &format!("a pattern that {why}"));
    }
    for until in [at(-1), at(0), at(1)] {
        let decided = h.store().decide(&ops, request.id, remember(exactly(&request), until), at(1)).await;
        must_fail(decided, ErrorKind::InvalidInput, "a grant that is over already");
    }
    assert_eq!(h.listed(&ops, at(1)).await, [request.id], "a refused decision decides nothing");
    assert!(remembered(h, &alice, at(1)).await.is_empty());
    h.store().decide(&ops, request.id, remember(exactly(&request), at(2)), at(1)).await.must("remember");
    Passed
}

/// A decision that comes too late makes no grant, and neither does a deny, a plain approval or an edit.
pub async fn only_the_decision_that_stands_makes_a_grant(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, ops, lead) = (world.user("alice"), world.user("ops"), world.user("lead"));
    for first in [
        approve(),
        ApprovalDecision::Deny { reason: "no".into() },
        ApprovalDecision::Edit { args: json!({"order": "o_2"}) },
    ] {
        let request = ask(&["ops", "lead"]);
        h.create(&alice, &request).await;
        h.store().decide(&lead, request.id, first, at(1)).await.must("decide");
        let late = h.store().decide(&ops, request.id, remember(exactly(&request), at(500)), at(1)).await;
        must_fail(late, ErrorKind::Conflict, "a second decision");
    }
    let expired = ask(&["ops"]);
    h.create(&alice, &expired).await;
    let late = h.store().decide(&ops, expired.id, remember(exactly(&expired), at(500)), at(100)).await;
    must_fail(late, ErrorKind::Conflict, "a decision after the expiry");
    assert!(remembered(h, &alice, at(1)).await.is_empty());
    for _ in 0..5 {
        let request = ask(&["ops", "lead"]);
        h.create(&alice, &request).await;
        let tasks = (0..12).map(|i| {
            let scope = world.user(["ops", "lead"][i % 2]);
            let (store, id, decision) = (h.shared(), request.id, remember(exactly(&request), at(500)));
            tokio::spawn(async move { store.decide(&scope, id, decision, at(1)).await })
        });
        let done = join_all(tasks).await;
        let won = done.iter().filter(|done| matches!(done, Ok(Ok(())))).count();
        assert_eq!(won, 1, "exactly one decision wins");
        let grants = remembered(h, &alice, at(2)).await;
        assert_eq!(grants.len(), 1, "and makes one grant");
        h.store().revoke(&alice, grants[0].id).await.must("revoke");
    }
    Passed
}

/// Nobody remembers for themselves where self-approval is off, by no way; where it is on, they may.
pub async fn nobody_remembers_for_themselves(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    // Named as an approver, the requester is still the requester.
    let request = ask(&["alice", "ops"]);
    h.create(&alice, &request).await;
    let decision = || remember(exactly(&request), at(500));
    let own = h.store().decide(&alice, request.id, decision(), at(1)).await;
    must_fail(own, ErrorKind::Denied, "a grant by the requester without self-approval");
    for by in [None, Some("alice"), Some("mallory"), Some("Ops")] {
        let named = by.map(user_id);
        let decided = h.store().decide_by_handler(&alice, request.id, decision(), named, at(1)).await;
        must_fail(decided, ErrorKind::Denied, &format!("a grant in the name of {by:?}"));
    }
    assert!(remembered(h, &alice, at(1)).await.is_empty());
    let ops = Some(user_id("ops"));
    h.store().decide_by_handler(&alice, request.id, decision(), ops, at(1)).await.must("by the handler");
    assert_eq!(remembered(h, &alice, at(1)).await[0].by, user_id("ops"));

    let bob = world.user("bob");
    let mut request = ask(&[]);
    request.self_approval = true;
    h.create(&bob, &request).await;
    let decision = remember(exactly(&request), at(500));
    h.store().decide(&bob, request.id, decision, at(1)).await.must("with self-approval");
    assert_eq!(remembered(h, &bob, at(1)).await[0].by, user_id("bob"));
    Passed
}

/// Nothing is remembered for the anonymous bucket, which is nobody in particular.
pub async fn nothing_is_remembered_for_anonymous(h: &Harness) -> Outcome {
    let world = World::new();
    let anonymous = world.scope(&Identity::Anonymous);
    let mut request = ask(&["ops"]);
    request.self_approval = true;
    h.create(&anonymous, &request).await;
    for scope in [world.user("ops"), again(&anonymous)] {
        let decided = h.store().decide(&scope, request.id, remember(exactly(&request), at(500)), at(1)).await;
        must_fail(decided, ErrorKind::InvalidInput, "a grant for the anonymous bucket");
    }
    h.store().decide(&world.user("ops"), request.id, approve(), at(1)).await.must("a plain approval");
    assert!(remembered(h, &anonymous, at(1)).await.is_empty());
    Passed
}

/// A grant is for the user it was given for: nobody else has it, whatever they are called.
pub async fn a_grant_is_for_one_user(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let world = World::new();
        if matches!(a, Identity::Anonymous) {
            continue;
        }
        let (alice, other) = (world.scope(&a), world.scope(&b));
        let id = granted(h, &alice, &world.user("ops")).await;
        for stranger in [&other, &world.beside("-1").scope(&a), &World::new().scope(&a)] {
            assert!(remembered(h, stranger, at(2)).await.is_empty(), "{b:?} has the grant of {a:?}");
            assert!(known(h, stranger, at(2)).await.is_empty(), "{b:?} is shown the grant of {a:?}");
            must_fail(h.store().revoke(stranger, id).await, ErrorKind::NotFound, "revoke by a stranger");
        }
        assert_eq!(remembered(h, &alice, at(2)).await.len(), 1);
    }
    Passed
}

/// Whoever has a grant and whoever might have given it see it, oldest first, and can take it back; once.
pub async fn a_grant_is_revoked_by_its_user_and_by_approvers(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, bob, ops) = (world.user("alice"), world.user("bob"), world.user("ops"));
    let mut given = Vec::new();
    for (second, who) in (1..).zip([&alice, &bob, &alice]) {
        let request = ask(&["ops", "lead"]);
        h.create(who, &request).await;
        let decision = remember(exactly(&request), at(1_000));
        h.store().decide(&ops, request.id, decision, at(second)).await.must("remember");
        given.push(GrantId::from(request.id));
    }
    assert_eq!(known(h, &ops, at(5)).await, given, "an approver sees what approvers gave");
    assert_eq!(known(h, &alice, at(5)).await, [given[0], given[2]]);
    let gone = h.store().revoke(&world.user("lead"), given[0]).await.must("revoke by an approver");
    assert_eq!(gone.owner(), alice.owner(), "what was taken back is whose it was");
    assert_eq!(gone.open(&alice).must("opening it as its owner").id, given[0]);
    must_fail(h.store().revoke(&ops, given[0]).await, ErrorKind::NotFound, "a second time");
    h.store().revoke(&alice, given[2]).await.must("revoke by whom it is for");
    must_fail(h.store().revoke(&alice, given[1]).await, ErrorKind::NotFound, "somebody else's");
    assert!(remembered(h, &alice, at(5)).await.is_empty(), "what was taken back does not count");
    assert_eq!(known(h, &ops, at(5)).await, [given[1]]);
    assert_eq!(remembered(h, &bob, at(5)).await.len(), 1);
    Passed
}

/// A user has a bounded number of grants; a further one is refused, its request stays pending, and what is over makes room.
pub async fn grants_are_bounded(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, ops) = (world.user("alice"), world.user("ops"));
    for n in 0..NOBODY_NEEDS_MORE {
        let request = ask(&["ops"]);
        h.create(&alice, &request).await;
        let until = if n == 0 { at(50) } else { at(90) };
        let decided = h.store().decide(&ops, request.id, remember(exactly(&request), until), at(1)).await;
        if let Err(full) = decided {
            assert_eq!(full.kind(), ErrorKind::Capacity, "{full}");
            assert_eq!(remembered(h, &alice, at(1)).await.len(), n, "nothing live was given up");
            assert_eq!(h.state(&alice, request.id, at(1)).await, ApprovalState::Pending);
            granted(h, &world.user("bob"), &ops).await;
            let decision = remember(exactly(&request), at(900));
            h.store().decide(&ops, request.id, decision, at(50)).await.must("after the first one is over");
            return Passed;
        }
        h.store().consume(&alice, request.id, binding("call"), 3, at(1)).await.must("consume");
    }
    panic!("{NOBODY_NEEDS_MORE} grants of one user are kept, and no end in sight");
}

/// Grants are exported and erased with the rest of their user's data, each with the request it was given on; an approver's
/// erasure leaves what they gave.
pub async fn grants_go_with_their_users_data(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, bob, ops) = (world.user("alice"), world.user("bob"), world.user("ops"));
    let word = canary();
    for (who, asked) in [(&alice, 0), (&alice, 20), (&bob, 0)] {
        let mut request = ask(&["ops"]);
        request.requested_at = at(asked);
        request.arguments = std::sync::Arc::new(json!({ "said": word }));
        h.create(who, &request).await;
        let pattern = ArgumentPattern::fixed(&request.arguments, ["/said"]).must("a pattern");
        h.store().decide(&ops, request.id, remember(pattern, at(1_000)), at(30)).await.must("remember");
    }
    let grants_of = async |scope: &Scope| {
        let items = export(h.store(), scope).await;
        let grants: Vec<_> = items.into_iter().filter(|item| &*item.kind == "grant").collect();
        assert!(grants.is_empty() || export_text(&grants).contains(&word), "with their patterns");
        grants.len()
    };
    assert_eq!((grants_of(&alice).await, grants_of(&bob).await, grants_of(&ops).await), (2, 1, 0));
    h.store().forget(&world.user_at("ops", 1), &Erase::everything()).await.must("forget an approver");
    assert_eq!(remembered(h, &alice, at(31)).await.len(), 2);
    let line = h.store().forget(&world.user_at("alice", 1), &Erase::before(at(10))).await.must("forget");
    assert_eq!(line.total(), 2, "a request and the grant that was given on it: {line:?}");
    let left = remembered(h, &world.user_at("alice", 1), at(31)).await;
    assert_eq!(left.iter().map(|grant| grant.requested_at).collect::<Vec<_>>(), [at(20)]);
    h.store().forget(&world.user_at("alice", 2), &Erase::everything()).await.must("forget everything");
    assert!(remembered(h, &world.user_at("alice", 2), at(31)).await.is_empty());
    assert_eq!(known(h, &ops, at(31)).await.len(), 1, "bob's is left");
    must_fail(h.store().revoke(&ops, left[0].id).await, ErrorKind::NotFound, "revoke after an erasure");
    Passed
}

/// A foreign grant that is filed under the tenant's key is never the tenant's.
pub async fn a_foreign_grant_is_withheld(h: &Harness) -> Outcome {
    for i in 0..3 {
        let world = World::new();
        let foreign = match i {
            0 => world.owner(&named("user_10")),
            1 => World::new().owner(&named("user_1")),
            _ => world.owner(&Identity::Anonymous),
        };
        let tenant = world.user("user_1");
        // What a grant looks like is taken from a real one, of somebody else in another world.
        let elsewhere = World::new();
        let giver = elsewhere.user("giver");
        granted(h, &giver, &elsewhere.user("ops")).await;
        let mut grant = remembered(h, &giver, at(2)).await.remove(0);
        grant.id = GrantId::from(ask(&[]).id);
        h.plant.plant(again(&tenant), foreign.clone(), Planted::Grant(Box::new(grant.clone()))).await;
        for (what, found) in [
            ("remembered", h.store().remembered(&tenant, "refund", at(2)).await),
            ("grants", h.store().grants(&tenant, at(2)).await),
        ] {
            match found {
                Err(e) => assert_eq!(e.kind(), ErrorKind::IsolationViolation, "{what}: {e}"),
                Ok(found) => assert!(
                    !found.iter().any(|owned| tenant.owns(owned.owner())),
                    "{what} passed a foreign grant off as the tenant's own"
                ),
            }
        }
        assert!(
            h.store().revoke(&tenant, grant.id).await.is_err(),
            "a foreign grant was the tenant's to revoke"
        );
    }
    Passed
}
