//! Many holders at once, and holders that go away.

use futures_util::future::join_all;
use loomflow_core::{BudgetConfig, Charge, Hold, HoldKey, Reserve, Scope};

use super::{Harness, Instance, granted, key, used};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, abandon, again, new_run};

/// Reserves 50 holds at once, each by the scope `of(i)`, and returns the granted output of those that were granted.
async fn race(l: &Instance, hold: impl Fn() -> Hold, of: impl Fn(usize) -> Scope) -> Vec<u64> {
    let tasks = (0..50).map(|i| {
        let (ledger, scope, hold) = (l.shared(), of(i), hold());
        tokio::spawn(async move { ledger.reserve(&scope, &hold).await.must("a concurrent reserve") })
    });
    let mut all = Vec::new();
    for done in join_all(tasks).await {
        match done.unwrap_or_else(|e| panic!("a concurrent reserve panicked: {e}")) {
            Reserve::Held(got) => all.push(got.output_tokens),
            Reserve::Refused(_) => {}
        }
    }
    all
}

/// Of fifty holds at once on a cap for ten, ten are granted.
pub async fn reserves_at_once_never_exceed_a_user_cap(h: &Harness) -> Outcome {
    for _ in 0..3 {
        let l = h.open(BudgetConfig::new().per_user_max_tokens(1_000)).await;
        let alice = World::new().user("alice");
        let hold = || Hold::tokens(key(), 50, 50).with_min_output(50);
        let granted = race(&l, hold, |_| again(&alice)).await;
        assert_eq!(granted.len(), 10, "ten holds of 100 fit a cap of 1000");
        let line = l.line(&alice, "per_user_max_tokens").await;
        assert_eq!((line.used, line.held), (0, 1_000));
    }
    Passed
}

/// Of fifty users at once on a global cap for ten, ten are granted.
pub async fn reserves_at_once_never_exceed_the_global_cap(h: &Harness) -> Outcome {
    for _ in 0..3 {
        let l = h.open(BudgetConfig::new().max_tokens(1_000).per_user_max_tokens(500)).await;
        let world = World::new();
        let hold = || Hold::tokens(key(), 50, 50).with_min_output(50);
        let granted = race(&l, hold, |i| world.user(&format!("user_{i}"))).await;
        assert_eq!(granted.len(), 10, "ten holds of 100 fit a global cap of 1000");
    }
    Passed
}

/// Holds that take what is left never take more than there is, together.
pub async fn partial_grants_at_once_never_exceed(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(1_000)).await;
    let alice = World::new().user("alice");
    let granted = race(&l, || Hold::tokens(key(), 10, 33), |_| again(&alice)).await;
    let total: u64 = granted.iter().map(|output| output + 10).sum();
    assert!(total <= 1_000, "{total} tokens were granted on a cap of 1000");
    assert!(total > 1_000 - 11, "what fits is granted, but {total} of 1000 were");
    let line = l.line(&alice, "per_user_max_tokens").await;
    assert_eq!((line.used, line.held), (0, total), "what is granted is what is held");
    Passed
}

/// One key that is reserved fifty times at once is one hold.
pub async fn the_same_key_at_once_holds_once(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(1_000)).await;
    let alice = World::new().user("alice");
    let hold = Hold::tokens(key(), 50, 50);
    let granted = race(&l, || hold, |_| again(&alice)).await;
    assert_eq!(granted.len(), 50, "every call gets the hold");
    let usage = l.usage(&alice).await;
    assert_eq!((usage.open_holds, usage.held_tokens), (1, 100), "and there is one");
    Passed
}

/// A hold that is closed twenty times at once is counted once.
pub async fn closes_at_once_count_once(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new()).await;
    let alice = World::new().user("alice");
    for _ in 0..5 {
        let before = l.usage(&alice).await.used.total_tokens();
        let id = l.held(&alice, &Hold::tokens(key(), 50, 50)).await.id;
        let tasks = (0..20).map(|_| {
            let (ledger, scope) = (l.shared(), again(&alice));
            tokio::spawn(
                async move { ledger.close(&scope, id, used(50, 7)).await.must("a concurrent close") },
            )
        });
        let mut first = 0;
        for done in join_all(tasks).await {
            let settled = done.unwrap_or_else(|e| panic!("a concurrent close panicked: {e}"));
            first += usize::from(!settled.duplicate);
        }
        assert_eq!(first, 1, "one close counts, the others are duplicates");
        assert_eq!(l.usage(&alice).await.used.total_tokens(), before + 57);
    }
    Passed
}

/// Under load of holds, refunds and charges by several users, use and holds never exceed a cap and the sums agree.
pub async fn the_books_balance_under_load(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().max_tokens(4_000).per_user_max_tokens(600)).await;
    let world = World::new();
    let users: Vec<Scope> = (0..8).map(|i| world.user(&format!("user_{i}"))).collect();
    let tasks = (0..32_u64).map(|task| {
        let (l, ledger, scope) = (l.clone(), l.shared(), again(&users[task as usize % 8]));
        tokio::spawn(async move {
            let mut charged = 0;
            for step in 0..20_u64 {
                let hold = Hold::tokens(key(), 10 + step, 20);
                let Reserve::Held(got) = ledger.reserve(&scope, &hold).await.must("reserve") else {
                    continue;
                };
                // Looked at while the hold is open, and with it those of the other tasks.
                let line = l.line(&scope, "per_user_max_tokens").await;
                assert!(line.used + line.held <= line.limit, "at one instant {line:?}");
                if (task + step) % 3 == 0 {
                    ledger.close(&scope, got.id, Charge::Refund).await.must("refund");
                } else {
                    ledger.sent(&scope, got.id).await.must("sent");
                    let output = got.output_tokens / 2;
                    ledger.close(&scope, got.id, used(10 + step, output)).await.must("close");
                    charged += 10 + step + output;
                }
            }
            (task as usize % 8, charged)
        })
    });
    let mut expected = [0_u64; 8];
    for done in join_all(tasks).await {
        let (user, charged) = done.unwrap_or_else(|e| panic!("a concurrent spender failed: {e}"));
        expected[user] += charged;
    }
    for (user, expected) in users.iter().zip(expected) {
        let usage = l.usage(user).await;
        assert!(expected <= 600, "{:?} was charged {expected} on a cap of 600", user.owner());
        assert_eq!(usage.used.total_tokens(), expected, "what {:?} was charged", user.owner());
        assert_eq!((usage.held_tokens, usage.open_holds), (0, 0), "no hold is left behind");
    }
    Passed
}

/// A call whose caller goes away, at whatever point, is done whole or not at all, and can be made again.
pub async fn dropped_calls_are_whole_or_absent(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(10_000)).await;
    let alice = World::new().user("alice");
    for polls in 0..12 {
        let hold = Hold::tokens(HoldKey::new(new_run(), 0), 30, 20);
        abandon(l.ledger().reserve(&alice, &hold), polls).await;
        let held = l.usage(&alice).await.held_tokens;
        assert!(held == 0 || held == 50, "half a hold is kept: {held} tokens");
        let got = granted(l.ledger().reserve(&alice, &hold).await.must("reserve again"));
        assert_eq!(l.usage(&alice).await.held_tokens, 50, "dropped after {polls} polls, then repeated");
        abandon(l.ledger().sent(&alice, got.id), polls).await;
        l.ledger().sent(&alice, got.id).await.must("sent again");
        let before = l.usage(&alice).await.used.total_tokens();
        abandon(l.ledger().close(&alice, got.id, used(30, 5)), polls).await;
        l.close(&alice, got.id, used(30, 5)).await;
        let usage = l.usage(&alice).await;
        let counted = usage.used.total_tokens() - u64::from(polls) * 35;
        assert!(before <= usage.used.total_tokens());
        assert_eq!((counted, usage.held_tokens), (35, 0), "counted once after {polls} polls");
    }
    Passed
}
