//! Rate limits on Redis: one script, the server's clock, and keys that go when they say nothing any more.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::resilience::{Readiness, Repeat};
use loomflow_core::rules::gcra::{Gcra, Wait};
use loomflow_core::{
    Amounts, Entity, Erase, Erased, Error, ErrorKind, ExportItem, ExportStream, Limited, Owned,
    RateLimitConfig, RateLimiter, RateLimits, RateRules, Resource, Result, Scope, Secret, Taken, TenantData,
    export_from,
};
use loomflow_support_redis::{Link, Script, defaults};
use serde::Deserialize;
use serde_json::json;

use crate::schema::Schema;

const STORE: &str = "rate_limit:redis";

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/rate_limit.lua")));

/// Settings of a [`RedisRateLimiter`]. Times are written in seconds, fractions allowed; the limits are set in code.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RedisRateLimiterConfig {
    /// `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS. A secret: it is never shown.
    #[serde(deserialize_with = "loomflow_core::settings::secret")]
    pub url: Arc<Secret<String>>,
    /// The limits. `max_users` means nothing here: the server's memory is the bound.
    #[serde(skip)]
    pub limits: RateLimitConfig,
    /// What the names of all keys begin with: 1 to 32 of `A-Z a-z 0-9 _ . -`. `lf` by default. Processes that share limits
    /// have the same.
    #[serde(default = "loomflow_support_redis::defaults::key_prefix")]
    pub key_prefix: String,
    /// How long a connection may take. 5 s by default.
    #[serde(
        default = "loomflow_support_redis::defaults::connect_timeout",
        deserialize_with = "loomflow_core::settings::seconds"
    )]
    pub connect_timeout: Duration,
    /// How long one exchange with the server may take. 2 s by default: a run waits for it.
    #[serde(default = "operation_timeout", deserialize_with = "loomflow_core::settings::seconds")]
    pub operation_timeout: Duration,
    /// The most exchanges that are under way at once; one more waits. 256 by default.
    #[serde(default = "loomflow_support_redis::defaults::max_in_flight")]
    pub max_in_flight: usize,
}

impl RedisRateLimiterConfig {
    /// These limits on the server at `url`, with the defaults.
    #[must_use]
    pub fn new(url: impl Into<String>, limits: RateLimitConfig) -> Self {
        Self {
            url: Arc::new(Secret::new(url.into())),
            limits,
            key_prefix: defaults::key_prefix(),
            connect_timeout: defaults::connect_timeout(),
            operation_timeout: operation_timeout(),
            max_in_flight: defaults::max_in_flight(),
        }
    }

    /// Sets the limits.
    #[must_use]
    pub fn with_limits(mut self, limits: RateLimitConfig) -> Self {
        self.limits = limits;
        self
    }

    loomflow_support_redis::redis_setters!();
}

impl fmt::Debug for RedisRateLimiterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRateLimiterConfig")
            .field("limits", &self.limits)
            .field("key_prefix", &self.key_prefix)
            .field("connect_timeout", &self.connect_timeout)
            .field("operation_timeout", &self.operation_timeout)
            .field("max_in_flight", &self.max_in_flight)
            .finish_non_exhaustive()
    }
}

/// Rate limits that every process on one Redis shares.
///
/// - One exchange for a decision, by a script that takes everything or nothing; time is the server's.
/// - A user's key expires when the last of their limits is whole again, and says nothing any more then. Keep the server from
///   evicting sooner (`maxmemory-policy noeviction`, or `volatile-ttl`, which takes what is nearest to its end first).
/// - A server that cannot be reached refuses: the error says so, nothing runs.
///   [`StandInRateLimiter`](https://docs.rs/loomflow-local) of `loomflow-local` goes on with a share of the limits instead.
/// - A server that loses its last writes in a crash gives back what was taken in them.
pub struct RedisRateLimiter {
    rules: RateRules,
    link: Link,
    schema: Schema,
}

impl RedisRateLimiter {
    /// Connects.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for limits, a prefix or a URL that cannot be used, or a refused login;
    /// [`ErrorKind::Unreachable`], [`ErrorKind::Transport`] or [`ErrorKind::Timeout`] when nobody answers.
    pub async fn connect(config: RedisRateLimiterConfig) -> Result<Self> {
        let rules = config.limits.rules()?;
        let schema = Schema::new(&config.key_prefix)?;
        Ok(Self { rules, link: Link::connect(&config.link_options()).await?, schema })
    }

    /// Runs the script on some limits; one number for each comes back.
    async fn run(
        &self,
        (operation, verb): (&'static str, &str),
        scope: &Scope,
        limits: impl Iterator<Item = (Entity, Resource, Gcra, i128)>,
        repeat: Repeat,
    ) -> Result<Vec<u64>> {
        let mut args = vec![verb.as_bytes().to_vec(), Schema::partition(scope.owner()).into_bytes()];
        let mut count = 0;
        for (entity, resource, limit, change) in limits {
            let whose = if entity == Entity::Global { "g" } else { "u" };
            let field = (resource as usize).to_string();
            let interval = limit.interval().as_nanos().to_string();
            let (capacity, change) = (limit.capacity().to_string(), change.to_string());
            args.extend([whose.to_owned(), field, interval, capacity, change].map(String::into_bytes));
            count += 1;
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        let answer: Vec<String> = self
            .link
            .script(operation, repeat, &SCRIPT, &self.schema.rates(scope.namespace()), &args)
            .await?;
        let numbers: Option<Vec<u64>> = answer.iter().map(|text| text.parse().ok()).collect();
        numbers.filter(|numbers| numbers.len() == count).ok_or_else(|| {
            Error::new(ErrorKind::Internal, "Redis answered with something that was not expected")
                .with_operation(operation)
        })
    }

    /// For each of the user's limits that is not whole, in how many nanoseconds it is.
    async fn levels(&self, scope: &Scope, operation: &'static str) -> Result<Vec<(Resource, u64)>> {
        let limits = of_user(&self.rules.limits);
        let asked = limits.iter().map(|(resource, limit)| (Entity::User, *resource, *limit, 0));
        let levels = self.run((operation, "look"), scope, asked, Repeat::Safe).await?;
        let levels = limits.iter().zip(levels).map(|((resource, _), level)| (*resource, level));
        Ok(levels.filter(|(_, level)| *level > 0).collect())
    }
}

/// The limits of each user.
fn of_user(limits: &RateLimits) -> Vec<(Resource, Gcra)> {
    let each = Resource::ALL.into_iter();
    each.filter_map(|resource| limits.get(Entity::User, resource).map(|limit| (resource, limit))).collect()
}

#[async_trait]
impl RateLimiter for RedisRateLimiter {
    async fn take(&self, scope: &Scope, ask: &Amounts) -> Result<Taken> {
        let limits = &self.rules.limits;
        if let Some(limited) = limits.too_large(ask) {
            return Ok(Taken::Limited(Box::new(limited)));
        }
        let nanos = |limit: Gcra, n: u64| i128::from(n) * limit.interval().as_nanos() as i128;
        let asked =
            limits.asked(ask).map(|(entity, resource, limit, n)| (entity, resource, limit, nanos(limit, n)));
        // Twice is more than was asked for, and never less.
        let over = self.run(("take", "take"), scope, asked, Repeat::Safe).await?;
        let refused = limits.asked(ask).zip(over).filter(|(_, over)| *over > 0);
        let longest = refused.max_by_key(|(_, over)| *over);
        Ok(longest.map_or(Taken::Admitted, |((entity, resource, limit, _), over)| {
            let limited: Limited = RateLimits::limited(entity, resource, limit, Wait::Nanos(over)).1;
            Taken::Limited(Box::new(limited))
        }))
    }

    async fn settle(&self, scope: &Scope, taken: &Amounts, used: &Amounts) -> Result<()> {
        let changes = self.rules.limits.corrections(taken, used);
        // Giving back twice would be giving too much.
        self.run(("settle", "settle"), scope, changes, Repeat::Unsafe).await.map(drop)
    }

    fn rules(&self) -> &RateRules {
        &self.rules
    }
}

#[async_trait]
impl TenantData for RedisRateLimiter {
    fn store_name(&self) -> &str {
        STORE
    }

    async fn ready(&self) -> Readiness {
        self.link.ready().await
    }

    /// One item of kind `rate_limit` for each limit of the user's that is not whole: after how long it is.
    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let item = |(resource, level): (Resource, u64)| {
            let limit = resource.config_key(Entity::User);
            let data = json!({"limit": limit, "whole_again_in_ms": level.div_ceil(1_000_000)});
            // A key has no name on purpose; what it is made of is the hash of this very owner.
            Owned::new(scope.owner().clone(), ExportItem::new("rate_limit", data))
        };
        Ok(export_from(self.levels(scope, "export").await?.into_iter().map(item).collect()))
    }

    /// Keeps what is held back: an erasure would be a way to a fresh burst. It is kept without a name, and goes by itself.
    async fn forget(&self, scope: &Scope, _what: &Erase) -> Result<Erased> {
        let line = Erased::new(STORE);
        Ok(if self.levels(scope, "forget").await?.is_empty() {
            line
        } else {
            line.with_retained(
                "when the user's limits are whole again, without the name and under a hash, until that moment: erasing it \
                 would give a fresh burst",
            )
        })
    }
}

impl fmt::Debug for RedisRateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisRateLimiter({:?}, {:?})", self.rules, self.link)
    }
}

fn operation_timeout() -> Duration {
    Duration::from_secs(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_with_defaults_and_shows_no_password() {
        let read = |text: &str| serde_json::from_str::<RedisRateLimiterConfig>(text);
        let config = read(r#"{"url": "redis://u:hunter2@h", "connect_timeout": 0.5}"#).unwrap();
        assert_eq!((config.key_prefix.as_str(), config.connect_timeout), ("lf", Duration::from_millis(500)));
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(read(r#"{"url": "redis://h", "prefix": "x"}"#).is_err(), "an unknown setting is refused");
    }
}
