//! Holds whose owner is gone.

use std::time::Duration;

use loomflow_core::{BudgetConfig, Hold, HoldId, Scope, Usage, UsageReport};

use super::{Harness, Instance, key, used};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, pass};

/// Short enough to wait for, long enough not to run out between two calls on a slow machine.
const LEASE: Duration = Duration::from_secs(1);

/// A hold of 30 and 20 tokens whose lease runs out, sent or not.
pub(super) async fn expired(l: &Instance, scope: &Scope, sent: bool) -> (HoldId, UsageReport) {
    let got = l.held(scope, &Hold::tokens(key(), 30, 20).with_lease(LEASE)).await;
    if sent {
        l.ledger().sent(scope, got.id).await.must("sent");
    }
    if let Some(clock) = l.clock() {
        // Enough where leases follow the settable clock; where they follow a monotonic one, real time must pass as well.
        clock.advance(LEASE + Duration::from_millis(1));
    }
    for _ in 0..40 {
        let usage = l.usage(scope).await;
        if usage.open_holds == 0 {
            return (got.id, usage);
        }
        tokio::time::sleep(LEASE / 5).await;
    }
    panic!("a hold whose lease of {LEASE:?} ran out is still open: {:?}", l.usage(scope).await);
}

/// A hold that was never sent is given back when its lease runs out.
pub async fn an_expired_hold_is_refunded(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(50).max_tokens(50)).await;
    let alice = World::new().user("alice");
    let (_, usage) = expired(&l, &alice, false).await;
    assert_eq!((usage.held_tokens, usage.used.total_tokens(), usage.estimated_tokens), (0, 0, 0));
    let got = l.held(&alice, &Hold::tokens(key(), 30, 20).with_min_output(20)).await;
    assert_eq!(got.output_tokens, 20, "what was given back can be held again, under every cap");
    Passed
}

/// A hold that was sent is charged its estimate when its lease runs out, and the charge is marked.
pub async fn an_expired_sent_hold_is_charged_its_estimate(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    let alice = World::new().user("alice");
    let (_, usage) = expired(&l, &alice, true).await;
    let charged = usage.used.total_tokens();
    assert!(
        (30..=50).contains(&charged),
        "at least the prompt and at most the hold is charged, not {charged}"
    );
    assert_eq!(
        (usage.estimated_tokens, usage.held_tokens),
        (charged, 0),
        "the charge is marked as an estimate"
    );
    Passed
}

/// An actual charge that arrives after the expiry replaces the estimate, once.
pub async fn an_actual_charge_replaces_the_estimate(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    let alice = World::new().user("alice");
    let (hold, _) = expired(&l, &alice, true).await;
    assert!(l.close(&alice, hold, used(30, 4)).await.duplicate, "the expiry closed it already");
    for _ in 0..2 {
        let usage = l.usage(&alice).await;
        assert_eq!((usage.used, usage.estimated_tokens), (Usage::new(30, 4), 0), "the actual charge stands");
        l.close(&alice, hold, used(30, 4)).await;
    }
    assert_eq!(l.line(&alice, "per_user_max_tokens").await.used, 34, "against the cap, too");
    Passed
}

/// Extending moves the end of a lease, so a long call keeps its hold.
pub async fn an_extended_hold_stays(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    let alice = World::new().user("alice");
    let got = l.held(&alice, &Hold::tokens(key(), 30, 20).with_lease(LEASE)).await;
    l.ledger().extend(&alice, got.id, Duration::from_secs(600)).await.must("extend");
    pass(l.clock(), LEASE + Duration::from_millis(500)).await;
    let usage = l.usage(&alice).await;
    assert_eq!((usage.open_holds, usage.held_tokens), (1, 50), "the hold stays until its new end");
    assert!(!l.close(&alice, got.id, used(30, 4)).await.duplicate);
    Passed
}

/// What a user's expired hold kept aside is there again for all others, although that user never comes back.
pub async fn an_expired_hold_of_another_frees_the_global_cap(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().max_tokens(100)).await;
    let world = World::new();
    let (gone, here) = (world.user("gone"), world.user("here"));
    let lost = l.held(&gone, &Hold::tokens(key(), 40, 20).with_min_output(20).with_lease(LEASE)).await;
    let wanted = |n| Hold::tokens(key(), n, 0);
    l.refused(&here, &wanted(41), "60 of 100 are held").await;
    pass(l.clock(), LEASE + Duration::from_millis(500)).await;
    l.held(&here, &wanted(100)).await;
    l.close(&gone, lost.id, used(1, 1)).await;
    let all = l.ledger().namespace_usage(&here).await.must("namespace_usage");
    assert_eq!((all.used.total_tokens(), all.held_tokens), (2, 100), "a late charge is never lost");
    Passed
}
