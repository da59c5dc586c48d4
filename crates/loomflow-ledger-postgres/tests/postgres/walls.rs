//! The two walls, each alone: the filter of every statement, and row-level security. And the tripwire behind them.

use loomflow_core::{BudgetConfig, ErrorKind, Ledger as _};
use sqlx::{Executor as _, Row as _};

use crate::support::{Database, connect, estimated, held, hold, owner, scope, used};

const TABLES: [&str; 4] = ["totals", "users", "runs", "holds"];

fn budget() -> BudgetConfig {
    BudgetConfig::new().max_tokens(1_000_000).per_user_max_tokens(100_000).per_run_max_tokens(50_000)
}

/// Three users who each used something, were charged an estimate, and hold something.
async fn filled(database: &Database) {
    let ledger = database.ledger(budget()).await;
    for (n, user) in (1..).zip(["alice", "bob", "mallory"]) {
        let scope = scope(user);
        for charge in [used(n * 100), estimated(n * 10)] {
            let id = held(&ledger, &scope, &hold(n * 100)).await.id;
            ledger.sent(&scope, id).await.unwrap();
            ledger.close(&scope, id, charge).await.unwrap();
        }
        held(&ledger, &scope, &hold(n)).await;
    }
}

/// What a session of the application's role sees in every table, having said `sets`.
async fn seen(database: &Database, sets: &[(&str, String)]) -> Vec<i64> {
    let mut conn = connect(&database.url()).await;
    let act = format!("SET search_path TO loomflow; SET ROLE {}", database.role);
    conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(act))).await.unwrap();
    for (name, value) in sets {
        sqlx::query("SELECT set_config($1, $2, false)")
            .bind(name)
            .bind(value)
            .execute(&mut conn)
            .await
            .unwrap();
    }
    let mut counts = Vec::new();
    for table in TABLES {
        let count = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM ledger_{table}"));
        counts.push(conn.fetch_one(sqlx::raw_sql(count)).await.unwrap().try_get(0).unwrap());
    }
    counts
}

fn hex(text: &str) -> String {
    text.bytes().map(|b| format!("{b:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_sees_what_it_names_and_nothing_else() {
    let database = Database::new().await;
    filled(&database).await;
    let (alice, bob) = (owner("alice").partition_hex(), owner("bob").partition_hex());
    let partitions = |list: String| ("loomflow.partitions", list);
    let namespace = |name: &str| ("loomflow.namespace", hex(name));
    let sweep = |at: i64| ("loomflow.sweep", at.to_string());
    assert_eq!(seen(&database, &[]).await, [0, 0, 0, 0]);
    assert_eq!(seen(&database, &[partitions(String::new())]).await, [0, 0, 0, 0]);
    assert_eq!(seen(&database, &[partitions(owner("nobody").partition_hex())]).await, [0, 0, 0, 0]);
    assert_eq!(seen(&database, &[("loomflow.partition", alice.clone())]).await, [0, 0, 0, 0]);
    assert_eq!(seen(&database, &[namespace("other")]).await, [0, 0, 0, 0]);
    assert_eq!(seen(&database, &[namespace("app")]).await, [1, 0, 0, 0], "what all users have together");
    let three = [1, 1, 3, 2];
    assert_eq!(seen(&database, &[namespace("app"), partitions(alice.clone())]).await, three);
    assert_eq!(seen(&database, &[partitions(format!("{alice},{bob}"))]).await, [0, 2, 6, 4]);
    assert_eq!(seen(&database, &[namespace("app"), sweep(0)]).await, [1, 0, 0, 0], "no lease has run out");
    database.sql("UPDATE ledger_holds SET until = 5 WHERE open AND user_id = 'bob'").await;
    assert_eq!(seen(&database, &[namespace("app"), sweep(4)]).await, [1, 0, 0, 0]);
    assert_eq!(seen(&database, &[namespace("app"), sweep(5)]).await, [1, 0, 0, 1], "and now one");
    assert_eq!(seen(&database, &[namespace("other"), sweep(5)]).await, [0, 0, 0, 0], "of that namespace");
    assert_eq!(seen(&database, &[sweep(5)]).await, [0, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_named_cannot_be_written() {
    let database = Database::new().await;
    filled(&database).await;
    database.sql("UPDATE ledger_holds SET until = 5; UPDATE ledger_users SET until = 5").await;
    let mut conn = connect(&database.url()).await;
    let act = format!(
        "SET search_path TO loomflow; SET ROLE {}; SELECT set_config('loomflow.namespace', '{}', false),
           set_config('loomflow.sweep', '9', false)",
        database.role,
        hex("app")
    );
    conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(act))).await.unwrap();
    for change in [
        "UPDATE ledger_users SET cell = '{}'",
        "DELETE FROM ledger_holds",
        "UPDATE ledger_runs SET until = 1",
    ] {
        assert_eq!(conn.execute(change).await.unwrap().rows_affected(), 0, "a sweep sees and does not write");
    }
    for refused in [
        "UPDATE ledger_totals SET namespace = 'other'",
        "DELETE FROM ledger_totals",
        "UPDATE ledger_meta SET secret = sha256('')",
        "TRUNCATE ledger_holds",
        "INSERT INTO ledger_users (partition, period, namespace, named, open_holds, cell)
         VALUES (sha256('x'), 'day', 'app', false, 0, '{}')",
    ] {
        let error = conn.execute(refused).await.unwrap_err();
        let code = error.as_database_error().and_then(|e| e.code()).unwrap().into_owned();
        assert_eq!(code, "42501", "{refused}: {error}");
    }
}

/// A row that says it is another's spoils the account it is filed under, and no other of the same group.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_row_trips_its_own_account_alone() {
    for table in ["users", "runs", "holds"] {
        let database = Database::new().await;
        filled(&database).await;
        let ledger = database.ledger(budget()).await;
        let ids = (hold(1), hold(1));
        // The run and the hold that are asked for are those that the row is of.
        let open = held(&ledger, &scope("alice"), &ids.0).await.id;
        let hex = owner("alice").partition_hex();
        database
            .sql(&format!("UPDATE ledger_{table} SET user_id = 'bob' WHERE partition = '\\x{hex}'"))
            .await;
        let (alice, bob) = (scope("alice"), scope("bob"));
        let (spoiled, other) =
            tokio::join!(ledger.close(&alice, open, used(1)), ledger.reserve(&bob, &ids.1));
        let error = spoiled.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IsolationViolation, "{table}");
        assert!(!format!("{error} {error:?}").contains("bob"));
        other.unwrap();
        assert_eq!(ledger.usage(&bob).await.unwrap().open_holds, 2, "{table}");
    }
}

#[cfg(feature = "testing")]
mod alone {
    use std::sync::Arc;
    use std::time::Duration;

    use futures_util::StreamExt as _;
    use loomflow_conformance::doubles::ManualClock;
    use loomflow_core::{Ledger, Result, Scope, TenantData as _};
    use loomflow_ledger_postgres::{Fault, PostgresLedger};

    use super::*;
    use crate::support::clock;

    /// What every way to read gives, as text; an error as its kind.
    async fn everything(ledger: &PostgresLedger, scope: &Scope) -> Vec<Result<String, ErrorKind>> {
        let usage = ledger.usage(scope).await.map(|usage| format!("{usage:?}"));
        let estimates = ledger.estimates(scope).await.and_then(|all| {
            let opened: Result<Vec<_>> = all.into_iter().map(|owned| owned.open(scope)).collect();
            opened.map(|all| format!("{all:?}"))
        });
        let exported = match ledger.export(scope).await {
            Ok(stream) => {
                let items: Vec<_> = stream.collect().await;
                let opened: Result<Vec<_>> =
                    items.into_iter().map(|item| item.and_then(|owned| owned.open(scope))).collect();
                opened.map(|all| format!("{all:?}"))
            }
            Err(error) => Err(error),
        };
        [usage, estimates, exported].into_iter().map(|read| read.map_err(|e| e.kind())).collect()
    }

    async fn unfiltered(database: &Database, clock: Option<Arc<ManualClock>>) -> PostgresLedger {
        let mut config = database.config(budget()).with_fault(Fault::NoPartitionFilter);
        if let Some(clock) = clock {
            config = config.with_clock(clock);
        }
        PostgresLedger::connect(config).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn row_level_security_holds_where_every_filter_is_gone() {
        let database = Database::new().await;
        filled(&database).await;
        let (ledger, bare) = (database.ledger(budget()).await, unfiltered(&database, None).await);
        for user in ["alice", "bob", "nobody"] {
            let expected = everything(&ledger, &scope(user)).await;
            assert_eq!(everything(&bare, &scope(user)).await, expected, "{user}");
            assert!(expected.iter().all(Result::is_ok), "{expected:?}");
        }
        // Several tenants in one group: each is counted what is theirs.
        let scopes = [scope("alice"), scope("bob"), scope("mallory"), scope("new")];
        for round in 1..=3 {
            let calls = scopes.iter().zip(1..).map(|(scope, n)| {
                let bare = bare.clone();
                async move {
                    let id = held(&bare, scope, &hold(n)).await.id;
                    bare.sent(scope, id).await.unwrap();
                    assert!(!bare.close(scope, id, used(n)).await.unwrap().duplicate);
                }
            });
            futures_util::future::join_all(calls).await;
            for (scope, n) in scopes.iter().zip(1_u64..) {
                let usage = ledger.usage(scope).await.unwrap();
                let before = if n == 4 { 0 } else { n * 110 };
                assert_eq!(usage.used.total_tokens(), before + round * n, "{scope:?}");
                assert_eq!(usage.open_holds, u64::from(n != 4), "{scope:?}");
            }
        }
    }

    /// Leases of others run out, and a group that sweeps them sees nothing else of them.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_sweep_without_filters_settles_what_is_due_and_nothing_else() {
        let (database, clock) = (Database::new().await, clock());
        let bare = unfiltered(&database, Some(clock.clone())).await;
        for (n, user) in (1..).zip(["alice", "bob", "mallory"]) {
            held(&bare, &scope(user), &hold(n * 10).with_lease(Duration::from_secs(n))).await;
            held(&bare, &scope(user), &hold(n)).await;
        }
        clock.advance(Duration::from_secs(2));
        held(&bare, &scope("new"), &hold(1)).await;
        let total = bare.namespace_usage(&scope("new")).await.unwrap();
        assert_eq!(total.held_tokens, 30 + 1 + 2 + 3 + 1, "alice's 10 and bob's 20 are given back");
        for (user, open) in [("alice", 1), ("bob", 1), ("mallory", 2), ("new", 1)] {
            assert_eq!(bare.usage(&scope(user)).await.unwrap().open_holds, open, "{user}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_filters_hold_where_row_level_security_is_lifted() {
        let database = Database::new().await;
        filled(&database).await;
        let ledger = database.ledger(budget()).await;
        let expected =
            (everything(&ledger, &scope("alice")).await, everything(&ledger, &scope("nobody")).await);
        lift(&database).await;
        assert_eq!(everything(&ledger, &scope("alice")).await, expected.0);
        assert_eq!(everything(&ledger, &scope("nobody")).await, expected.1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_tripwire_catches_what_passes_both_walls() {
        let database = Database::new().await;
        filled(&database).await;
        let bare = unfiltered(&database, None).await;
        lift(&database).await;
        for read in everything(&bare, &scope("alice")).await {
            assert_eq!(read, Err(ErrorKind::IsolationViolation));
        }
        let refused = bare.reserve(&scope("alice"), &hold(1)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::IsolationViolation);
    }

    async fn lift(database: &Database) {
        for table in TABLES {
            database.sql(&format!("ALTER TABLE ledger_{table} DISABLE ROW LEVEL SECURITY")).await;
        }
    }
}
