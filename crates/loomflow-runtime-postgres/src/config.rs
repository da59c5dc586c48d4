//! Where the approvals are, and what bounds them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::Secret;
use loomflow_core::rules::approvals::{MAX_GRANTS_PER_USER, MAX_REQUESTS_PER_USER};
use loomflow_support_sql::postgres::defaults;
use serde::Deserialize;

/// Where a [`PostgresApprovals`](crate::PostgresApprovals) is, and what bounds it. `Debug` does not show the connection string.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PostgresApprovalsConfig {
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
    /// The most requests of one user that are not over; 1,000 by default. Beyond it a request is refused with
    /// [`Capacity`](loomflow_core::ErrorKind::Capacity).
    #[serde(default = "requests")]
    pub max_requests_per_user: usize,
    /// The most live grants of one user; 100 by default. Beyond it none is remembered, and the decision is refused.
    #[serde(default = "grants")]
    pub max_grants_per_user: usize,
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

impl PostgresApprovalsConfig {
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
            max_requests_per_user: requests(),
            max_grants_per_user: grants(),
            #[cfg(feature = "testing")]
            fault: None,
        }
    }

    loomflow_support_sql::postgres_setters!();

    /// Sets the most requests of one user that are not over.
    #[must_use]
    pub fn with_max_requests_per_user(mut self, requests: usize) -> Self {
        self.max_requests_per_user = requests;
        self
    }

    /// Sets the most live grants of one user.
    #[must_use]
    pub fn with_max_grants_per_user(mut self, grants: usize) -> Self {
        self.max_grants_per_user = grants;
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

impl fmt::Debug for PostgresApprovalsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresApprovalsConfig")
            .field("url", &"(secret)")
            .field("schema", &self.schema)
            .field("app_role", &self.app_role)
            .field("migrate", &self.migrate)
            .field("max_connections", &self.max_connections)
            .field("connect_timeout", &self.connect_timeout)
            .field("operation_timeout", &self.operation_timeout)
            .field("max_requests_per_user", &self.max_requests_per_user)
            .field("max_grants_per_user", &self.max_grants_per_user)
            .finish_non_exhaustive()
    }
}

fn requests() -> usize {
    MAX_REQUESTS_PER_USER
}

fn grants() -> usize {
    MAX_GRANTS_PER_USER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_read_with_defaults_and_without_unknown_names() {
        let read = |json: &str| serde_json::from_str::<PostgresApprovalsConfig>(json);
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
