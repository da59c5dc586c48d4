//! Where the file is, and the bounds of its use.

use std::path::PathBuf;
use std::time::Duration;

use loomflow_core::rules::approvals::{MAX_GRANTS_PER_USER, MAX_REQUESTS_PER_USER};
use loomflow_support_sql::sqlite::{Durability, defaults};
use serde::Deserialize;

/// How a [`SqliteApprovals`](crate::SqliteApprovals) is opened. From a configuration file, every field but `path` may be left
/// out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SqliteApprovalsConfig {
    /// The database file. Its folder must exist, on a local disk; other parts of LoomFlow may share the file.
    pub path: PathBuf,
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
    /// The most requests of one user that are not over; 1,000 by default. Beyond it a request is refused with
    /// [`Capacity`](loomflow_core::ErrorKind::Capacity).
    #[serde(default = "requests")]
    pub max_requests_per_user: usize,
    /// The most live grants of one user; 100 by default. Beyond it none is remembered, and the decision is refused.
    #[serde(default = "grants")]
    pub max_grants_per_user: usize,
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

impl SqliteApprovalsConfig {
    /// The file at `path`, with the default bounds.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            migrate: defaults::migrate(),
            connect_timeout: defaults::connect_timeout(),
            operation_timeout: defaults::operation_timeout(),
            max_connections: defaults::max_connections(),
            durability: Durability::default(),
            max_bytes: None,
            max_requests_per_user: requests(),
            max_grants_per_user: grants(),
            #[cfg(feature = "testing")]
            fault: None,
        }
    }

    loomflow_support_sql::sqlite_setters!();

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

    /// Breaks something on purpose.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }
}

fn requests() -> usize {
    MAX_REQUESTS_PER_USER
}

fn grants() -> usize {
    MAX_GRANTS_PER_USER
}
