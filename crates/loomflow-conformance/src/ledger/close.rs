//! Ending a hold and counting.

use std::time::Duration;

use loomflow_core::{BudgetConfig, Charge, Entity, ErrorKind, Hold, HoldId, NanoUsd, Usage};

use super::{Harness, key, used};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, must_fail};

/// Closing counts what was really used, in every part, and gives back the rest of the hold.
pub async fn counts_what_was_used(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    let alice = World::new().user("alice");
    let usage = Usage::new(30, 5).with_cache(10, 7).with_cost(NanoUsd(12));
    for times in 1..=2 {
        let got = l.held(&alice, &Hold::tokens(key(), 30, 30)).await;
        l.ledger().sent(&alice, got.id).await.must("sent");
        let settled = l.close(&alice, got.id, Charge::Used { usage, estimated: false }).await;
        assert_eq!((settled.duplicate, settled.excess_tokens), (false, 0));
        let report = l.usage(&alice).await;
        let mut expected = Usage::default();
        (0..times).for_each(|_| expected += usage);
        assert_eq!(report.used, expected, "cached tokens and cost included");
        assert_eq!((report.held_tokens, report.open_holds, report.estimated_tokens), (0, 0, 0));
        let line = l.line(&alice, "per_user_max_tokens").await;
        assert_eq!((line.entity, line.limit, line.used, line.held), (Entity::User, 100, 35 * times, 0));
    }
    Passed
}

/// Closing again, with whatever charge, counts nothing and says `duplicate`.
pub async fn counts_once(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    let alice = World::new().user("alice");
    let got = l.held(&alice, &Hold::tokens(key(), 30, 30)).await;
    assert!(!l.close(&alice, got.id, used(30, 5)).await.duplicate);
    for charge in [used(30, 5), used(90, 90), Charge::Refund] {
        assert!(l.close(&alice, got.id, charge).await.duplicate, "{charge:?} comes too late");
        assert_eq!(l.usage(&alice).await.used, Usage::new(30, 5), "{charge:?} changes nothing");
    }
    let got = l.held(&alice, &Hold::tokens(key(), 30, 30)).await;
    l.close(&alice, got.id, Charge::Refund).await;
    assert!(l.close(&alice, got.id, Charge::Refund).await.duplicate);
    assert_eq!(l.usage(&alice).await.held_tokens, 0);
    Passed
}

/// A refund gives back all that was held, and counts nothing.
pub async fn a_refund_gives_everything_back(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100).max_tokens(100)).await;
    let alice = World::new().user("alice");
    for _ in 0..3 {
        let got = l.held(&alice, &Hold::tokens(key(), 50, 50)).await;
        l.close(&alice, got.id, Charge::Refund).await;
    }
    let usage = l.usage(&alice).await;
    assert_eq!((usage.used.total_tokens(), usage.held_tokens, usage.open_holds), (0, 0, 0));
    Passed
}

/// What was used beyond the hold, also beyond the cap, is counted, reported, and never lost.
pub async fn an_excess_is_recorded(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    let alice = World::new().user("alice");
    let got = l.held(&alice, &Hold::tokens(key(), 10, 10)).await;
    let settled = l.close(&alice, got.id, used(10, 30)).await;
    assert_eq!((settled.excess_tokens, settled.duplicate), (20, false));
    assert_eq!(l.usage(&alice).await.used.total_tokens(), 40, "all of it is counted");
    let got = l.held(&alice, &Hold::tokens(key(), 50, 10)).await;
    assert_eq!(l.close(&alice, got.id, used(50, 90)).await.excess_tokens, 80);
    let line = l.line(&alice, "per_user_max_tokens").await;
    assert_eq!((line.used, line.held), (180, 0), "also what is above the cap");
    let no = l.refused(&alice, &Hold::tokens(key(), 0, 1), "the cap is exceeded already").await;
    assert_eq!((no.limit, no.used), (100, 180));
    Passed
}

/// What was charged by estimate is counted like the rest and reported as estimated.
pub async fn marks_estimates(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new()).await;
    let alice = World::new().user("alice");
    for estimated in [true, false] {
        let got = l.held(&alice, &Hold::tokens(key(), 30, 30)).await;
        l.close(&alice, got.id, Charge::Used { usage: Usage::new(20, 7), estimated }).await;
    }
    let usage = l.usage(&alice).await;
    assert_eq!((usage.used.total_tokens(), usage.estimated_tokens), (54, 27));
    Passed
}

/// A hold that is closed can be neither sent nor extended: it is not found.
pub async fn a_closed_hold_can_be_neither_sent_nor_extended(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new()).await;
    let alice = World::new().user("alice");
    for charge in [Charge::Refund, used(1, 1)] {
        let got = l.held(&alice, &Hold::tokens(key(), 30, 30)).await;
        l.close(&alice, got.id, charge).await;
        must_fail(l.ledger().sent(&alice, got.id).await, ErrorKind::NotFound, "sent on a closed hold");
        let extend = l.ledger().extend(&alice, got.id, Duration::from_secs(60)).await;
        must_fail(extend, ErrorKind::NotFound, "extend on a closed hold");
    }
    assert_eq!(l.usage(&alice).await.open_holds, 0);
    Passed
}

/// A hold that never was is not found.
pub async fn an_unknown_hold_is_not_found(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new()).await;
    let world = World::new();
    for scope in [world.user("nobody"), world.user("somebody")] {
        must_fail(l.ledger().sent(&scope, HoldId::fresh()).await, ErrorKind::NotFound, "sent");
        let extend = l.ledger().extend(&scope, HoldId::fresh(), Duration::from_secs(60)).await;
        must_fail(extend, ErrorKind::NotFound, "extend");
        l.spend(&world.user("somebody"), 1, 1).await;
    }
    Passed
}

/// A cap's warning is given by the call that crosses the line, once, and by no other.
pub async fn warnings_are_given_once(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100).soft_warning_at(0.8)).await;
    let alice = World::new().user("alice");
    let first = l.held(&alice, &Hold::tokens(key(), 40, 39)).await;
    assert!(first.warnings.is_empty(), "79 of 100 is below the line");
    let second = l.held(&alice, &Hold::tokens(key(), 1, 0)).await;
    let [warning] = &second.warnings[..] else {
        panic!("80 of 100 reaches the line, and one cap warns: {:?}", second.warnings);
    };
    assert_eq!((warning.entity, warning.cap, warning.limit), (Entity::User, "per_user_max_tokens", 100));
    assert_eq!(warning.used, 80, "used and held count");
    let third = l.held(&alice, &Hold::tokens(key(), 1, 0)).await;
    assert!(third.warnings.is_empty(), "the line was crossed before");
    let settled = l.close(&alice, first.id, used(40, 39)).await;
    assert!(settled.warnings.is_empty(), "settling does not warn again");
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    let got = l.held(&alice, &Hold::tokens(key(), 10, 10)).await;
    let settled = l.close(&alice, got.id, used(10, 80)).await;
    assert_eq!(settled.warnings.len(), 1, "an excess that crosses the line warns when it is counted");
    Passed
}

/// A charge that was estimated is listed, by its caller's estimate and by an expiry alike, until it is reconciled.
pub async fn estimates_are_listed(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new()).await;
    let alice = World::new().user("alice");
    assert_eq!(l.estimates(&alice).await, [], "nobody estimated anything");
    let told = l.held(&alice, &Hold::tokens(key(), 30, 30)).await;
    l.close(&alice, told.id, used(20, 7)).await;
    let guess = Hold::tokens(key(), 40, 40);
    let guessed = l.held(&alice, &guess).await;
    l.close(&alice, guessed.id, Charge::Used { usage: Usage::new(40, 9), estimated: true }).await;
    let [only] = &l.estimates(&alice).await[..] else { panic!("one of two charges was estimated") };
    assert_eq!((only.hold, only.key, only.charged), (guessed.id, guess.key, Usage::new(40, 9)));
    assert!(!only.expired, "its caller estimated it");
    let (expired, usage) = super::lease::expired(&l, &alice, true).await;
    assert_eq!(usage.estimated_tokens, 49 + 50);
    let listed = l.estimates(&alice).await;
    let found: Vec<_> = listed.iter().map(|e| (e.hold, e.expired)).collect();
    assert!(found.contains(&(guessed.id, false)) && found.contains(&(expired, true)), "{found:?}");
    assert_eq!(found.len(), 2);
    Passed
}

/// The provider's invoice takes the place of an estimate, in every counter, and a second one changes nothing.
pub async fn an_invoice_replaces_an_estimate(h: &Harness) -> Outcome {
    let budget = BudgetConfig::new().per_user_max_tokens(1_000).max_tokens(1_000).per_run_max_tokens(1_000);
    let l = h.open(budget).await;
    let alice = World::new().user("alice");
    let (expired, _) = super::lease::expired(&l, &alice, true).await;
    let guessed = l.held(&alice, &Hold::tokens(key(), 40, 40)).await;
    l.close(&alice, guessed.id, Charge::Used { usage: Usage::new(40, 9), estimated: true }).await;
    for (n, (hold, input, output, total)) in
        [(expired, 30, 4, 34 + 49), (guessed.id, 40, 60, 34 + 100)].into_iter().enumerate()
    {
        let invoiced = Usage::new(input, output).with_cost(NanoUsd(5));
        for again in [false, true] {
            let settled = l.ledger().reconcile(&alice, hold, invoiced).await.must("reconcile");
            assert_eq!(settled.duplicate, again, "the same invoice twice counts once");
            let usage = l.usage(&alice).await;
            assert_eq!((usage.used.total_tokens(), usage.open_holds), (total, 0));
            assert_eq!(usage.used.cost_usd, NanoUsd(5 * (n as u64 + 1)));
            assert_eq!(l.line(&alice, "per_user_max_tokens").await.used, total);
            let all = l.ledger().namespace_usage(&alice).await.must("namespace_usage");
            assert_eq!((all.used.total_tokens(), all.held_tokens), (total, 0), "all users together, too");
        }
    }
    assert_eq!((l.estimates(&alice).await, l.usage(&alice).await.estimated_tokens), (Vec::new(), 0));
    Passed
}

/// Only an estimate can be reconciled: not an open hold, not one that the provider reported on, not one that never was.
pub async fn only_an_estimate_can_be_reconciled(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new()).await;
    let alice = World::new().user("alice");
    let got = l.held(&alice, &Hold::tokens(key(), 30, 30)).await;
    l.ledger().sent(&alice, got.id).await.must("sent");
    let open = l.ledger().reconcile(&alice, got.id, Usage::new(1, 1)).await;
    must_fail(open, ErrorKind::Conflict, "reconciling an open hold");
    l.close(&alice, got.id, used(20, 7)).await;
    let settled = l.ledger().reconcile(&alice, got.id, Usage::new(1, 1)).await.must("reconcile");
    assert!(settled.duplicate, "the provider reported on it");
    let unknown = l.ledger().reconcile(&alice, HoldId::fresh(), Usage::new(1, 1)).await;
    must_fail(unknown, ErrorKind::NotFound, "reconciling a hold that never was");
    assert_eq!(l.usage(&alice).await.used, Usage::new(20, 7));
    Passed
}

/// What all users of a namespace together used is what each of them used, and nobody's of another namespace.
pub async fn the_namespace_total_is_the_sum(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().max_tokens(10_000)).await;
    let (here, there) = (World::new(), World::new());
    for (n, user) in (1..).zip(["alice", "bob", "carol"]) {
        l.spend(&here.user(user), 10 * n, n).await;
    }
    l.spend(&there.user("alice"), 500, 500).await;
    l.held(&here.user("bob"), &Hold::tokens(key(), 7, 0)).await;
    let all = l.ledger().namespace_usage(&here.user("nobody")).await.must("namespace_usage");
    assert_eq!((all.used.total_tokens(), all.held_tokens), (66, 7));
    let [line] = &all.windows[..] else { panic!("one cap of all users together is set: {:?}", all.windows) };
    assert_eq!((line.entity, line.cap, line.used, line.held), (Entity::Global, "max_tokens", 66, 7));
    Passed
}
