//! Where the ledger is, what it caps, and what bounds it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::{BudgetConfig, Clock, Secret};
use loomflow_support_sql::postgres::defaults;

/// Where a [`PostgresLedger`](crate::PostgresLedger) is, what it caps, and what bounds it. `Debug` does not show the
/// connection string.
///
/// It is not read from a file as a whole: the caps come from the budget's own section, and one that was left out must not
/// read as no caps at all.
#[derive(Clone)]
#[non_exhaustive]
pub struct PostgresLedgerConfig {
    /// The connection string, a secret: `postgres://user:password@host:5432/database`, with the parameters of libpq
    /// (`sslmode`, `sslrootcert`, ...).
    pub url: Arc<Secret<String>>,
    /// The caps, their window and the warning line. Every process on one namespace should have the same.
    ///
    /// Its bounds of the user table (`max_users`, `max_spilled_users`, `user_idle_ttl`) do not apply: users are rows, and
    /// no user is refused because others came before.
    pub budget: BudgetConfig,
    /// The schema that holds the tables. `loomflow` by default.
    pub schema: String,
    /// The role that the application acts as, whoever connects. `loomflow_app` by default.
    pub app_role: String,
    /// Whether connecting brings the schema up to date. True by default; false refuses a schema that is not.
    pub migrate: bool,
    /// The most connections at once; 8 by default. Four of them write.
    pub max_connections: usize,
    /// How long to wait for a connection, a free one or a new one; 5 s by default.
    pub connect_timeout: Duration,
    /// How long one attempt of a group of operations may take; 10 s by default. An operation that waits for its group may
    /// take three times that.
    pub operation_timeout: Duration,
    pub(crate) clock: Option<Arc<dyn Clock>>,
    #[cfg(feature = "testing")]
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

impl PostgresLedgerConfig {
    /// The defaults for a database and a budget.
    #[must_use]
    pub fn new(url: impl Into<String>, budget: BudgetConfig) -> Self {
        Self {
            url: Arc::new(Secret::new(url.into())),
            budget,
            schema: defaults::schema(),
            app_role: defaults::app_role(),
            migrate: defaults::migrate(),
            max_connections: 8,
            connect_timeout: defaults::connect_timeout(),
            operation_timeout: Duration::from_secs(10),
            clock: None,
            #[cfg(feature = "testing")]
            fault: None,
        }
    }

    loomflow_support_sql::postgres_setters!();

    /// Reads the time from `clock` in place of the server's, for tests: processes whose clocks disagree would disagree about
    /// leases and windows.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
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

impl fmt::Debug for PostgresLedgerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresLedgerConfig")
            .field("url", &"(secret)")
            .field("budget", &self.budget)
            .field("schema", &self.schema)
            .field("app_role", &self.app_role)
            .field("migrate", &self.migrate)
            .field("max_connections", &self.max_connections)
            .field("connect_timeout", &self.connect_timeout)
            .field("operation_timeout", &self.operation_timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_is_never_shown() {
        let config = PostgresLedgerConfig::new("postgres://u:hunter2@h/d", BudgetConfig::new());
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
