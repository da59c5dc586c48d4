//! One tenant's quota and another's. No capability switches these cases off.

use std::time::Duration;

use loomflow_core::{
    BudgetConfig, Charge, Entity, Erase, ErrorKind, Hold, HoldKey, Identity, RefusalReason, Reserve, Scope,
    Usage,
};

use super::{Harness, Instance, key, used};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, canary, export, export_text, must_fail, named, new_run};
use crate::naughty;

/// Every hostile identity spends a quota of its own: what one has used is not missing in another's.
pub async fn hostile_users_spend_their_own(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(10_000)).await;
    let world = World::new();
    let all: Vec<Scope> = naughty::identities().iter().map(|who| world.scope(who)).collect();
    for (i, scope) in all.iter().enumerate() {
        l.spend(scope, 1_000 + i as u64, 1).await;
        l.held(scope, &Hold::tokens(key(), 100 + i as u64, 0)).await;
    }
    for (i, scope) in all.iter().enumerate() {
        let usage = l.usage(scope).await;
        assert_eq!(usage.used.input_tokens, 1_000 + i as u64, "what {:?} has used", scope.owner());
        assert_eq!(
            (usage.held_tokens, usage.open_holds),
            (100 + i as u64, 1),
            "what {:?} holds",
            scope.owner()
        );
    }
    Passed
}

/// One user in two namespaces has two quotas.
pub async fn namespaces_spend_their_own(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    must_be_apart(&l).await;
    Passed
}

/// The cap for everybody counts one namespace: an application does not use up another's on a shared ledger.
pub async fn the_global_cap_counts_one_namespace(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().max_tokens(100)).await;
    must_be_apart(&l).await;
    Passed
}

/// Spends a whole cap of 100 in each of several namespaces.
async fn must_be_apart(l: &Instance) {
    let world = World::new();
    for namespace in [world.beside("-1"), world.beside("-10"), world.beside("-A"), world.beside("-a"), world]
    {
        let alice = namespace.user("alice");
        assert_eq!(l.usage(&alice).await.used.total_tokens(), 0, "nothing of another namespace is counted");
        l.spend(&alice, 60, 40).await;
    }
}

/// The border between namespace and user cannot be moved: `a` + `b:c` spends nothing of `a:b` + `c`.
pub async fn a_border_between_namespace_and_user_cannot_be_shifted(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    for (separator, name) in
        [("", "bc"), (":", "b:c"), ("/", "b/c"), ("|", "b|c"), ("_", "b_c"), ("u", "buc")]
    {
        let world = World::new();
        l.spend(&world.user(name), 60, 40).await;
        for other in [world.beside(&format!("{separator}b")).user("c"), world.beside(separator).user("bc")] {
            if other.owner() != world.user(name).owner() {
                assert_eq!(l.usage(&other).await.used.total_tokens(), 0, "{:?} spent nothing", other.owner());
                l.held(&other, &Hold::tokens(key(), 60, 40).with_min_output(40)).await;
            }
        }
    }
    Passed
}

/// One run id under two users names two runs: neither their holds nor their caps meet.
pub async fn the_same_run_of_two_users_is_two_runs(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let l = h.open(BudgetConfig::new().per_run_max_tokens(100)).await;
        let world = World::new();
        let (alice, bob) = (world.scope(&a), world.scope(&b));
        let hold = Hold::tokens(HoldKey::new(new_run(), 0), 60, 40);
        let first = l.held(&alice, &hold).await;
        let second = l.held(&bob, &hold).await;
        assert_ne!(first.id, second.id, "{b:?} was given the hold of {a:?}");
        assert_eq!(second.output_tokens, 40, "{b:?} has a run of its own");
        l.ledger().end_run(&alice, hold.key.run).await.must("end_run");
        let more = Hold::tokens(HoldKey::new(hold.key.run, 1), 1, 0);
        l.refused(&bob, &more, "ending one user's run does not end another's").await;
    }
    Passed
}

/// Another tenant's hold can be neither sent, nor extended, nor closed: it is not found, and stays as it was.
pub async fn a_foreign_hold_is_not_found(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(1_000)).await;
    for (a, b) in naughty::pairs().into_iter().chain([(named("alice"), named("mallory"))]) {
        let world = World::new();
        let (alice, mallory) = (world.scope(&a), world.scope(&b));
        let elsewhere = World::new().scope(&a);
        let id = l.held(&alice, &Hold::tokens(key(), 30, 20)).await.id;
        for stranger in [&mallory, &elsewhere] {
            let not_found = ErrorKind::NotFound;
            must_fail(l.ledger().sent(stranger, id).await, not_found, "sent on a foreign hold");
            let extend = l.ledger().extend(stranger, id, Duration::from_millis(1)).await;
            must_fail(extend, not_found, "extend on a foreign hold");
            for charge in [Charge::Refund, used(30, 20)] {
                must_fail(l.ledger().close(stranger, id, charge).await, not_found, "close on a foreign hold");
            }
            assert_eq!(l.usage(stranger).await.used.total_tokens(), 0, "nothing was charged to {stranger:?}");
        }
        let usage = l.usage(&alice).await;
        assert_eq!((usage.open_holds, usage.held_tokens), (1, 50), "the hold of {a:?} is untouched");
        assert!(!l.close(&alice, id, used(30, 20)).await.duplicate);
        let closed = l.ledger().close(&mallory, id, used(30, 20)).await;
        must_fail(closed, ErrorKind::NotFound, "close on a foreign hold that is closed");
    }
    Passed
}

/// A user whose quota is spent stops nobody else, under every hostile pair.
pub async fn a_full_user_stops_nobody_else(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let (full, other) = (world.scope(&a), world.scope(&b));
        l.spend(&full, 60, 40).await;
        l.refused(&full, &Hold::tokens(key(), 1, 0), "the quota is spent").await;
        let got = l.held(&other, &Hold::tokens(key(), 60, 40)).await;
        assert_eq!(got.output_tokens, 40, "{b:?} has a whole quota although {a:?} has none left");
    }
    Passed
}

/// A refusal by the cap for everybody names no other user.
pub async fn a_refusal_names_no_other_user(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().max_tokens(100)).await;
    let (world, name) = (World::new(), canary());
    l.spend(&world.user(&name), 60, 40).await;
    let no = l.refused(&world.user("bob"), &Hold::tokens(key(), 1, 0), "everybody's quota is spent").await;
    assert_eq!(no.entity, Entity::Global);
    assert!(!format!("{no:?} {no}").contains(&name), "a refusal names another user");
    let usage = format!("{:?}", l.usage(&world.user("bob")).await);
    assert!(!usage.contains(&name), "a usage report names another user");
    Passed
}

/// Erasing a user's data does not give the quota back, and the receipt says what was kept.
pub async fn forgetting_does_not_reset_a_quota(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    let world = World::new();
    l.spend(&world.user("alice"), 60, 40).await;
    let line = l.ledger().forget(&world.user_at("alice", 1), &Erase::everything()).await.must("forget");
    assert_eq!(line.store, l.ledger().store_name(), "the receipt names the store");
    assert!(!line.retained.is_empty(), "the receipt says that the quota is kept, and why");
    for scope in [world.user("alice"), world.user_at("alice", 1)] {
        l.refused(&scope, &Hold::tokens(key(), 1, 0), "the quota was spent before the erasure").await;
    }
    Passed
}

/// Erasing one user leaves another's counters and holds, under every hostile pair.
pub async fn forgetting_one_leaves_the_other(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let other = world.scope(&b);
        l.spend(&world.scope(&a), 10, 0).await;
        l.spend(&other, 20, 10).await;
        let id = l.held(&other, &Hold::tokens(key(), 5, 5)).await.id;
        l.ledger().forget(&world.scope_at(&a, 1), &Erase::everything()).await.must("forget");
        let usage = l.usage(&other).await;
        assert_eq!((usage.used.total_tokens(), usage.held_tokens), (30, 10), "{b:?} after erasing {a:?}");
        assert!(!l.close(&other, id, used(5, 5)).await.duplicate, "the hold of {b:?} is still open");
    }
    Passed
}

/// However many users come by, no user's spent quota is given back; a full table refuses newcomers instead.
pub async fn eviction_never_resets_a_quota(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100).max_users(2).max_spilled_users(4)).await;
    let world = World::new();
    let mut spent = Vec::new();
    for i in 0..30 {
        let scope = world.user(&format!("user_{i}"));
        match l.ledger().reserve(&scope, &Hold::tokens(key(), 60, 40)).await.must("reserve") {
            Reserve::Held(got) => {
                l.close(&scope, got.id, used(60, 40)).await;
                spent.push(scope);
            }
            Reserve::Refused(no) => {
                assert_eq!(
                    no.reason,
                    RefusalReason::Capacity,
                    "a newcomer is refused for want of room alone"
                );
            }
        }
    }
    assert!(spent.len() >= 2, "at least the users that fit are served");
    for scope in &spent {
        l.refused(scope, &Hold::tokens(key(), 1, 0), "the quota was spent before others came").await;
        assert_eq!(l.usage(scope).await.used.total_tokens(), 100, "{:?} is still counted", scope.owner());
    }
    Passed
}

/// An export has the tenant's own counters and nobody else's.
pub async fn exports_hold_their_own(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100_000_000)).await;
    let world = World::new();
    let names: Vec<String> = (0..3).map(|_| canary()).collect();
    for (i, name) in names.iter().enumerate() {
        l.spend(&world.user(name), 7_310_431 * (i as u64 + 1), 0).await;
    }
    for (i, name) in names.iter().enumerate() {
        let text = export_text(&export(l.ledger(), &world.user(name)).await);
        assert!(text.contains(&(7_310_431 * (i + 1)).to_string()), "the export has what was used: {text}");
        for (j, other) in names.iter().enumerate().filter(|(j, _)| *j != i) {
            assert!(!text.contains(other.as_str()), "the export names another user");
            assert!(
                !text.contains(&(7_310_431 * (j + 1)).to_string()),
                "the export has another user's count: {text}"
            );
        }
    }
    let nobody = export(l.ledger(), &world.user("nobody")).await;
    assert!(nobody.is_empty(), "an unknown user has nothing to export");
    Passed
}

/// An estimate is listed to its own user, and nobody else can reconcile it.
pub async fn a_foreign_estimate_is_not_found(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new()).await;
    let world = World::new();
    let (alice, bob) = (world.user("user_1"), world.user("user_10"));
    let got = l.held(&alice, &Hold::tokens(key(), 30, 30)).await;
    l.close(&alice, got.id, Charge::Used { usage: Usage::new(30, 9), estimated: true }).await;
    l.spend(&bob, 1, 1).await;
    for other in [&bob, &world.scope(&Identity::Anonymous), &World::new().user("user_1")] {
        assert_eq!(l.estimates(other).await, [], "{:?} sees none of {:?}", other.owner(), alice.owner());
        let tried = l.ledger().reconcile(other, got.id, Usage::new(0, 0)).await;
        must_fail(tried, ErrorKind::NotFound, "reconciling somebody else's estimate");
    }
    assert_eq!(l.usage(&alice).await.used, Usage::new(30, 9));
    assert_eq!(l.estimates(&alice).await.len(), 1);
    Passed
}
