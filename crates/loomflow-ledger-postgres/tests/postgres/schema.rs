//! Schemas: made once by many, refused where row-level security does not bind.

use futures_util::future::join_all;
use loomflow_core::{BudgetConfig, ErrorKind, Ledger as _};
use loomflow_ledger_postgres::PostgresLedger;

use crate::support::{Database, held, hold, scope, used};

/// Eight processes that start at once make one schema, with one secret.
#[tokio::test(flavor = "multi_thread")]
async fn many_that_migrate_at_once_make_one_schema() {
    let database = Database::new().await;
    let all = join_all((0..8).map(|_| database.ledger(BudgetConfig::new()))).await;
    assert_eq!(
        database.number("SELECT version::bigint FROM schema_versions WHERE component = 'ledger'").await,
        1
    );
    let id = held(&all[0], &scope("alice"), &hold(1)).await.id;
    all[0].close(&scope("alice"), id, used(1)).await.unwrap();
    for ledger in &all {
        assert!(
            ledger.close(&scope("alice"), id, used(1)).await.unwrap().duplicate,
            "each knows the others' ids"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_bind_is_refused() {
    for (breaks, mends) in [
        ("DROP POLICY loomflow_partition ON ledger_holds", true),
        ("DROP POLICY loomflow_seen ON ledger_users", true),
        (
            "DROP POLICY loomflow_seen ON ledger_users; CREATE POLICY loomflow_seen ON ledger_users FOR SELECT USING (true)",
            true,
        ),
        ("ALTER TABLE ledger_totals NO FORCE ROW LEVEL SECURITY", true),
        ("ALTER POLICY loomflow_partition ON ledger_totals USING (true) WITH CHECK (true)", true),
        ("CREATE POLICY more ON ledger_runs FOR SELECT USING (true)", false),
        ("CREATE POLICY loomflow_seen ON ledger_totals FOR SELECT USING (true)", false),
    ] {
        let database = Database::new().await;
        drop(database.ledger(BudgetConfig::new()).await);
        database.sql(breaks).await;
        let serving = database.config(BudgetConfig::new()).with_migrate(false);
        let refused = PostgresLedger::connect(serving.clone()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Config, "{breaks}");
        PostgresLedger::migrate(&serving).await.unwrap();
        assert_eq!(PostgresLedger::connect(serving).await.is_ok(), mends, "{breaks}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_without_sense_and_a_newer_schema_are_refused() {
    let database = Database::new().await;
    let nonsense = BudgetConfig::new().soft_warning_at(2.0);
    let refused = PostgresLedger::connect(database.config(nonsense)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    drop(database.ledger(BudgetConfig::new()).await);
    database.sql("UPDATE schema_versions SET version = 99").await;
    let refused = PostgresLedger::connect(database.config(BudgetConfig::new())).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
}
