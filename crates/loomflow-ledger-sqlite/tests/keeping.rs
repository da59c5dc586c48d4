//! What stays and what goes, and whom a damaged row stops.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::time::Duration;

use common::{Folder, clock, count, guessed, held, key, raw, scope, scope_in, spend, used};
use futures_util::future::join_all;
use loomflow_core::{
    BudgetConfig, Epoch, Erase, ErrorKind, Hold, HoldKey, Ledger as _, Reserve, RunId, TenantData as _,
    Usage, Window,
};
use loomflow_ledger_sqlite::{Durability, SqliteLedger, SqliteLedgerConfig};
use sqlx::AssertSqlSafe;

const DAY: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);

async fn sql(folder: &Folder, sql: String) -> u64 {
    sqlx::query(AssertSqlSafe(sql)).execute(&mut raw(&folder.file()).await).await.unwrap().rows_affected()
}

async fn number(folder: &Folder, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&mut raw(&folder.file()).await).await.unwrap()
}

/// The process that reserved died with the old budget, and nobody has that one any more.
#[tokio::test(flavor = "multi_thread")]
async fn leases_of_another_kind_of_window_end() {
    let odd = Window::Rolling(Duration::from_millis(90_500));
    for (old, new, capped) in [
        (Window::Hour, Window::Day, true),
        (Window::Hour, Window::Day, false),
        (odd, Window::Lifetime, true),
        (Window::Lifetime, odd, false),
    ] {
        let (folder, clock) = (Folder::new(), clock());
        let open = async |window| {
            let budget = BudgetConfig::new().per_user_max_tokens(500).window(window);
            folder
                .open(if capped { budget.max_tokens(1_000) } else { budget })
                .await
                .with_clock(clock.clone())
        };
        let (alice, bob) = (scope("alice"), scope("bob"));
        let before = open(old).await;
        let sent = held(&before, &alice, &Hold::tokens(key(), 100, 0).with_lease(MINUTE)).await.id;
        let late = held(&before, &alice, &Hold::tokens(key(), 50, 0).with_lease(DAY * 30)).await.id;
        before.sent(&alice, sent).await.unwrap();
        held(&before, &bob, &Hold::tokens(key(), 10, 0).with_lease(MINUTE)).await;
        drop(before);
        clock.advance(DAY + MINUTE * 2);
        let after = open(new).await;
        spend(&after, &scope("other"), 1, 0).await;
        let open_holds = "SELECT count(*) FROM ledger_holds WHERE ended IS NULL";
        assert_eq!(number(&folder, open_holds).await, 1, "{old} {new}: alice's long one");
        assert_eq!(number(&folder, "SELECT sum(open_holds) FROM ledger_counters").await, 1, "{old} {new}");
        assert!(!after.close(&alice, late, used(7, 0)).await.unwrap().duplicate, "{old} {new}");
        let listed = after.estimates(&alice).await.unwrap();
        assert_eq!(listed.len(), 1, "{old} {new}");
        assert!(!after.reconcile(&alice, sent, Usage::new(30, 0)).await.unwrap().duplicate);
        assert_eq!(after.usage(&alice).await.unwrap().used.total_tokens(), 0, "{old} {new}");
        let usage = open(old).await.usage(&alice).await.unwrap();
        assert_eq!(usage.held_tokens, 0, "{old} {new}");
        // What was sent was charged in a window that has ended by now; a lifetime does not end.
        let sum = if old == Window::Lifetime { 37 } else { 7 };
        assert_eq!(usage.used.total_tokens(), sum, "{old} {new}");
    }
}

/// A rolling window is as long as it says, to the microsecond.
#[tokio::test(flavor = "multi_thread")]
async fn usage_never_leaves_an_odd_rolling_window_early() {
    let (folder, clock) = (Folder::new(), clock());
    let odd = Duration::from_millis(60_999);
    let budget = BudgetConfig::new().per_user_max_tokens(100).window(Window::Rolling(odd));
    let ledger = folder.open(budget).await.with_clock(clock.clone());
    // The last moment of a slice of sixty seconds.
    clock.set(loomflow_core::Timestamp::from_micros(clock.read().as_micros() - 1));
    spend(&ledger, &scope("alice"), 100, 0).await;
    clock.advance(odd);
    let usage = ledger.usage(&scope("alice")).await.unwrap();
    assert_eq!(usage.used.total_tokens(), 100, "only then it ends");
}

/// Users who came and went: their rows go with what they are for, their names before that of nobody else, and what an
/// erasure promised holds for those who stay.
#[tokio::test(flavor = "multi_thread")]
async fn who_came_and_went_leaves_nothing() {
    const GONE: usize = 1_300;
    let (folder, clock) = (Folder::new(), clock());
    let budget = BudgetConfig::new().per_user_max_tokens(100).per_run_max_tokens(100).window(Window::Day);
    let open = async || {
        let config =
            SqliteLedgerConfig::new(folder.file(), budget.clone()).with_durability(Durability::Normal);
        SqliteLedger::connect(config).await.unwrap().with_clock(clock.clone())
    };
    let ledger = open().await;
    let name = |n: usize| format!("canary_{n:06}");
    let (holds, estimated, erased) = (scope("kept_holds"), scope("kept_estimated"), scope("kept_erased"));
    held(&ledger, &holds, &Hold::tokens(key(), 5, 0).with_lease(DAY * 300)).await;
    let got = held(&ledger, &estimated, &Hold::tokens(key(), 5, 0)).await;
    ledger.close(&estimated, got.id, guessed(5, 0)).await.unwrap();
    spend(&ledger, &erased, 5, 0).await;
    ledger.forget(&scope_in("app", "kept_erased", 1), &Erase::everything()).await.unwrap();
    let again = scope_in("app", "kept_erased", 1);
    spend(&ledger, &again, 5, 0).await;
    join_all((0..GONE).map(|n| {
        let ledger = ledger.clone();
        async move { spend(&ledger, &scope(&name(n)), 60, 0).await }
    }))
    .await;
    let turn = async |days: u32, writes: u32| {
        clock.advance(DAY * days);
        let ledger = open().await;
        let stays = scope("kept_stays");
        for n in 0..writes {
            let got = held(&ledger, &stays, &Hold::tokens(HoldKey::new(RunId::from_u128(3), n), 0, 0)).await;
            ledger.close(&stays, got.id, used(0, 0)).await.unwrap();
        }
    };
    turn(1, 100).await;
    assert_eq!(count(&folder.file(), "ledger_users").await, 4 + GONE as i64, "their counters are there");
    // The counters of users go after two days, those of their runs after forty.
    turn(3, 700).await;
    assert_eq!(count(&folder.file(), "ledger_users").await, 4 + GONE as i64, "and those of their runs");
    turn(40, 1_500).await;
    let left = count(&folder.file(), "ledger_users").await;
    assert_eq!(left, 4, "who holds, who can be invoiced, whose erasure is known, and who stays");
    assert_eq!(ledger.epoch(&erased).await.unwrap(), Epoch::new(1));
    assert!(count(&folder.file(), "ledger_names").await < 100, "blank names go, too");
    assert_eq!(number(&folder, "SELECT count(*) FROM ledger_names WHERE namespace <> ''").await, 3);
    assert_eq!(ledger.usage(&holds).await.unwrap().held_tokens, 5);
    assert_eq!(ledger.estimates(&estimated).await.unwrap().len(), 1);
    // Back to the day on which they spent: gone is gone, and there is no second quota.
    let ledger = open().await;
    let back = clock.read().as_micros() - i64::try_from((DAY * 44).as_micros()).unwrap();
    clock.set(loomflow_core::Timestamp::from_micros(back));
    spend(&ledger, &scope(&name(7)), 60, 0).await;
    clock.advance(DAY);
    let no = ledger.reserve(&scope(&name(7)), &Hold::tokens(key(), 60, 0)).await.unwrap();
    assert!(matches!(no, Reserve::Refused(_)), "the window that was cleared away is not opened again");
    for user in ["kept_holds", "kept_estimated", "kept_stays"] {
        let receipt = ledger.forget(&scope_in("app", user, 1), &Erase::everything()).await.unwrap();
        assert_eq!(receipt.total(), 1, "{user}");
        let bytes = folder.bytes();
        assert!(!bytes.windows(user.len()).any(|part| part == user.as_bytes()), "{user} is in the file");
    }
}

/// Whatever of a user's rows is damaged: their account is refused and says which row it is, what they hold stays held among
/// all together, everybody else goes on, and once the row is repaired all is as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_row_stops_its_own_user_alone() {
    let of_alice = "expires = (SELECT min(expires) FROM ledger_holds)";
    for (table, filter, spoils, repairs) in [
        ("ledger_holds", of_alice, "state = '\"gone\"'", "state = '\"sent\"'"),
        ("ledger_holds", of_alice, "granted = 'x' || granted", "granted = substr(granted, 2)"),
        ("ledger_holds", of_alice, "seq = seq - 5000000000", "seq = seq + 5000000000"),
        ("ledger_counters", "entity = 'user'", "state = 'x' || state", "state = substr(state, 2)"),
        ("ledger_counters", "entity = 'user'", "open_holds = -open_holds", "open_holds = -open_holds"),
        ("ledger_counters", "entity = 'run'", "state = 'x' || state", "state = substr(state, 2)"),
    ] {
        let (folder, clock) = (Folder::new(), clock());
        let budget = BudgetConfig::new().max_tokens(1_000).per_run_max_tokens(500);
        let ledger = folder.open(budget).await.with_clock(clock.clone());
        let (alice, bob, carol) = (scope("alice"), scope("bob"), scope("carol"));
        let lost = held(&ledger, &alice, &Hold::tokens(key(), 100, 0).with_lease(MINUTE)).await.id;
        ledger.sent(&alice, lost).await.unwrap();
        assert_eq!(sql(&folder, format!("UPDATE {table} SET {spoils} WHERE {filter}")).await, 1);
        let id = "SELECT hex(partition) FROM ledger_holds";
        let partition: String =
            sqlx::query_scalar(id).fetch_one(&mut raw(&folder.file()).await).await.unwrap();
        held(&ledger, &carol, &Hold::tokens(key(), 10, 0).with_lease(MINUTE * 2)).await;
        clock.advance(MINUTE * 3);
        for _ in 0..40 {
            spend(&ledger, &bob, 1, 0).await;
        }
        let all = ledger.namespace_usage(&bob).await.unwrap();
        assert_eq!((all.used.total_tokens(), all.held_tokens), (40, 100), "{table}: alice's stays held");
        for outcome in [
            ledger.reserve(&alice, &Hold::tokens(key(), 1, 0)).await.map(drop),
            ledger.close(&alice, lost, used(1, 0)).await.map(drop),
        ] {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
            for part in [table, &partition.to_lowercase(), "backup"] {
                assert!(error.to_string().contains(part), "{part}: {error}");
            }
        }
        let readiness = ledger.ready().await;
        assert!(readiness.ready && readiness.detail.contains(table), "{readiness:?}");
        let filter = format!("{filter} AND partition = x'{partition}'");
        assert_eq!(sql(&folder, format!("UPDATE {table} SET {repairs} WHERE {filter}")).await, 1);
        held(&ledger, &alice, &Hold::tokens(key(), 1, 0)).await;
        let all = ledger.namespace_usage(&bob).await.unwrap();
        assert_eq!((all.used.total_tokens(), all.held_tokens), (140, 1), "{table}: charged as sent");
        assert_eq!(ledger.ready().await.detail, "");
    }
}

/// More of them than a sweep looks at in one go.
#[tokio::test(flavor = "multi_thread")]
async fn many_damaged_rows_hold_nobody_up() {
    let (folder, clock) = (Folder::new(), clock());
    let config = SqliteLedgerConfig::new(folder.file(), BudgetConfig::new().max_tokens(1_000))
        .with_durability(Durability::Normal);
    let ledger = SqliteLedger::connect(config).await.unwrap().with_clock(clock.clone());
    for n in 0..300 {
        let lost = Hold::tokens(HoldKey::new(RunId::from_u128(n), 0), 1, 0).with_lease(MINUTE);
        held(&ledger, &scope(&format!("user_{}", n % 100)), &lost).await;
    }
    sql(&folder, "UPDATE ledger_holds SET granted = 'x' || granted".to_owned()).await;
    held(&ledger, &scope("carol"), &Hold::tokens(key(), 10, 0).with_lease(MINUTE * 2)).await;
    clock.advance(MINUTE * 3);
    spend(&ledger, &scope("bob"), 1, 0).await;
    let all = ledger.namespace_usage(&scope("bob")).await.unwrap();
    assert_eq!((all.used.total_tokens(), all.held_tokens), (1, 300), "carol's was given back");
}

/// Without the counter of all users together nobody can be judged, and the refusal says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_counter_of_all_together_refuses_everybody() {
    let folder = Folder::new();
    let ledger = folder.open(BudgetConfig::new().max_tokens(1_000)).await;
    held(&ledger, &scope("alice"), &Hold::tokens(key(), 100, 0)).await;
    sql(&folder, "UPDATE ledger_counters SET state = '{' WHERE entity = 'global'".to_owned()).await;
    for user in ["alice", "bob"] {
        let error = ledger.reserve(&scope(user), &Hold::tokens(key(), 1, 0)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        for part in ["ledger_counters", "all users together", "backup"] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    }
    assert!(ledger.usage(&scope("alice")).await.is_ok(), "what is the user's own can be looked at");
}
