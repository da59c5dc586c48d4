//! What an operator configures: how fast, how much at once, and what is done with who is faster.

use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::ledger::Entity;
use crate::rate_limit::{RateLimits, Resource};
use crate::rules::gcra::Gcra;

const MINUTE: u64 = 60_000_000_000;

/// What is done with a run or a call that a limit does not let through now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "turned away or made to wait")]
pub enum OnLimit {
    /// It fails with [`ErrorKind::RateLimited`], and the error says when to try again.
    #[default]
    Reject,
    /// It waits in line, first come first served, for at most `max_wait` and never beyond its run's deadline.
    Wait,
}

impl FromStr for OnLimit {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "reject" => Ok(Self::Reject),
            "wait" => Ok(Self::Wait),
            _ => Err(Error::invalid_input(format!("{s:?} is not a value of on_limit: use reject or wait"))),
        }
    }
}

/// Limits of each user and of all users of a namespace together, and what is done with who exceeds them.
///
/// A rate is kept as the time one unit takes to come back, in whole nanoseconds: the rate in force is the highest such one
/// that is not above the one written here.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RateLimitConfig {
    /// Runs a second of each user.
    pub per_user_rps: Option<f64>,
    /// Runs of one user at once. Left out: a second's worth, at least one.
    pub burst: Option<u64>,
    /// Runs a second of all users together.
    pub global_rps: Option<f64>,
    /// Runs of all users at once. Left out: a second's worth, at least one.
    pub global_burst: Option<u64>,
    /// Model calls a minute of each user, embeddings included.
    pub per_user_model_calls_per_minute: Option<u64>,
    /// Model calls of one user at once. Left out: a minute's worth.
    pub per_user_model_call_burst: Option<u64>,
    /// Model calls a minute of all users together.
    pub global_model_calls_per_minute: Option<u64>,
    /// Model calls of all users at once. Left out: a minute's worth.
    pub global_model_call_burst: Option<u64>,
    /// Prompt and generated tokens a minute of each user.
    pub per_user_tokens_per_minute: Option<u64>,
    /// Tokens of one user at once. Left out: a minute's worth.
    pub per_user_token_burst: Option<u64>,
    /// Tokens a minute of all users together.
    pub global_tokens_per_minute: Option<u64>,
    /// Tokens of all users at once. Left out: a minute's worth.
    pub global_token_burst: Option<u64>,
    /// What is done with who exceeds a limit (`reject` by default).
    pub on_limit: OnLimit,
    /// The longest that is waited in line (10 s).
    pub max_wait: Duration,
    /// How many of one user may wait in line in this process (64); one more is turned away.
    pub max_waiting_per_user: usize,
    /// How many of all users may wait in line in this process (10,000); one more is turned away.
    pub max_waiting: usize,
    /// How many users a table in memory has room for (100,000); `None` for no bound. Users whose limits are whole again take
    /// no room. A table full of users who are held back refuses new ones.
    pub max_users: Option<usize>,
}

impl Default for RateLimitConfig {
    fn default() -> Self {
        Self {
            per_user_rps: None,
            burst: None,
            global_rps: None,
            global_burst: None,
            per_user_model_calls_per_minute: None,
            per_user_model_call_burst: None,
            global_model_calls_per_minute: None,
            global_model_call_burst: None,
            per_user_tokens_per_minute: None,
            per_user_token_burst: None,
            global_tokens_per_minute: None,
            global_token_burst: None,
            on_limit: OnLimit::Reject,
            max_wait: Duration::from_secs(10),
            max_waiting_per_user: 64,
            max_waiting: 10_000,
            max_users: Some(100_000),
        }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident : $ty:ty;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(mut self, value: $ty) -> Self {
            self.$name = Some(value);
            self
        })*
    };
}

impl RateLimitConfig {
    /// No limits; the default bounds.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Limits the runs a second of each user.
        per_user_rps: f64;
        /// Sets how many runs of one user may begin at once.
        burst: u64;
        /// Limits the runs a second of all users together.
        global_rps: f64;
        /// Sets how many runs of all users may begin at once.
        global_burst: u64;
        /// Limits the model calls a minute of each user, embeddings included.
        per_user_model_calls_per_minute: u64;
        /// Sets how many model calls of one user may be made at once.
        per_user_model_call_burst: u64;
        /// Limits the model calls a minute of all users together.
        global_model_calls_per_minute: u64;
        /// Sets how many model calls of all users may be made at once.
        global_model_call_burst: u64;
        /// Limits the prompt and generated tokens a minute of each user.
        per_user_tokens_per_minute: u64;
        /// Sets how many tokens of one user may be asked for at once.
        per_user_token_burst: u64;
        /// Limits the tokens a minute of all users together.
        global_tokens_per_minute: u64;
        /// Sets how many tokens of all users may be asked for at once.
        global_token_burst: u64;
    }

    /// Sets what is done with who exceeds a limit.
    #[must_use]
    pub fn on_limit(mut self, what: OnLimit) -> Self {
        self.on_limit = what;
        self
    }

    /// Sets the longest that is waited in line.
    #[must_use]
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Sets how many of one user, and how many of all users, may wait in line in this process.
    #[must_use]
    pub fn max_waiting(mut self, per_user: usize, in_all: usize) -> Self {
        (self.max_waiting_per_user, self.max_waiting) = (per_user, in_all);
        self
    }

    /// Sets how many users a table in memory has room for; `None` for no bound.
    #[must_use]
    pub fn max_users(mut self, users: impl Into<Option<usize>>) -> Self {
        self.max_users = users.into();
        self
    }

    /// Checks the numbers, and makes of them what a limiter works with.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming the key that is wrong and what to do.
    pub fn rules(&self) -> Result<RateRules> {
        let mut limits = RateLimits::default();
        for (entity, rps, burst) in [
            (Entity::User, self.per_user_rps, ("burst", self.burst)),
            (Entity::Global, self.global_rps, ("global_burst", self.global_burst)),
        ] {
            let key = Resource::Runs.config_key(entity);
            limits = limits.with(entity, Resource::Runs, per_second(key, rps, burst)?);
        }
        let (calls, tokens) = (Resource::ModelCalls, Resource::Tokens);
        for (entity, resource, rate, burst) in [
            (
                Entity::User,
                calls,
                self.per_user_model_calls_per_minute,
                ("per_user_model_call_burst", self.per_user_model_call_burst),
            ),
            (
                Entity::Global,
                calls,
                self.global_model_calls_per_minute,
                ("global_model_call_burst", self.global_model_call_burst),
            ),
            (
                Entity::User,
                tokens,
                self.per_user_tokens_per_minute,
                ("per_user_token_burst", self.per_user_token_burst),
            ),
            (
                Entity::Global,
                tokens,
                self.global_tokens_per_minute,
                ("global_token_burst", self.global_token_burst),
            ),
        ] {
            limits = limits.with(entity, resource, per_minute(resource.config_key(entity), rate, burst)?);
        }
        self.check_bounds()?;
        Ok(RateRules {
            limits,
            on_limit: self.on_limit,
            max_wait: self.max_wait,
            max_waiting_per_user: self.max_waiting_per_user,
            max_waiting: self.max_waiting,
            max_users: self.max_users,
        })
    }

    fn check_bounds(&self) -> Result<()> {
        if self.max_users == Some(0) {
            return Err(bad("max_users must be at least 1; switch bounding off with none"));
        }
        if self.on_limit == OnLimit::Wait {
            if self.max_wait.is_zero() || self.max_wait > Duration::from_secs(86_400) {
                return Err(bad("max_wait must be above zero and at most 24 hours"));
            }
            if self.max_waiting == 0 || self.max_waiting_per_user == 0 {
                return Err(bad(
                    "max_waiting and max_waiting_per_user must be at least 1; use on_limit = \"reject\" to let nobody wait",
                ));
            }
        }
        Ok(())
    }
}

/// What a limiter works with: checked numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateRules {
    /// The limits.
    pub limits: RateLimits,
    /// See [`RateLimitConfig::on_limit`].
    pub on_limit: OnLimit,
    /// See [`RateLimitConfig::max_wait`].
    pub max_wait: Duration,
    /// See [`RateLimitConfig::max_waiting_per_user`].
    pub max_waiting_per_user: usize,
    /// See [`RateLimitConfig::max_waiting`].
    pub max_waiting: usize,
    /// See [`RateLimitConfig::max_users`].
    pub max_users: Option<usize>,
}

impl RateRules {
    /// The share of one of `instances` processes: limiters with these limits in each of them together let no more through
    /// than one with the whole limits. A burst is rounded down, but to no less than one each.
    #[must_use]
    pub fn shared_by(&self, instances: u32) -> Self {
        let instances = instances.max(1);
        let mut share = self.clone();
        for entity in [Entity::User, Entity::Global] {
            for resource in Resource::ALL {
                let limit = self.limits.get(entity, resource).and_then(|whole| {
                    // A limit that cannot be made so slow keeps its burst and loses the rest: one at a time.
                    let burst = (whole.burst() / u64::from(instances)).max(1);
                    Gcra::new(whole.interval().saturating_mul(instances), burst)
                        .or_else(|| Gcra::new(whole.interval(), 1))
                });
                share.limits = share.limits.with(entity, resource, limit);
            }
        }
        share
    }
}

fn per_second(key: &str, rate: Option<f64>, (burst_key, burst): (&str, Option<u64>)) -> Result<Option<Gcra>> {
    let Some(rate) = rate else { return without_a_rate(key, burst_key, burst) };
    if !(rate.is_finite() && rate > 0.0 && rate <= 1e9) {
        return Err(bad(&format!("{key} must be above 0 and at most 1000000000, not {rate}")));
    }
    // At most 1e9 / 5e-324 is no number of nanoseconds; the cast stops at the largest, which no burst fits into.
    let interval = (1e9 / rate).ceil() as u64;
    limit(key, burst_key, interval, burst.unwrap_or(rate.ceil() as u64)).map(Some)
}

fn per_minute(key: &str, rate: Option<u64>, (burst_key, burst): (&str, Option<u64>)) -> Result<Option<Gcra>> {
    let Some(rate) = rate else { return without_a_rate(key, burst_key, burst) };
    if !(1..=MINUTE).contains(&rate) {
        return Err(bad(&format!("{key} must be at least 1 and at most {MINUTE}, not {rate}")));
    }
    limit(key, burst_key, MINUTE.div_ceil(rate), burst.unwrap_or(rate)).map(Some)
}

fn without_a_rate(key: &str, burst_key: &str, burst: Option<u64>) -> Result<Option<Gcra>> {
    match burst {
        None => Ok(None),
        Some(_) => Err(bad(&format!("{burst_key} is set without {key}: a burst limits nothing by itself"))),
    }
}

fn limit(key: &str, burst_key: &str, interval: u64, burst: u64) -> Result<Gcra> {
    Gcra::new(Duration::from_nanos(interval), burst).ok_or_else(|| {
        bad(&format!(
            "{burst_key} must be at least 1, and at the rate of {key} a whole burst ({burst}) must come back within 30 days: \
             lower {burst_key} or raise {key}"
        ))
    })
}

fn bad(why: &str) -> Error {
    Error::new(ErrorKind::Config, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_intervals_and_bursts() {
        let rules = RateLimitConfig::new()
            .per_user_rps(5.0)
            .burst(10)
            .global_rps(0.3)
            .per_user_tokens_per_minute(100_000)
            .global_model_calls_per_minute(7)
            .global_model_call_burst(2)
            .rules()
            .unwrap();
        let of = |entity, resource| {
            rules.limits.get(entity, resource).map(|limit| (limit.interval().as_nanos(), limit.burst()))
        };
        assert_eq!(of(Entity::User, Resource::Runs), Some((200_000_000, 10)));
        assert_eq!(of(Entity::Global, Resource::Runs), Some((3_333_333_334, 1)));
        assert_eq!(of(Entity::User, Resource::Tokens), Some((600_000, 100_000)));
        assert_eq!(of(Entity::Global, Resource::ModelCalls), Some((8_571_428_572, 2)));
        assert_eq!(of(Entity::Global, Resource::Tokens), None);
        assert!(rules.limits.binds(Entity::User) && !RateLimits::default().binds(Entity::Global));
    }

    #[test]
    fn nonsense_names_its_key() {
        let config = RateLimitConfig::new;
        for (wrong, key) in [
            (config().per_user_rps(0.0), "per_user_rps"),
            (config().per_user_rps(f64::NAN), "per_user_rps"),
            (config().global_rps(-1.0), "global_rps"),
            (config().global_rps(f64::INFINITY), "global_rps"),
            (config().per_user_rps(f64::MIN_POSITIVE), "per_user_rps"),
            (config().per_user_rps(1.0).burst(0), "burst"),
            (config().burst(3), "per_user_rps"),
            (config().per_user_tokens_per_minute(0), "per_user_tokens_per_minute"),
            (config().global_token_burst(3), "global_tokens_per_minute"),
            (config().per_user_model_calls_per_minute(1).per_user_model_call_burst(50_000), "30 days"),
            (config().max_users(0), "max_users"),
            (config().on_limit(OnLimit::Wait).max_wait(Duration::ZERO), "max_wait"),
            (config().on_limit(OnLimit::Wait).max_waiting(0, 5), "max_waiting"),
        ] {
            let error = wrong.rules().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(key), "{error} names {key}");
        }
        assert_eq!("wait".parse::<OnLimit>().unwrap(), OnLimit::Wait);
        assert!("drop".parse::<OnLimit>().unwrap_err().to_string().contains("reject or wait"));
    }

    #[test]
    fn shares_together_are_no_more_than_the_whole() {
        let rules = RateLimitConfig::new().per_user_rps(10.0).burst(7).rules().unwrap();
        let share = rules.shared_by(3).limits.get(Entity::User, Resource::Runs).unwrap();
        assert_eq!((share.interval(), share.burst()), (Duration::from_millis(300), 2));
    }
}
