//! Opening the ledger that a URL names.

use std::sync::Arc;

use loomflow_core::{BudgetConfig, Error, ErrorKind, Ledger, Result};

use super::StoreUrl;
#[allow(unused_imports, reason = "with every feature on, nothing is switched off")]
use super::switched_off;
use super::url::{Kind, Part, Target};

const OPERATION: &str = "resolve_ledger";
pub(super) const LEDGER: Part =
    Part { name: "ledger", kinds: &[Kind::InMemory, Kind::Sqlite, Kind::Postgres, Kind::Redis] };

/// Opens the ledger that `url` names with the caps of `budget`, and brings its schema up to date where it has one.
///
/// What a URL cannot say (a pool's size, timeouts, a schema that only its owner may change) is said by the store's own
/// configuration, such as `ledger_sqlite::SqliteLedgerConfig`; its `connect` gives the same ledger.
///
/// # Errors
///
/// - [`ErrorKind::Config`] for a budget that makes no sense, and for a URL as [`memory`](super::memory) refuses it; a
///   scheme that keeps no ledger, too.
/// - Whatever connecting fails with: [`ErrorKind::Auth`], [`ErrorKind::Unreachable`], [`ErrorKind::Timeout`], or
///   [`ErrorKind::Config`] for a schema this program does not know.
pub async fn ledger(url: impl Into<StoreUrl> + Send, budget: BudgetConfig) -> Result<Arc<dyn Ledger>> {
    let fail = |error: Error| error.with_operation(OPERATION);
    let target = url.into().parse(&LEDGER).map_err(fail)?;
    budget.validate().map_err(fail)?;
    open(target, budget).await
}

/// Connects to one ledger, if its crate was compiled in.
macro_rules! connect {
    ($feature:literal, $target:ident, $budget:ident, $package:ident, $ledger:ident, $config:ident) => {{
        #[cfg(feature = $feature)]
        {
            let config = $package::$config::new($target.place.expose().as_str(), $budget);
            Ok(Arc::new(Box::pin($package::$ledger::connect(config)).await?))
        }
        #[cfg(not(feature = $feature))]
        {
            let _ = &$budget;
            Err(switched_off(&$target, $feature, OPERATION))
        }
    }};
}

async fn open(target: Target, budget: BudgetConfig) -> Result<Arc<dyn Ledger>> {
    match target.kind {
        Kind::InMemory => {
            #[cfg(feature = "local")]
            return Ok(Arc::new(loomflow_local::StandardBudget::new(budget)?));
            #[cfg(not(feature = "local"))]
            {
                let _ = &budget;
                return Err(switched_off(&target, "local", OPERATION));
            }
        }
        Kind::Sqlite => {
            connect!(
                "ledger-sqlite",
                target,
                budget,
                loomflow_ledger_sqlite,
                SqliteLedger,
                SqliteLedgerConfig
            )
        }
        Kind::Postgres => {
            connect!(
                "ledger-postgres",
                target,
                budget,
                loomflow_ledger_postgres,
                PostgresLedger,
                PostgresLedgerConfig
            )
        }
        Kind::Redis => {
            connect!("ledger-redis", target, budget, loomflow_ledger_redis, RedisLedger, RedisLedgerConfig)
        }
        Kind::Qdrant => {
            Err(Error::new(ErrorKind::Config, "`qdrant` keeps no ledger").with_operation(OPERATION))
        }
    }
}
