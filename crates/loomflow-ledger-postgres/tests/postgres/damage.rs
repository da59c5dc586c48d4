//! Rows that this program did not write, or cannot read any more: whom they stop, and whom they do not.

use std::time::Duration;

use loomflow_core::{BudgetConfig, ErrorKind, Ledger as _, Reserve, TenantData as _};
use loomflow_ledger_postgres::PostgresLedger;

use crate::support::{Database, clock, held, hold, owner, scope, used};

fn budget() -> BudgetConfig {
    BudgetConfig::new().max_tokens(1_000).per_run_max_tokens(500)
}

/// Whatever of a user's rows is damaged: their account is refused and says which row it is, what they hold stays held among
/// all together, everybody else goes on, a sweep comes to an end, and once the row is repaired all is as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_row_stops_its_own_user_alone() {
    for (table, spoils, repairs) in [
        ("ledger_holds", "state = '\"gone\"'", "state = '\"sent\"'"),
        ("ledger_holds", "granted = 'x' || granted", "granted = substr(granted, 2)"),
        ("ledger_holds", "seq = seq - 5000000000", "seq = seq + 5000000000"),
        ("ledger_users", "cell = 'x' || cell", "cell = substr(cell, 2)"),
        ("ledger_runs", "cell = 'x' || cell", "cell = substr(cell, 2)"),
    ] {
        let (database, clock) = (Database::new().await, clock());
        let ledger =
            PostgresLedger::connect(database.config(budget()).with_clock(clock.clone())).await.unwrap();
        let (alice, bob, carol) = (scope("alice"), scope("bob"), scope("carol"));
        let lost = held(&ledger, &alice, &hold(100).with_lease(Duration::from_secs(60))).await.id;
        ledger.sent(&alice, lost).await.unwrap();
        held(&ledger, &carol, &hold(10).with_lease(Duration::from_secs(60))).await;
        let partition = owner("alice").partition_hex();
        let set = |what| format!("UPDATE {table} SET {what} WHERE partition = '\\x{partition}'");
        database.sql(&set(spoils)).await;
        clock.advance(Duration::from_secs(61));
        for _ in 0..3 {
            let got = held(&ledger, &bob, &hold(5)).await.id;
            ledger.close(&bob, got, used(5)).await.unwrap();
        }
        let all = ledger.namespace_usage(&bob).await.unwrap();
        assert_eq!((all.used.total_tokens(), all.held_tokens), (15, 100), "{table}: alice's stays held");
        let due =
            format!("SELECT count(*) FROM ledger_holds WHERE open AND until <= {}", clock.read().as_micros());
        assert_eq!(database.number(&due).await, 0, "{table}: no sweep looks at it again");
        let full = ledger.reserve(&bob, &hold(486)).await.unwrap();
        assert!(matches!(full, Reserve::Held(_)), "carol's lease was settled");
        let mut rounds = 0;
        while ledger.maintain(&bob).await.unwrap() {
            rounds += 1;
            assert!(rounds < 5, "{table}: the sweep comes to an end");
        }
        for outcome in [
            ledger.reserve(&alice, &hold(1)).await.map(drop),
            ledger.close(&alice, lost, used(1)).await.map(drop),
        ] {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
            for part in [table, &partition, "backup"] {
                assert!(error.to_string().contains(part), "{part}: {error}");
            }
        }
        let readiness = ledger.ready().await;
        assert!(readiness.ready && readiness.detail.contains(table), "{readiness:?}");
        database.sql(&set(repairs)).await;
        held(&ledger, &alice, &hold(1)).await;
        let all = ledger.namespace_usage(&bob).await.unwrap();
        assert_eq!((all.used.total_tokens(), all.held_tokens), (115, 487), "{table}: charged as sent");
        assert_eq!(ledger.ready().await.detail, "");
    }
}

/// A hold that was reserved under another kind of window: it is not there, says nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_hold_of_another_kind_of_window_is_not_called_settled() {
    use loomflow_core::Window;
    let database = Database::new().await;
    let alice = scope("alice");
    let before = database.ledger(budget().window(Window::Hour)).await;
    let (first, second) =
        (held(&before, &alice, &hold(10)).await.id, held(&before, &alice, &hold(10)).await.id);
    let after = database.ledger(budget().window(Window::Day)).await;
    for spoils in ["state = 'x'", "period = 'fortnight'"] {
        let id = if spoils.starts_with("state") { first } else { second };
        let hex = format!("{:032x}", id.as_u128());
        database.sql(&format!("UPDATE ledger_holds SET {spoils} WHERE id = '\\x{hex}'")).await;
        if spoils.starts_with("period") {
            database.sql("UPDATE ledger_users SET period = 'fortnight' WHERE period = 'hour'").await;
        }
        let error = after.close(&alice, id, used(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
        assert!(error.to_string().contains("ledger_holds"), "{error}");
    }
    held(&after, &alice, &hold(1)).await;
}

/// Without the counter of all users together nobody can be judged, and the refusal says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_counter_of_all_together_refuses_everybody() {
    let database = Database::new().await;
    let ledger = database.ledger(budget()).await;
    held(&ledger, &scope("alice"), &hold(100)).await;
    database.sql("UPDATE ledger_totals SET cell = '{'").await;
    for user in ["alice", "bob"] {
        let error = ledger.reserve(&scope(user), &hold(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        for part in ["ledger_totals", "all users together", "backup"] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    }
    assert!(ledger.usage(&scope("alice")).await.is_ok(), "what is the user's own can be looked at");
}
