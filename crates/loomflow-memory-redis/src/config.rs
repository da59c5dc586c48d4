//! Where the server is, and how long to wait for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::Secret;
use loomflow_support_redis::defaults;
use serde::{Deserialize, Deserializer};

/// Settings of a [`RedisMemory`](crate::RedisMemory). Times are written in seconds, fractions allowed.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RedisMemoryConfig {
    /// `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS. A secret: it is never shown.
    #[serde(deserialize_with = "loomflow_core::settings::secret")]
    pub url: Arc<Secret<String>>,
    /// What the names of all keys begin with: 1 to 32 of `A-Z a-z 0-9 _ . -`. `lf` by default.
    #[serde(default = "loomflow_support_redis::defaults::key_prefix")]
    pub key_prefix: String,
    /// Whether connecting brings the schema up to date; otherwise it only checks it. On by default.
    #[serde(default = "yes")]
    pub migrate: bool,
    /// Whether vectors are searched by RediSearch where the server has it. On by default.
    #[serde(default = "yes")]
    pub search: bool,
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
    /// After how long without a use everything of a tenant is given up: episodes, facts and blocks alike. `None`, the
    /// default, keeps all until it is erased.
    #[serde(default, deserialize_with = "maybe_seconds")]
    pub idle_ttl: Option<Duration>,
    #[cfg(feature = "testing")]
    #[serde(skip)]
    pub(crate) fault: Option<Fault>,
}

/// What a test can break on purpose.
#[cfg(feature = "testing")]
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The tenant is left out of every key and every filter.
    NoPartitionFilter,
}

impl RedisMemoryConfig {
    /// The server at `url`, with the defaults.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: Arc::new(Secret::new(url.into())),
            key_prefix: defaults::key_prefix(),
            migrate: true,
            search: true,
            connect_timeout: defaults::connect_timeout(),
            operation_timeout: operation_timeout(),
            max_in_flight: defaults::max_in_flight(),
            idle_ttl: None,
            #[cfg(feature = "testing")]
            fault: None,
        }
    }

    loomflow_support_redis::redis_setters!();

    /// Sets whether connecting brings the schema up to date.
    #[must_use]
    pub fn with_migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Sets whether RediSearch is used where the server has it. Answers are the same either way.
    #[must_use]
    pub fn with_search(mut self, search: bool) -> Self {
        self.search = search;
        self
    }

    /// Gives up everything of a tenant, **blocks and facts included**, after this long without a use. What never expires
    /// is that a tenant was erased. Vectors are not put into RediSearch then.
    #[must_use]
    pub fn with_idle_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.idle_ttl = ttl.into();
        self
    }

    /// Breaks something on purpose.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// The time to live in milliseconds, as scripts take it; 0 for none.
    pub(crate) fn ttl_millis(&self) -> u64 {
        let millis = |ttl: Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 48);
        self.idle_ttl.map_or(0, millis)
    }
}

impl fmt::Debug for RedisMemoryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisMemoryConfig")
            .field("key_prefix", &self.key_prefix)
            .field("migrate", &self.migrate)
            .field("search", &self.search)
            .field("connect_timeout", &self.connect_timeout)
            .field("operation_timeout", &self.operation_timeout)
            .field("max_in_flight", &self.max_in_flight)
            .field("idle_ttl", &self.idle_ttl)
            .finish_non_exhaustive()
    }
}

fn yes() -> bool {
    true
}

fn operation_timeout() -> Duration {
    Duration::from_secs(10)
}

fn maybe_seconds<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    let seconds = Option::<f64>::deserialize(d)?;
    seconds.map(Duration::try_from_secs_f64).transpose().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_with_defaults_and_shows_no_password() {
        let read = |text: &str| serde_json::from_str::<RedisMemoryConfig>(text);
        let config =
            read(r#"{"url": "redis://u:hunter2@h", "idle_ttl": 0.5, "connect_timeout": 2}"#).unwrap();
        assert_eq!((config.ttl_millis(), config.connect_timeout), (500, Duration::from_secs(2)));
        assert_eq!((config.key_prefix.as_str(), config.migrate, config.search), ("lf", true, true));
        assert!(!format!("{config:?} {:?}", config.link_options()).contains("hunter2"));
        assert!(read(r#"{"url": "redis://h", "prefix": "x"}"#).is_err(), "an unknown setting is refused");
        assert!(read(r#"{"url": "redis://h", "idle_ttl": -1}"#).is_err());
    }
}
