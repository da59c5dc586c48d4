//! Many askers at once, and askers that go away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use loomflow_core::{Amounts, RateLimitConfig, Scope, Taken};
use tokio::sync::Barrier;

use super::{Harness, Instance, slow_runs, slow_tokens, tokens};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, abandon, again};

/// Asks fifty times at once, each by the scope `of(i)`; how many were let through.
async fn race(l: &Instance, ask: Amounts, of: impl Fn(usize) -> Scope) -> usize {
    let together = Arc::new(Barrier::new(50));
    let tasks = (0..50).map(|i| {
        let (limiter, scope, together) = (l.shared(), of(i), together.clone());
        tokio::spawn(async move {
            together.wait().await;
            limiter.take(&scope, &ask).await.must("a concurrent take") == Taken::Admitted
        })
    });
    let all = join_all(tasks).await.into_iter();
    all.filter(|done| *done.as_ref().unwrap_or_else(|e| panic!("a concurrent take panicked: {e}"))).count()
}

/// Of fifty at once on a burst of ten, ten are let through.
pub async fn fifty_at_once_admit_a_burst(h: &Harness) -> Outcome {
    for _ in 0..3 {
        let l = h.open(slow_runs(10)).await;
        let alice = World::new().user("alice");
        let admitted = race(&l, Amounts::run(), |_| again(&alice)).await;
        assert_eq!(admitted, 10, "a burst of ten lets ten through");
        l.limited(&alice, &Amounts::run(), "and no more").await;
    }
    Passed
}

/// Of fifty users at once on a burst of ten for all, ten are let through.
pub async fn fifty_users_at_once_admit_a_global_burst(h: &Harness) -> Outcome {
    for _ in 0..3 {
        let l = h.open(slow_runs(3).global_rps(1.0 / 60.0).global_burst(10)).await;
        let world = World::new();
        let admitted = race(&l, Amounts::run(), |i| world.user(&format!("user_{i}"))).await;
        assert_eq!(admitted, 10, "a burst of ten for all lets ten through");
        l.limited(&world.user("late"), &Amounts::run(), "and no more").await;
    }
    Passed
}

/// Askers that are refused for one resource take nothing of another meanwhile.
pub async fn all_or_nothing_at_once(h: &Harness) -> Outcome {
    let config = slow_tokens(1_000).per_user_model_calls_per_minute(1).per_user_model_call_burst(7);
    let l = h.open(config.global_tokens_per_minute(1).global_token_burst(2_000)).await;
    let world = World::new();
    let alice = world.user("alice");
    assert_eq!(race(&l, Amounts::model_call(20), |_| again(&alice)).await, 7, "seven calls fit");
    l.has_tokens_left(&alice, 1_000 - 7 * 20, "the forty-three that were refused took no tokens").await;
    l.has_tokens_left(&world.user("bob"), 1_000, "bob has a burst of his own").await;
    Passed
}

/// Under load in real time, no span has more than the burst and what the rate brings in it. Each admission happened
/// somewhere between its question and its answer, so that every span is taken at its longest.
pub async fn under_load_no_window_has_more_than_rate_and_burst(h: &Harness) -> Outcome {
    let (interval, burst) = (Duration::from_millis(5), 10);
    let l = h.open(RateLimitConfig::new().per_user_rps(200.0).burst(burst)).await;
    if l.clock().is_some() {
        return Outcome::unsupported("time that passes by itself (it is turned)");
    }
    let alice = World::new().user("alice");
    let until = Instant::now() + Duration::from_millis(600);
    let tasks = (0..8).map(|_| {
        let (limiter, scope) = (l.shared(), again(&alice));
        tokio::spawn(async move {
            let mut log = Vec::new();
            while Instant::now() < until {
                let asked = Instant::now();
                let taken = limiter.take(&scope, &Amounts::run()).await.must("take");
                if taken == Taken::Admitted {
                    log.push((asked, Instant::now()));
                } else {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            log
        })
    });
    let mut log: Vec<(Instant, Instant)> = Vec::new();
    for done in join_all(tasks).await {
        log.extend(done.unwrap_or_else(|e| panic!("a concurrent take panicked: {e}")));
    }
    assert!(log.len() as u64 >= burst, "a burst is let through at least");
    log.sort_unstable();
    for (i, (since, _)) in log.iter().enumerate() {
        for (_, until) in &log[i..] {
            let inside = log.iter().filter(|(asked, answered)| asked >= since && answered <= until).count();
            let longest = until.duration_since(*since).as_nanos() / interval.as_nanos();
            let allowed = u128::from(burst) + longest;
            assert!(inside as u128 <= allowed, "{inside} within {:?}", until.duration_since(*since));
        }
    }
    Passed
}

/// A call whose caller goes away, at whatever point, took all or nothing.
pub async fn dropped_calls_are_whole_or_absent(h: &Harness) -> Outcome {
    let config = slow_tokens(1_000).per_user_model_calls_per_minute(1).per_user_model_call_burst(100);
    for polls in 0..12 {
        let l = h.open(config.clone()).await;
        let alice = World::new().user("alice");
        let ask = Amounts::model_call(10);
        abandon(l.limiter().take(&alice, &ask), polls).await;
        // What the server was told before the caller went may still be under way.
        let mut calls = 0;
        while l.ask(&alice, &Amounts::model_call(0)).await.is_ok() {
            calls += 1;
        }
        assert!((99..=100).contains(&calls), "{calls} calls were left after one was dropped");
        l.has_tokens_left(
            &alice,
            1_000 - 10 * (100 - calls),
            "the tokens went with the call, or stayed with it",
        )
        .await;
        let (taken, used) = (tokens(500), tokens(100));
        abandon(l.limiter().settle(&alice, &taken, &used), polls).await;
        let mut left = 0;
        while l.ask(&alice, &tokens(100)).await.is_ok() {
            left += 100;
        }
        assert!(left == 0 || left == 400, "half a correction: {left}");
    }
    Passed
}
