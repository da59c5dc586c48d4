//! One user among many: a lock that is stuck, and a queue that is full of one user's operations.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use loomflow_core::{BudgetConfig, ErrorKind, Ledger as _, Reserve};
use loomflow_ledger_postgres::PostgresLedger;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::support::{Database, clock, connect, held, hold, owner, scope, used};

/// Takes the lock of a user's account, as a process does that stopped in the middle of a transaction.
fn locks(user: &str, function: &str) -> AssertSqlSafe<String> {
    let partition = owner(user).partition();
    let part = |at: usize| i32::from_be_bytes(partition[at..at + 4].try_into().unwrap());
    AssertSqlSafe(format!("SELECT {function}({}, {})", part(0), part(4)))
}

/// Those who are in one group with a user whose lock is stuck are served; only that user is refused, and may try again.
#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_lock_fails_its_own_user_alone() {
    for budget in [BudgetConfig::new().per_user_max_tokens(1 << 40), BudgetConfig::new().max_tokens(1 << 40)]
    {
        let database = Database::new().await;
        let config = database.config(budget).with_operation_timeout(Duration::from_secs(2));
        let ledger = PostgresLedger::connect(config).await.unwrap();
        let mut conn = connect(&database.url()).await;
        conn.execute(locks("user_7", "pg_advisory_lock")).await.unwrap();
        for round in 0..2 {
            let calls = (0..40).map(|n| {
                let ledger = ledger.clone();
                async move { (n, ledger.reserve(&scope(&format!("user_{n}")), &hold(1)).await) }
            });
            let mut answers: Vec<_> = calls.collect::<FuturesUnordered<_>>().collect().await;
            let (last, refused) = answers.pop().unwrap();
            assert_eq!(last, 7, "{round}: nobody waits for as long");
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Overloaded, "{round} {error}");
            assert!(error.is_retryable() && error.to_string().contains("lock"), "{error}");
            for (n, answer) in answers {
                assert!(matches!(answer, Ok(Reserve::Held(_))), "{round} {n} {answer:?}");
            }
        }
        conn.execute(locks("user_7", "pg_advisory_unlock")).await.unwrap();
        let got = held(&ledger, &scope("user_7"), &hold(1)).await.id;
        ledger.close(&scope("user_7"), got, used(1)).await.unwrap();
        assert_eq!(
            ledger.usage(&scope("user_7")).await.unwrap().open_holds,
            0,
            "what was refused holds nothing"
        );
    }
}

/// A user of whom thousands of operations wait has a part of the queue, and the others have the rest.
#[tokio::test(flavor = "multi_thread")]
async fn one_user_does_not_fill_the_queue() {
    let database = Database::new().await;
    let config = database
        .config(BudgetConfig::new().max_tokens(1 << 40))
        .with_operation_timeout(Duration::from_secs(4));
    let ledger = PostgresLedger::connect(config).await.unwrap();
    let mut conn = connect(&database.url()).await;
    conn.execute(locks("busy", "pg_advisory_lock")).await.unwrap();
    let waiting: Vec<_> = (0..6_000)
        .map(|_| {
            let ledger = ledger.clone();
            tokio::spawn(async move { ledger.reserve(&scope("busy"), &hold(1)).await.map(drop) })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    held(&ledger, &scope("quiet"), &hold(1)).await;
    assert!(waiting.iter().all(|task| !task.is_finished()), "the queue was full of them");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A lease that ran out, of a user whose lock is stuck: all users together have a cap, and go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_passes_by_whoever_is_locked() {
    let (database, clock) = (Database::new().await, clock());
    let config = database.config(BudgetConfig::new().max_tokens(1_000)).with_clock(clock.clone());
    let ledger = PostgresLedger::connect(config).await.unwrap();
    for user in ["stuck", "gone"] {
        held(&ledger, &scope(user), &hold(100).with_lease(Duration::from_secs(60))).await;
    }
    let mut conn = connect(&database.url()).await;
    conn.execute(locks("stuck", "pg_advisory_lock")).await.unwrap();
    clock.advance(Duration::from_secs(61));
    held(&ledger, &scope("bob"), &hold(900)).await;
    assert_eq!(ledger.namespace_usage(&scope("bob")).await.unwrap().held_tokens, 1_000);
    conn.execute(locks("stuck", "pg_advisory_unlock")).await.unwrap();
    assert_eq!(ledger.namespace_usage(&scope("bob")).await.unwrap().held_tokens, 900);
}
