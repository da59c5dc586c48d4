//! Statements that read. Each filters by partition; a test can take that filter out and see that row-level security is a
//! wall of its own.

use sqlx::SqlSafeStr as _;
use sqlx::SqlStr;

/// The filter that every reading statement has, as it is written in all of them.
#[cfg(feature = "testing")]
const FILTER: &str = "partition = $1";

/// How statements that read are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reads {
    #[cfg(feature = "testing")]
    unfiltered: bool,
}

impl Reads {
    #[cfg(feature = "testing")]
    pub(crate) fn new(config: &crate::PostgresApprovalsConfig) -> Self {
        Self { unfiltered: config.fault == Some(crate::Fault::NoPartitionFilter) }
    }

    #[cfg(not(feature = "testing"))]
    pub(crate) fn new(_config: &crate::PostgresApprovalsConfig) -> Self {
        Self {}
    }

    /// The statement, as it is written.
    #[cfg(not(feature = "testing"))]
    pub(crate) fn sql(self, statement: &'static str) -> SqlStr {
        statement.into_sql_str()
    }

    /// The statement, with its filter or, where the fault is seeded, without.
    #[cfg(feature = "testing")]
    pub(crate) fn sql(self, statement: &'static str) -> SqlStr {
        assert!(statement.contains(FILTER), "a reading statement filters by partition");
        if self.unfiltered {
            let bare = statement.replace(FILTER, "$1::bytea IS NOT NULL");
            return sqlx::AssertSqlSafe(bare).into_sql_str();
        }
        statement.into_sql_str()
    }
}
