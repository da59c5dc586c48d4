//! The ledger suite, on a real PostgreSQL, as the application's role: with a clock that cases turn, and with the server's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::cell::RefCell;
use std::sync::Arc;

use loomflow_conformance::doubles::ManualClock;
use loomflow_conformance::ledger::Instance;
use loomflow_core::{BudgetConfig, Timestamp};
use loomflow_ledger_postgres::{PostgresLedger, PostgresLedgerConfig};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

/// The schemas that a test made, dropped with its thread.
struct Schemas(Vec<String>);

thread_local! {
    static SCHEMAS: RefCell<Schemas> = const { RefCell::new(Schemas(Vec::new())) };
}

/// A schema of its own for each ledger: a case may open several for one user.
fn config(budget: BudgetConfig) -> PostgresLedgerConfig {
    let schema = format!("lf_{:016x}", rand::random::<u64>());
    SCHEMAS.with_borrow_mut(|schemas| schemas.0.push(schema.clone()));
    let url = loomflow_tests::services::url("postgres");
    PostgresLedgerConfig::new(url, budget).with_schema(schema).with_max_connections(6)
}

impl Drop for Schemas {
    fn drop(&mut self) {
        let schemas = std::mem::take(&mut self.0);
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let url = loomflow_tests::services::url("postgres");
                let Ok(mut conn) = PgConnection::connect(&url).await else { return };
                for schema in schemas {
                    // What is left behind has a random name and is in nobody's way.
                    let drop = AssertSqlSafe(format!("DROP SCHEMA IF EXISTS {schema} CASCADE"));
                    conn.execute(sqlx::raw_sql(drop)).await.map(std::mem::drop).unwrap_or_default();
                }
            });
        });
        dropping.join().unwrap_or_default();
    }
}

async fn turned_by_hand(budget: BudgetConfig) -> Instance {
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_780_000_000_000_000)));
    let ledger = PostgresLedger::connect(config(budget).with_clock(clock.clone())).await.unwrap();
    Instance::new(Arc::new(ledger)).with_clock(clock)
}

async fn on_the_servers_clock(budget: BudgetConfig) -> Instance {
    Instance::new(Arc::new(PostgresLedger::connect(config(budget)).await.unwrap()))
}

mod by_hand {
    loomflow_conformance::ledger!(super::turned_by_hand);
}

mod servers_clock {
    loomflow_conformance::ledger!(super::on_the_servers_clock);
}
