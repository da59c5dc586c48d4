//! Correcting what was taken by what was used.

use loomflow_core::{Amounts, Resource, Scope};

use super::{Harness, Instance, slow_tokens, tokens};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World};

async fn settle(l: &Instance, scope: &Scope, taken: u64, used: u64) {
    l.limiter().settle(scope, &tokens(taken), &tokens(used)).await.must("settle");
}

/// What was taken and not used can be taken again.
pub async fn the_rest_is_given_back(h: &Harness) -> Outcome {
    let l = h.open(slow_tokens(100)).await;
    let alice = World::new().user("alice");
    l.admitted(&alice, &tokens(80), "it fits").await;
    settle(&l, &alice, 80, 30).await;
    l.has_tokens_left(&alice, 70, "30 of 100 were used").await;
    settle(&l, &alice, 70, 0).await;
    l.has_tokens_left(&alice, 70, "the 70 were not used").await;
    settle(&l, &alice, 70, 70).await;
    l.limited(&alice, &tokens(1), "all that was taken was used").await;
    Passed
}

/// Giving back more than is out, however often, leaves a limit as it was at first.
pub async fn no_limit_becomes_better_than_fresh(h: &Harness) -> Outcome {
    let l = h.open(slow_tokens(100)).await;
    let world = World::new();
    let (alice, bob) = (world.user("alice"), world.user("bob"));
    l.admitted(&alice, &tokens(10), "it fits").await;
    for _ in 0..5 {
        settle(&l, &alice, 90, 0).await;
        settle(&l, &bob, u64::MAX, 0).await;
    }
    l.has_tokens_left(&alice, 100, "a burst and no more").await;
    l.has_tokens_left(&bob, 100, "a burst and no more for one who took nothing").await;
    Passed
}

/// What was used beyond what was taken has to come back first.
pub async fn a_debt_is_waited_for(h: &Harness) -> Outcome {
    let l = h.open(slow_tokens(100)).await;
    let alice = World::new().user("alice");
    l.admitted(&alice, &tokens(10), "it fits").await;
    settle(&l, &alice, 10, 60).await;
    l.has_tokens_left(&alice, 40, "60 were used").await;
    settle(&l, &alice, 40, 70).await;
    let after = l.limited(&alice, &tokens(1), "30 are owed").await.retry_after.expect("when");
    let minutes = after.as_secs_f64() / 60.0;
    assert!((29.0..=31.0).contains(&minutes), "31 tokens come back in 31 minutes, not in {minutes}");
    Passed
}

/// No debt is deeper than one burst below nothing.
pub async fn a_debt_is_bounded(h: &Harness) -> Outcome {
    let l = h.open(slow_tokens(10)).await;
    let alice = World::new().user("alice");
    for _ in 0..5 {
        settle(&l, &alice, 0, u64::MAX).await;
        settle(&l, &alice, 1, 1 << 50).await;
    }
    let after = l.limited(&alice, &tokens(1), "more is owed than can be").await.retry_after.expect("when");
    assert!(
        after.as_secs() <= 11 * 60,
        "a burst of ten and the one asked for come back in eleven minutes: {after:?}"
    );
    assert!(after.as_secs() >= 9 * 60, "a whole burst is owed: {after:?}");
    Passed
}

/// A resource in which taken and used agree is left alone.
pub async fn only_what_differs_is_corrected(h: &Harness) -> Outcome {
    let l = h.open(slow_tokens(100).per_user_model_calls_per_minute(1).per_user_model_call_burst(1)).await;
    let alice = World::new().user("alice");
    let taken = Amounts::model_call(50);
    l.admitted(&alice, &taken, "it fits").await;
    l.limiter().settle(&alice, &taken, &taken.with_tokens(20)).await.must("settle");
    let limited = l.limited(&alice, &Amounts::model_call(1), "the call was made").await;
    assert_eq!(limited.resource, Resource::ModelCalls);
    l.limiter().settle(&alice, &taken.with_tokens(20), &Amounts::default()).await.must("settle");
    l.admitted(&alice, &Amounts::model_call(100), "neither the call nor its tokens were used").await;
    Passed
}

/// The limit of all users together is corrected with the user's, and where the user has none.
pub async fn the_global_limit_is_corrected_too(h: &Harness) -> Outcome {
    let l = h.open(slow_tokens(100).global_tokens_per_minute(1).global_token_burst(120)).await;
    let world = World::new();
    l.admitted(&world.user("alice"), &tokens(100), "it fits").await;
    l.limited(&world.user("bob"), &tokens(21), "20 of all are left").await;
    settle(&l, &world.user("alice"), 100, 40).await;
    l.has_tokens_left(&world.user("bob"), 80, "40 of all were used").await;
    let l = h
        .open(loomflow_core::RateLimitConfig::new().global_tokens_per_minute(1).global_token_burst(50))
        .await;
    let world = World::new();
    l.admitted(&world.user("alice"), &tokens(50), "it fits").await;
    settle(&l, &world.user("alice"), 50, 45).await;
    l.has_tokens_left(&world.user("bob"), 5, "45 of all were used").await;
    Passed
}
