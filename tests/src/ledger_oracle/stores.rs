//! The ledgers that the oracle judges. A new one is one more arm of [`open`].

use std::sync::Arc;

use loomflow_conformance::doubles::ManualClock;
use loomflow_core::{BudgetConfig, Error, ErrorKind, Ledger, Result};

/// What ends a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Leases {
    /// The runtime's monotonic clock. Windows follow a wall clock that goes on at its pace where it was set back.
    Monotonic,
    /// The wall clock.
    Wall,
}

/// How a ledger differs from others where the contract leaves it open.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Manner {
    /// What ends a lease.
    pub leases: Leases,
    /// Whether it can be opened again.
    pub durable: bool,
    /// Whether it remembers that a user was warned who has nothing counted any more.
    pub remembers_warnings: bool,
    /// After so many steps everybody's numbers are compared; after the others, those of the user that the step was about.
    pub every: usize,
}

/// The manner of the ledger behind a URL.
pub(super) fn manner(url: &str) -> Manner {
    let (leases, every) = if url == "inmemory" { (Leases::Monotonic, 1) } else { (Leases::Wall, 6) };
    Manner { leases, durable: url != "inmemory", remembers_warnings: url.starts_with("sqlite:"), every }
}

/// The ledger behind a URL, with a clock that can be set. The same URL is the same data.
///
/// # Errors
///
/// Whatever opening it fails with.
#[cfg(feature = "stores")]
pub async fn open(url: &str, budget: BudgetConfig, clock: Arc<ManualClock>) -> Result<Arc<dyn Ledger>> {
    use loomflow::{ledger_postgres as postgres, ledger_redis as redis, ledger_sqlite as sqlite, local};
    Ok(match url.split(':').next() {
        Some("inmemory") => Arc::new(local::StandardBudget::new(budget)?.with_clock(clock)),
        Some("sqlite") => {
            let config = sqlite::SqliteLedgerConfig::new(&url["sqlite:".len()..], budget)
                .with_durability(sqlite::Durability::Normal);
            Arc::new(sqlite::SqliteLedger::connect(config).await?.with_clock(clock))
        }
        Some("postgres" | "postgresql") => {
            let config = postgres::PostgresLedgerConfig::new(url, budget).with_clock(clock);
            Arc::new(postgres::PostgresLedger::connect(config).await?)
        }
        Some("redis" | "rediss") => {
            let config = redis::RedisLedgerConfig::new(url, budget);
            Arc::new(redis::RedisLedger::connect(config).await?.with_clock(clock))
        }
        _ => return Err(Error::new(ErrorKind::Config, "the oracle knows no ledger of this scheme")),
    })
}

/// Without the feature `stores` there are none.
///
/// # Errors
///
/// Always.
#[cfg(not(feature = "stores"))]
#[allow(clippy::unused_async, reason = "as it is with the feature")]
pub async fn open(_: &str, _: BudgetConfig, _: Arc<ManualClock>) -> Result<Arc<dyn Ledger>> {
    Err(Error::new(ErrorKind::Config, "the feature `stores` is off"))
}
