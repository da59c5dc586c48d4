//! What is let through, when, and what is said to whoever is not.

use std::time::Duration;

use loomflow_core::{Amounts, Entity, LimitReason, Limited, RateLimitConfig, Resource, Scope, Tats};

use super::{Harness, Instance, slow_runs, slow_tokens, tokens};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World};

/// A burst is let through, and the next is refused by a limit that is named.
pub async fn a_burst_is_admitted_and_no_more(h: &Harness) -> Outcome {
    let l = h.open(slow_runs(5)).await;
    let alice = World::new().user("alice");
    l.drain_runs(&alice, 5, "a burst of five").await;
    let limited = l.limited(&alice, &Amounts::run(), "still").await;
    assert_eq!((limited.reason, limited.entity), (LimitReason::Rate, Entity::User));
    assert_eq!((limited.resource, limited.limit), (Resource::Runs, "per_user_rps"));
    assert_eq!(limited.burst, 5);
    let after = limited.retry_after.expect("a refusal by rate says when");
    assert!(after > Duration::ZERO && after <= Duration::from_secs(60), "one comes back within {after:?}");
    Passed
}

/// What a refusal says is exact: a microsecond earlier it does not fit, and then it does.
pub async fn a_refusal_says_exactly_when(h: &Harness) -> Outcome {
    let l = h.open(RateLimitConfig::new().per_user_tokens_per_minute(60_000).per_user_token_burst(100)).await;
    let Some(clock) = l.clock() else { return Outcome::unsupported("a clock to turn") };
    let alice = World::new().user("alice");
    l.admitted(&alice, &tokens(100), "a burst").await;
    for n in [1, 30, 100] {
        let after = l.limited(&alice, &tokens(n), "nothing is left").await.retry_after.expect("when");
        assert_eq!(after, Duration::from_millis(n), "a token comes back every millisecond");
        clock.advance(after - Duration::from_micros(1));
        l.limited(&alice, &tokens(n), "a microsecond too early").await;
        clock.advance(Duration::from_micros(1));
        l.admitted(&alice, &tokens(n), "as was said").await;
    }
    Passed
}

/// Whoever waits as long as was said is let through, one at a time.
pub async fn what_was_taken_comes_back_at_the_rate(h: &Harness) -> Outcome {
    let l = h.open(RateLimitConfig::new().per_user_rps(20.0).burst(2)).await;
    let alice = World::new().user("alice");
    for _ in 0..8 {
        if let Err(limited) = l.ask(&alice, &Amounts::run()).await {
            wait_as_told(&l, &alice, limited.retry_after.expect("when")).await;
        }
    }
    Passed
}

/// Waits as long as was said, and is let through; a server's clock may tick a little apart from ours.
async fn wait_as_told(l: &Instance, scope: &Scope, mut after: Duration) {
    for _ in 0..5 {
        l.pass(after).await;
        match l.ask(scope, &Amounts::run()).await {
            Ok(()) => return,
            Err(limited) => after = limited.retry_after.expect("when"),
        }
        assert!(
            after < Duration::from_millis(5),
            "whoever waits as long as was said is let through, not {after:?} later"
        );
    }
    panic!("whoever waits as long as was said, five times over, is let through");
}

/// Along a crooked walk through time, no span has more than the burst and what the rate brings in it.
pub async fn no_window_has_more_than_rate_and_burst(h: &Harness) -> Outcome {
    let (interval, burst) = (Duration::from_millis(10), 7_u64);
    let l =
        h.open(RateLimitConfig::new().per_user_tokens_per_minute(6_000).per_user_token_burst(burst)).await;
    let Some(clock) = l.clock() else { return Outcome::unsupported("a clock to turn") };
    let alice = World::new().user("alice");
    let mut log: Vec<(Duration, u64)> = Vec::new();
    let (mut at, mut draw) = (Duration::ZERO, 1_u64);
    for _ in 0..600 {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let step = Duration::from_micros((draw >> 33) % 25_000);
        clock.advance(step);
        at += step;
        let n = (draw >> 20) % burst + 1;
        let fits = fits(&log, at, n, interval, burst);
        assert_eq!(l.ask(&alice, &tokens(n)).await.is_ok(), fits, "{n} at {at:?} after {:?}", log.last());
        if fits {
            log.push((at, n));
        }
    }
    Passed
}

/// Whether `n` at `at` keep every span that ends now within burst and rate: looked up in the whole log, span by span.
fn fits(log: &[(Duration, u64)], at: Duration, n: u64, interval: Duration, burst: u64) -> bool {
    let mut sum = n;
    n <= burst
        && log.iter().rev().all(|(since, taken)| {
            sum += taken;
            interval.as_nanos() * u128::from(sum.saturating_sub(burst)) <= (at - *since).as_nanos()
        })
}

/// Of one resource nothing is taken when another refuses.
pub async fn all_is_taken_or_nothing(h: &Harness) -> Outcome {
    let config = slow_tokens(100).per_user_model_calls_per_minute(1).per_user_model_call_burst(2);
    let l = h.open(config.global_tokens_per_minute(1).global_token_burst(150)).await;
    let world = World::new();
    let alice = world.user("alice");
    l.admitted(&alice, &Amounts::model_call(60), "it fits").await;
    for _ in 0..5 {
        let limited = l.limited(&alice, &Amounts::model_call(41), "40 tokens are left").await;
        assert_eq!((limited.resource, limited.entity), (Resource::Tokens, Entity::User));
    }
    l.admitted(&alice, &Amounts::model_call(30), "refusals took neither calls nor tokens").await;
    for _ in 0..5 {
        let limited = l.limited(&alice, &Amounts::model_call(1), "two calls were made").await;
        assert_eq!(
            (limited.resource, limited.limit),
            (Resource::ModelCalls, "per_user_model_calls_per_minute")
        );
    }
    l.has_tokens_left(&alice, 10, "refused calls took no tokens").await;
    l.has_tokens_left(&world.user("bob"), 50, "nor any of all users'").await;
    Passed
}

/// More than a whole burst is refused for good: there is no time after which it fits.
pub async fn more_than_a_burst_never_fits(h: &Harness) -> Outcome {
    let l = h.open(slow_tokens(100)).await;
    let alice = World::new().user("alice");
    for n in [101, 1 << 40, u64::MAX] {
        let limited = l.limited(&alice, &tokens(n), "more than a burst").await;
        assert_eq!((limited.reason, limited.retry_after), (LimitReason::TooLarge, None));
        assert_eq!(limited.burst, 100, "the answer says what fits");
    }
    l.has_tokens_left(&alice, 100, "nothing was taken").await;
    Passed
}

/// Of several limits that refuse, the one that takes longest is named, and when it says it fits, it fits.
pub async fn the_longest_wait_is_named(h: &Harness) -> Outcome {
    let config = RateLimitConfig::new().per_user_rps(100.0).burst(1).global_rps(10.0).global_burst(1);
    let l = h.open(config).await;
    let alice = World::new().user("alice");
    l.admitted(&alice, &Amounts::run(), "the first").await;
    let limited = l.limited(&alice, &Amounts::run(), "the second").await;
    assert_eq!((limited.entity, limited.limit), (Entity::Global, "global_rps"));
    let after = limited.retry_after.expect("when");
    assert!(after > Duration::from_millis(10), "longer than the user's own limit takes: {after:?}");
    wait_as_told(&l, &alice, after).await;
    Passed
}

/// The limit of all users together counts every one of them.
pub async fn the_global_limit_counts_everybody(h: &Harness) -> Outcome {
    let l = h.open(slow_runs(3).global_rps(1.0 / 60.0).global_burst(5)).await;
    let world = World::new();
    for (user, runs) in [("alice", 3), ("bob", 1), ("carol", 1)] {
        for _ in 0..runs {
            l.admitted(&world.user(user), &Amounts::run(), "five of all").await;
        }
    }
    for user in ["bob", "dora"] {
        let limited = l.limited(&world.user(user), &Amounts::run(), "five were let through").await;
        assert_eq!((limited.entity, limited.limit, limited.burst), (Entity::Global, "global_rps", 5));
    }
    Passed
}

/// A user who is held back uses up nothing of what the others have.
pub async fn a_user_who_is_refused_takes_nothing_of_the_global_limit(h: &Harness) -> Outcome {
    let l = h.open(slow_runs(1).global_rps(1.0 / 60.0).global_burst(3)).await;
    let world = World::new();
    l.admitted(&world.user("alice"), &Amounts::run(), "the first").await;
    for _ in 0..10 {
        let limited = l.limited(&world.user("alice"), &Amounts::run(), "alice has had hers").await;
        assert_eq!(limited.entity, Entity::User);
    }
    for user in ["bob", "carol"] {
        l.admitted(&world.user(user), &Amounts::run(), "two of all are left").await;
    }
    Passed
}

/// What is not limited is never refused, and asking for nothing neither.
pub async fn without_a_limit_nothing_is_refused(h: &Harness) -> Outcome {
    let l = h.open(slow_runs(1)).await;
    let alice = World::new().user("alice");
    for _ in 0..50 {
        l.admitted(&alice, &Amounts::model_call(u64::MAX), "calls and tokens have no limit").await;
        l.admitted(&alice, &Amounts::default(), "nothing is asked for").await;
    }
    l.drain_runs(&alice, 1, "runs have one").await;
    l.admitted(&alice, &Amounts::default(), "nothing is asked for").await;
    Passed
}

/// Runs, calls and tokens are counted apart.
pub async fn runs_calls_and_tokens_are_apart(h: &Harness) -> Outcome {
    let config = slow_tokens(1).per_user_model_calls_per_minute(1).per_user_model_call_burst(1);
    let l = h.open(config.per_user_rps(1.0 / 60.0).burst(1)).await;
    let alice = World::new().user("alice");
    let asks = [Amounts::run(), Amounts::model_call(0), tokens(1)];
    for ask in &asks {
        l.admitted(&alice, ask, "one of each").await;
    }
    for (ask, resource) in asks.iter().zip(Resource::ALL) {
        assert_eq!(l.limited(&alice, ask, "one of each").await.resource, resource);
    }
    Passed
}

/// A clock that is set back makes no limit fresh, and holds nobody back for longer than it went back.
pub async fn turning_the_clock_back_gives_nothing_and_locks_nobody_out(h: &Harness) -> Outcome {
    let l = h.open(slow_runs(2)).await;
    let Some(clock) = l.clock() else { return Outcome::unsupported("a clock to turn") };
    let alice = World::new().user("alice");
    l.drain_runs(&alice, 2, "a burst").await;
    let (now, hour) = (clock.read(), Duration::from_secs(3_600));
    clock.set(loomflow_core::Timestamp::from_micros(now.as_micros() - 3_600_000_000));
    let after = l.limited(&alice, &Amounts::run(), "an hour back is no hour forth").await.retry_after;
    assert!(after.is_some_and(|after| after <= hour), "nobody waits for the clock to catch up: {after:?}");
    clock.set(now);
    l.limited(&alice, &Amounts::run(), "back where it was").await;
    clock.advance(Duration::from_secs(60));
    l.drain_runs(&alice, 1, "one came back").await;
    Passed
}

/// Random questions and corrections are answered as the rules of core answer them. A unit takes a minute to come back, so that
/// a moment more or less decides nothing.
pub async fn random_walks_are_judged_as_the_rules_judge(h: &Harness) -> Outcome {
    let draw = |from: u64, to: u64| from + rand::random::<u64>() % (to - from);
    for _ in 0..10 {
        let (burst, global_burst) = (draw(1, 40), draw(1, 60));
        let config = slow_tokens(burst).global_tokens_per_minute(1).global_token_burst(global_burst);
        let l = h.open(config.per_user_model_calls_per_minute(1).per_user_model_call_burst(25)).await;
        let limits = l.limiter().rules().limits;
        let alice = World::new().user("alice");
        // The rules' clock stands still.
        let (now, mut user, mut all) = (1_u64 << 60, Tats::default(), Tats::default());
        for _ in 0..40 {
            let (a, b) = (draw(1, 45), draw(0, 90));
            if draw(0, 10) < 6 {
                let ask = Amounts::model_call(a);
                let judged = limits.take(&mut user, &mut all, now, &ask).map_err(|limited| *limited);
                must_agree(&l.ask(&alice, &ask).await, &judged);
            } else {
                let (taken, used) = (Amounts::model_call(a), Amounts::model_call(b));
                l.limiter().settle(&alice, &taken, &used).await.must("settle");
                limits.settle(&mut user, &mut all, now, &taken, &used);
            }
        }
    }
    Passed
}

#[track_caller]
fn must_agree(answer: &Result<(), Limited>, judged: &Result<(), Limited>) {
    let when = |limited: &Limited| limited.retry_after.map(|after| after.as_secs_f64() / 60.0);
    let agree = match (answer, judged) {
        (Ok(()), Ok(())) => true,
        (Err(a), Err(b)) if a.reason == b.reason => match (when(a), when(b)) {
            (Some(a), Some(b)) => (a - b).abs() < 0.5,
            (a, b) => a.is_none() && b.is_none(),
        },
        _ => false,
    };
    assert!(agree, "answered {answer:?}, and by the rules it is {judged:?}");
}
