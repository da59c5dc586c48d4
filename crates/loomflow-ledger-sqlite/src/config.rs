//! Where the file is, and the bounds of its use.

use std::path::PathBuf;
use std::time::Duration;

use loomflow_core::BudgetConfig;
use loomflow_support_sql::sqlite::{Durability, defaults};
use serde::Deserialize;

/// How a [`SqliteLedger`](crate::SqliteLedger) is opened. From a configuration file, every field but `path` may be left
/// out; the budget is set by [`with_budget`](SqliteLedgerConfig::with_budget).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SqliteLedgerConfig {
    /// The database file. Its folder must exist, on a local disk; other parts of LoomFlow may share the file.
    pub path: PathBuf,
    /// The caps and their window. What bounds the table of users (`max_users`, `max_spilled_users`, `user_idle_ttl`) does
    /// not apply: nothing is evicted from a file.
    #[serde(skip)]
    pub budget: BudgetConfig,
    /// Whether connecting brings the schema up to date. True by default; otherwise a schema that is missing, older or
    /// newer is refused.
    #[serde(default = "loomflow_support_sql::sqlite::defaults::migrate")]
    pub migrate: bool,
    /// How long connecting may take. 10 seconds by default.
    #[serde(default = "loomflow_support_sql::sqlite::defaults::connect_timeout")]
    pub connect_timeout: Duration,
    /// How long an operation may take, waiting included. 5 seconds by default.
    #[serde(default = "loomflow_support_sql::sqlite::defaults::operation_timeout")]
    pub operation_timeout: Duration,
    /// The most reads at once. 4 by default.
    #[serde(default = "loomflow_support_sql::sqlite::defaults::max_connections")]
    pub max_connections: u32,
    /// Whether a write is acknowledged when the disk has it (the default), or when the operating system has it.
    #[serde(default)]
    pub durability: Durability,
    /// The most bytes that the file may take; what needs more fails with
    /// [`Capacity`](loomflow_core::ErrorKind::Capacity). No bound by default.
    #[serde(default)]
    pub max_bytes: Option<u64>,
    /// What is broken on purpose.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[serde(skip)]
    pub fault: Option<Fault>,
}

/// What a test can break, to see that the other wall holds.
#[cfg(feature = "testing")]
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Reads lose their filter on the partition.
    NoPartitionFilter,
}

impl SqliteLedgerConfig {
    /// The file at `path`, with the caps of `budget` and the default bounds.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, budget: BudgetConfig) -> Self {
        Self {
            path: path.into(),
            budget,
            migrate: defaults::migrate(),
            connect_timeout: defaults::connect_timeout(),
            operation_timeout: defaults::operation_timeout(),
            max_connections: defaults::max_connections(),
            durability: Durability::default(),
            max_bytes: None,
            #[cfg(feature = "testing")]
            fault: None,
        }
    }

    /// Sets the caps and their window.
    #[must_use]
    pub fn with_budget(mut self, budget: BudgetConfig) -> Self {
        self.budget = budget;
        self
    }

    loomflow_support_sql::sqlite_setters!();

    /// Breaks something on purpose.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }
}
