//! Where the memory is, and what bounds it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::Secret;
use loomflow_support_sql::postgres::defaults;
use serde::Deserialize;

/// Where a [`PostgresMemory`](crate::PostgresMemory) is, and what bounds it. `Debug` does not show the connection string.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PostgresMemoryConfig {
    /// The connection string, a secret: `postgres://user:password@host:5432/database`, with the parameters of libpq
    /// (`sslmode`, `sslrootcert`, ...).
    #[serde(deserialize_with = "loomflow_core::settings::secret")]
    pub url: Arc<Secret<String>>,
    /// The schema that holds the tables. `loomflow` by default.
    #[serde(default = "loomflow_support_sql::postgres::defaults::schema")]
    pub schema: String,
    /// The role that the application acts as, whoever connects. `loomflow_app` by default.
    #[serde(default = "loomflow_support_sql::postgres::defaults::app_role")]
    pub app_role: String,
    /// Whether connecting brings the schema up to date. True by default; false refuses a schema that is not.
    #[serde(default = "loomflow_support_sql::postgres::defaults::migrate")]
    pub migrate: bool,
    /// The most connections at once; 16 by default.
    #[serde(default = "loomflow_support_sql::postgres::defaults::max_connections")]
    pub max_connections: usize,
    /// How long to wait for a connection, a free one or a new one; 5 s by default.
    #[serde(default = "loomflow_support_sql::postgres::defaults::connect_timeout")]
    pub connect_timeout: Duration,
    /// How long an operation may take; 30 s by default. For an export it is each page's time.
    #[serde(default = "loomflow_support_sql::postgres::defaults::operation_timeout")]
    pub operation_timeout: Duration,
    /// How many episodes with vectors a partition has before
    /// [`PostgresMemory::maintain`](crate::PostgresMemory::maintain) gives it an approximate index; 50,000 by default.
    #[serde(default = "index_above")]
    pub index_above: u64,
    #[cfg(feature = "testing")]
    #[serde(skip)]
    pub(crate) fault: Option<Fault>,
}

/// A fault that a test seeds into the real code.
#[cfg(feature = "testing")]
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Reads lose their filter by partition.
    NoPartitionFilter,
}

impl PostgresMemoryConfig {
    /// The defaults for a database.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: Arc::new(Secret::new(url.into())),
            schema: defaults::schema(),
            app_role: defaults::app_role(),
            migrate: defaults::migrate(),
            max_connections: defaults::max_connections(),
            connect_timeout: defaults::connect_timeout(),
            operation_timeout: defaults::operation_timeout(),
            index_above: index_above(),
            #[cfg(feature = "testing")]
            fault: None,
        }
    }

    loomflow_support_sql::postgres_setters!();

    /// Sets how many episodes with vectors a partition has before it gets an approximate index.
    #[must_use]
    pub fn with_index_above(mut self, episodes: u64) -> Self {
        self.index_above = episodes;
        self
    }

    /// Seeds a fault.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }
}

impl fmt::Debug for PostgresMemoryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresMemoryConfig")
            .field("url", &"(secret)")
            .field("schema", &self.schema)
            .field("app_role", &self.app_role)
            .field("migrate", &self.migrate)
            .field("max_connections", &self.max_connections)
            .field("connect_timeout", &self.connect_timeout)
            .field("operation_timeout", &self.operation_timeout)
            .field("index_above", &self.index_above)
            .finish_non_exhaustive()
    }
}

fn index_above() -> u64 {
    50_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_read_with_defaults_and_without_unknown_names() {
        let read = |json: &str| serde_json::from_str::<PostgresMemoryConfig>(json);
        let config = read(r#"{"url": "postgres://u:hunter2@h/d", "schema": "s"}"#).unwrap();
        assert_eq!(
            (config.schema.as_str(), config.app_role.as_str(), config.migrate),
            ("s", "loomflow_app", true)
        );
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(read(r#"{"url": "postgres://h/d", "shema": "s"}"#).is_err());
        assert!(read("{}").is_err());
    }
}
