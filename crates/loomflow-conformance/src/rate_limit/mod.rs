//! The suite of [`RateLimiter`]: nobody is faster than their limit, and nothing makes a limit fresh but time.

pub mod concurrency;
pub mod isolation;
pub mod limits;
pub mod settle;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use loomflow_core::{Amounts, LimitReason, Limited, RateLimitConfig, RateLimiter, Scope, Taken};

use crate::doubles::ManualClock;
use crate::fixture::Must as _;
use crate::{IntoHarness, Unavailable};

/// A limiter that enforces the limits it was asked for.
#[derive(Clone, Debug)]
pub struct Instance {
    limiter: Arc<dyn RateLimiter>,
    clock: Option<Arc<ManualClock>>,
}

impl Instance {
    /// A limiter on a monotonic clock, or the server's. Cases that need a clock to turn are then unsupported, and the others
    /// let a little real time pass.
    #[must_use]
    pub fn new(limiter: Arc<dyn RateLimiter>) -> Self {
        Self { limiter, clock: None }
    }

    /// Says that the limiter reads the time from `clock`, so that cases can turn it.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<ManualClock>) -> Self {
        self.clock = Some(clock);
        self
    }

    pub(crate) fn clock(&self) -> Option<&ManualClock> {
        self.clock.as_deref()
    }

    pub(crate) fn limiter(&self) -> &dyn RateLimiter {
        &*self.limiter
    }

    pub(crate) fn shared(&self) -> Arc<dyn RateLimiter> {
        self.limiter.clone()
    }

    /// Lets `d` pass: on the clock that can be turned, or in truth.
    pub(crate) async fn pass(&self, d: Duration) {
        match &self.clock {
            Some(clock) => clock.advance(d),
            None => tokio::time::sleep(d).await,
        }
    }

    pub(crate) async fn ask(&self, scope: &Scope, ask: &Amounts) -> Result<(), Limited> {
        match self.limiter.take(scope, ask).await.must("take") {
            Taken::Admitted => Ok(()),
            Taken::Limited(limited) => Err(*limited),
        }
    }

    pub(crate) async fn admitted(&self, scope: &Scope, ask: &Amounts, why: &str) {
        if let Err(limited) = self.ask(scope, ask).await {
            panic!("{why}: {ask:?} must be admitted, but was refused: {limited:?}");
        }
    }

    pub(crate) async fn limited(&self, scope: &Scope, ask: &Amounts, why: &str) -> Limited {
        match self.ask(scope, ask).await {
            Err(limited) => limited,
            Ok(()) => panic!("{why}: {ask:?} must be refused, but was admitted"),
        }
    }

    /// Fails unless what is left for `scope` in a burst is `n` tokens and no more; takes them.
    pub(crate) async fn has_tokens_left(&self, scope: &Scope, n: u64, why: &str) {
        if n > 0 {
            self.admitted(scope, &tokens(n), why).await;
        }
        self.limited(scope, &tokens(1), why).await;
    }

    /// Takes a burst of `n` runs.
    pub(crate) async fn drain_runs(&self, scope: &Scope, n: u64, why: &str) {
        for _ in 0..n {
            self.admitted(scope, &Amounts::run(), why).await;
        }
        let limited = self.limited(scope, &Amounts::run(), why).await;
        assert_eq!(limited.reason, LimitReason::Rate, "{why}");
    }
}

/// Tokens and nothing else.
pub(crate) fn tokens(n: u64) -> Amounts {
    Amounts::default().with_tokens(n)
}

/// A limit of `burst` tokens that comes back so slowly that no case sees it: one a minute.
pub(crate) fn slow_tokens(burst: u64) -> RateLimitConfig {
    RateLimitConfig::new().per_user_tokens_per_minute(1).per_user_token_burst(burst)
}

/// A limit of `burst` runs that comes back so slowly that no case sees it: one a minute.
pub(crate) fn slow_runs(burst: u64) -> RateLimitConfig {
    RateLimitConfig::new().per_user_rps(1.0 / 60.0).burst(burst)
}

type OpenFn = Arc<dyn Fn(RateLimitConfig) -> BoxFuture<'static, Result<Instance, Unavailable>> + Send + Sync>;

/// Opens limiters, each with the limits a case needs.
#[derive(Clone)]
pub struct Harness {
    open: OpenFn,
}

impl Harness {
    /// A harness that opens limiters with `open`: an `async fn` from limits to an [`Instance`].
    pub fn new<F, Fut, P>(open: F) -> Self
    where
        F: Fn(RateLimitConfig) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = P> + Send + 'static,
        P: IntoHarness<Instance>,
    {
        let open = Arc::new(open);
        Self {
            open: Arc::new(move |config| {
                let opening = open(config);
                Box::pin(async move { opening.await.into_harness() })
            }),
        }
    }

    /// A limiter with these limits.
    pub(crate) async fn open(&self, config: RateLimitConfig) -> Instance {
        config.rules().must("limits of the suite");
        let opened = (self.open)(config).await;
        opened.unwrap_or_else(|why| panic!("the limiter became unavailable within the suite: {why}"))
    }
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rate_limit::Harness")
    }
}

#[doc(hidden)]
#[allow(clippy::unused_async, reason = "all suites are provided the same way")]
pub async fn provide<F, Fut, P>(factory: F) -> Result<Harness, Unavailable>
where
    F: Fn(RateLimitConfig) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = P> + Send + 'static,
    P: IntoHarness<Instance>,
{
    let harness = Harness::new(factory);
    // Opened once for nothing, so that a missing server skips the case instead of failing it.
    (harness.open)(RateLimitConfig::new()).await?;
    Ok(harness)
}

crate::case::suite! { $ rate_limit, rate_limit_cases, __loomflow_rate_limit_case,
    /// One `#[test]` per case of the rate limit suite, in a module `rate_limit_cases`. `factory` is an `async fn` from a
    /// `RateLimitConfig` to a fresh [`rate_limit::Instance`](crate::rate_limit::Instance), or `Result<Instance, Unavailable>`.
    behaviour: [
        limits::a_burst_is_admitted_and_no_more,
        limits::a_refusal_says_exactly_when,
        limits::what_was_taken_comes_back_at_the_rate,
        limits::no_window_has_more_than_rate_and_burst,
        limits::all_is_taken_or_nothing,
        limits::more_than_a_burst_never_fits,
        limits::the_longest_wait_is_named,
        limits::the_global_limit_counts_everybody,
        limits::a_user_who_is_refused_takes_nothing_of_the_global_limit,
        limits::without_a_limit_nothing_is_refused,
        limits::runs_calls_and_tokens_are_apart,
        limits::random_walks_are_judged_as_the_rules_judge,
        limits::turning_the_clock_back_gives_nothing_and_locks_nobody_out,
        settle::the_rest_is_given_back,
        settle::no_limit_becomes_better_than_fresh,
        settle::a_debt_is_waited_for,
        settle::a_debt_is_bounded,
        settle::only_what_differs_is_corrected,
        settle::the_global_limit_is_corrected_too,
        concurrency::fifty_at_once_admit_a_burst,
        concurrency::fifty_users_at_once_admit_a_global_burst,
        concurrency::all_or_nothing_at_once,
        concurrency::under_load_no_window_has_more_than_rate_and_burst,
        concurrency::dropped_calls_are_whole_or_absent,
    ],
    isolation: [
        isolation::hostile_users_have_limits_of_their_own,
        isolation::a_user_held_back_holds_nobody_else_back,
        isolation::namespaces_are_apart,
        isolation::a_border_between_namespace_and_user_cannot_be_shifted,
        isolation::an_answer_names_nobody,
        isolation::settling_for_one_leaves_the_other,
        isolation::many_strangers_make_no_limit_fresh,
        isolation::forgetting_makes_no_limit_fresh,
        isolation::forgetting_one_leaves_the_other,
        isolation::exports_hold_their_own,
    ],
}
