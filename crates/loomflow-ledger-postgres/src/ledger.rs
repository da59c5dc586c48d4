//! The ledger: connecting, and what each operation of the contract goes through.

use std::fmt;
use std::sync::Arc;

use loomflow_core::Result;
use loomflow_support_sql::postgres::{Pool, migrate};

use crate::PostgresLedgerConfig;
use crate::schema::LEDGER;

/// Quota on PostgreSQL, shared by any number of processes. See the crate's documentation.
///
/// Cloning gives another handle to the same connections.
#[derive(Clone)]
pub struct PostgresLedger(Arc<Inner>);

struct Inner {
    pool: Pool,
}

impl PostgresLedger {
    /// Connects, brings the schema up to date unless the configuration forbids it, and checks that row-level security
    /// binds the application's role in every table.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](loomflow_core::ErrorKind::Config) for a budget that makes no sense, a wrong connection string, a
    /// schema that is missing, older or newer than this program (a newer one is left untouched), or a role or a table that
    /// row-level security does not bind; [`ErrorKind::Unreachable`](loomflow_core::ErrorKind::Unreachable) for a server that
    /// is not there. The message says what to do.
    pub async fn connect(config: PostgresLedgerConfig) -> Result<Self> {
        config.budget.validate()?;
        let pool = Pool::connect(&config.settings(), &LEDGER, config.migrate).await?;
        Ok(Self(Arc::new(Inner { pool })))
    }

    /// Brings the schema up to date and does nothing else. The user of the connection string makes the application's
    /// role and owns the tables.
    ///
    /// # Errors
    ///
    /// As [`PostgresLedger::connect`]; [`ErrorKind::Config`](loomflow_core::ErrorKind::Config) when the user lacks a
    /// privilege.
    pub async fn migrate(config: &PostgresLedgerConfig) -> Result<()> {
        migrate(&config.settings(), &LEDGER).await
    }
}

impl fmt::Debug for PostgresLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresLedger({:?})", self.0.pool)
    }
}
