//! Where the server is, what is capped, and what to do while the server is down.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::{BudgetConfig, Caps, Error, ErrorKind, Result, Secret};
use loomflow_support_redis::defaults;
use serde::Deserialize;

/// The largest number that every script counts exactly: 2⁵³ - 1, as a number of Lua is a double.
pub(crate) const MAX_COUNT: u64 = (1 << 53) - 1;

/// Settings of a [`RedisLedger`](crate::RedisLedger). Times are written in seconds, fractions allowed; the budget and what
/// to do in an outage are set in code.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RedisLedgerConfig {
    /// `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS. A secret: it is never shown.
    #[serde(deserialize_with = "loomflow_core::settings::secret")]
    pub url: Arc<Secret<String>>,
    /// What is capped. `max_users`, `max_spilled_users` and `user_idle_ttl` mean nothing here: the server's memory is the
    /// bound.
    #[serde(skip)]
    pub budget: BudgetConfig,
    /// What the names of all keys begin with: 1 to 32 of `A-Z a-z 0-9 _ . -`. `lf` by default. Processes that share a
    /// quota have the same.
    #[serde(default = "loomflow_support_redis::defaults::key_prefix")]
    pub key_prefix: String,
    /// How long a connection may take. 5 s by default.
    #[serde(
        default = "loomflow_support_redis::defaults::connect_timeout",
        deserialize_with = "loomflow_core::settings::seconds"
    )]
    pub connect_timeout: Duration,
    /// How long one exchange with the server may take. 10 s by default.
    #[serde(default = "operation_timeout", deserialize_with = "loomflow_core::settings::seconds")]
    pub operation_timeout: Duration,
    /// The most exchanges that are under way at once; one more waits. 256 by default.
    #[serde(default = "loomflow_support_redis::defaults::max_in_flight")]
    pub max_in_flight: usize,
    /// For how long after the end of its window a counter is kept, so that holds which are open then find it. A hold with
    /// a longer lease keeps it longer. A day by default.
    #[serde(default = "longest_lease", deserialize_with = "loomflow_core::settings::seconds")]
    pub longest_lease: Duration,
    /// Whether an operation is answered only when the server has written it to its disk: `WAITAOF 1 0`, which needs
    /// Redis 7.2 and `appendonly yes`. Off by default: see the crate's page for what a crash of the server costs then.
    #[serde(default)]
    pub wait_for_disk: bool,
    /// What to do while the server cannot be reached. [`OnOutage::Refuse`] by default.
    #[serde(skip)]
    pub on_outage: OnOutage,
}

/// What a ledger does while its server cannot be reached.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum OnOutage {
    /// Every operation fails with the server's error, so that nothing is spent: it fails closed.
    #[default]
    Refuse,
    /// This process grants a little by itself, and books it when the server is back.
    Allow(Allowance),
}

/// What one process may grant by itself during one outage (and, under a window, in each window of it). With `n` processes the caps
/// can be exceeded by `n` times [`Allowance::in_all`], and by no more.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Allowance {
    /// What each user gets.
    pub per_user: Caps,
    /// What all users of this process together get, over all namespaces.
    pub in_all: Caps,
    /// The most holds that are open and charges that are not booked yet; one more is refused. 1,000 by default.
    pub max_pending: usize,
}

impl Allowance {
    /// Up to `per_user_tokens` for each user, and `tokens` for all users of this process together.
    #[must_use]
    pub fn tokens(per_user_tokens: u64, tokens: u64) -> Self {
        let caps = BudgetConfig::new().per_user_max_tokens(per_user_tokens).max_tokens(tokens);
        Self { per_user: caps.per_user, in_all: caps.global, max_pending: 1_000 }
    }

    /// Sets what each user gets.
    #[must_use]
    pub fn with_per_user(mut self, caps: Caps) -> Self {
        self.per_user = caps;
        self
    }

    /// Sets what all users of this process together get.
    #[must_use]
    pub fn with_in_all(mut self, caps: Caps) -> Self {
        self.in_all = caps;
        self
    }

    /// Sets the most holds that are open and charges that are not booked yet.
    #[must_use]
    pub fn with_max_pending(mut self, pending: usize) -> Self {
        self.max_pending = pending;
        self
    }
}

impl RedisLedgerConfig {
    /// The server at `url` with the caps of `budget`, and the defaults.
    #[must_use]
    pub fn new(url: impl Into<String>, budget: BudgetConfig) -> Self {
        Self {
            url: Arc::new(Secret::new(url.into())),
            budget,
            key_prefix: defaults::key_prefix(),
            connect_timeout: defaults::connect_timeout(),
            operation_timeout: operation_timeout(),
            max_in_flight: defaults::max_in_flight(),
            longest_lease: longest_lease(),
            wait_for_disk: false,
            on_outage: OnOutage::Refuse,
        }
    }

    /// Sets what is capped.
    #[must_use]
    pub fn with_budget(mut self, budget: BudgetConfig) -> Self {
        self.budget = budget;
        self
    }

    loomflow_support_redis::redis_setters!();

    /// Sets for how long after the end of its window a counter is kept for holds that are open then.
    #[must_use]
    pub fn with_longest_lease(mut self, lease: Duration) -> Self {
        self.longest_lease = lease;
        self
    }

    /// Sets whether an operation is answered only when the server has written it to its disk.
    #[must_use]
    pub fn with_wait_for_disk(mut self, wait: bool) -> Self {
        self.wait_for_disk = wait;
        self
    }

    /// Sets what to do while the server cannot be reached.
    #[must_use]
    pub fn with_on_outage(mut self, what: OnOutage) -> Self {
        self.on_outage = what;
        self
    }

    /// Checks that the numbers make sense, and that this ledger can count them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming what is wrong: what [`BudgetConfig::validate`] refuses, a cap above 2⁵³ - 1 (nine
    /// million dollars, or 285 years of wall clock), and an allowance that leaves out what the budget caps.
    pub fn validate(&self) -> Result<()> {
        self.budget.validate()?;
        let entities = [
            ("", &self.budget.global),
            ("per_user_", &self.budget.per_user),
            ("per_run_", &self.budget.per_run),
        ];
        for (entity, caps) in entities {
            if let Some((name, _)) = numbers(caps).into_iter().find(|(_, n)| n.is_some_and(|n| n > MAX_COUNT))
            {
                return Err(bad(format!(
                    "{entity}{name} is more than Redis counts exactly: a number of its scripts is exact up to \
                     9,007,199,254,740,991 tokens, nano-dollars (9,007,199 dollars) or microseconds. Lower the cap, leave it \
                     out, or use a ledger on a SQL database"
                )));
            }
        }
        if let OnOutage::Allow(allowance) = &self.on_outage {
            self.check(allowance)?;
        }
        Ok(())
    }

    /// An allowance bounds whatever the budget bounds: what it left out would be free during an outage.
    fn check(&self, allowance: &Allowance) -> Result<()> {
        if allowance.max_pending == 0 {
            return Err(bad(
                "max_pending of an allowance must be at least 1; or refuse during an outage".to_owned()
            ));
        }
        for (which, caps) in [("per_user", &allowance.per_user), ("in_all", &allowance.in_all)] {
            let given = numbers(caps);
            if caps.is_empty() || given.iter().any(|(_, n)| n.is_some_and(|n| n > MAX_COUNT)) {
                return Err(bad(format!("`{which}` of an allowance must have a bound, and one below 2^53")));
            }
            for budget in [&self.budget.global, &self.budget.per_user, &self.budget.per_run] {
                for ((name, capped), (_, bound)) in numbers(budget).into_iter().zip(&given) {
                    // Tokens of both kinds together bound each kind as well.
                    let by_total = name.ends_with("put_tokens") && given[0].1.is_some();
                    if capped.is_some() && bound.is_none() && !by_total {
                        return Err(bad(format!(
                            "the budget caps {name}, and `{which}` of the allowance does not: during an outage it would \
                             have no bound"
                        )));
                    }
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for RedisLedgerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLedgerConfig")
            .field("budget", &self.budget)
            .field("key_prefix", &self.key_prefix)
            .field("connect_timeout", &self.connect_timeout)
            .field("operation_timeout", &self.operation_timeout)
            .field("max_in_flight", &self.max_in_flight)
            .field("longest_lease", &self.longest_lease)
            .field("wait_for_disk", &self.wait_for_disk)
            .field("on_outage", &self.on_outage)
            .finish_non_exhaustive()
    }
}

/// The caps with their names, in the order of `rules::quota::CAPS`.
fn numbers(caps: &Caps) -> [(&'static str, Option<u64>); 5] {
    [
        ("max_tokens", caps.tokens),
        ("max_input_tokens", caps.input_tokens),
        ("max_output_tokens", caps.output_tokens),
        ("max_cost_usd", caps.cost.map(|cost| cost.0)),
        ("max_wall_clock", caps.wall_clock.map(|wall| u64::try_from(wall.as_micros()).unwrap_or(u64::MAX))),
    ]
}

fn bad(message: String) -> Error {
    Error::new(ErrorKind::Config, message).with_operation("connect")
}

fn operation_timeout() -> Duration {
    Duration::from_secs(10)
}

fn longest_lease() -> Duration {
    Duration::from_secs(24 * 3_600)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use loomflow_core::NanoUsd;

    use super::*;

    #[test]
    fn it_is_read_with_defaults_and_shows_no_password() {
        let read = |text: &str| serde_json::from_str::<RedisLedgerConfig>(text);
        let config = read(r#"{"url": "redis://u:hunter2@h", "longest_lease": 0.5}"#).unwrap();
        assert_eq!((config.longest_lease, config.max_in_flight), (Duration::from_millis(500), 256));
        assert!(config.validate().is_ok() && config.on_outage == OnOutage::Refuse && !config.wait_for_disk);
        assert!(!format!("{config:?} {:?}", config.link_options()).contains("hunter2"));
        assert!(read(r#"{"url": "redis://h", "prefix": "x"}"#).is_err(), "an unknown setting is refused");
    }

    #[test]
    fn a_cap_that_cannot_be_counted_exactly_is_refused_by_name() {
        let new = BudgetConfig::new;
        for (budget, name) in [
            (new().max_tokens(MAX_COUNT + 1), "max_tokens"),
            (new().per_user_max_cost(NanoUsd::from_dollars(9_007_200)), "per_user_max_cost_usd"),
            (new().per_run_max_wall_clock(Duration::MAX), "per_run_max_wall_clock"),
            (new().soft_warning_at(2.0), "soft_warning_at"),
        ] {
            let error = RedisLedgerConfig::new("redis://h", budget).validate().unwrap_err();
            assert!(error.kind() == ErrorKind::Config && error.to_string().contains(name), "{error}");
        }
        let most = new().max_tokens(MAX_COUNT).per_user_max_cost(NanoUsd(MAX_COUNT));
        RedisLedgerConfig::new("redis://h", most).validate().unwrap();
    }

    #[test]
    fn an_allowance_bounds_whatever_the_budget_bounds() {
        let config = |budget, allowance| {
            RedisLedgerConfig::new("redis://h", budget).with_on_outage(OnOutage::Allow(allowance)).validate()
        };
        let new = BudgetConfig::new;
        let ten = || Allowance::tokens(10, 10);
        assert!(config(new().per_user_max_tokens(1).max_input_tokens(1), ten()).is_ok());
        let error = config(new().per_run_max_cost(NanoUsd(1)), ten()).unwrap_err();
        assert!(error.to_string().contains("max_cost_usd"), "{error}");
        assert!(config(new(), ten().with_in_all(Caps::default())).is_err());
        assert!(config(new(), ten().with_max_pending(0)).is_err());
    }
}
