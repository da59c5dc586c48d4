//! Several processes on one database, as several pools: caps hold, and no error of the server reaches a caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use loomflow_core::{BudgetConfig, Charge, ErrorKind, Ledger as _, Reserve};
use loomflow_ledger_postgres::PostgresLedger;

use crate::support::{Database, clock, held, hold, scope, used};

async fn two(database: &Database, budget: &BudgetConfig) -> [PostgresLedger; 2] {
    [database.ledger(budget.clone()).await, database.ledger(budget.clone()).await]
}

/// Two processes with fifty calls in flight each never spend more than the cap, at any look.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_on_one_cap_never_overspend() {
    let database = Database::new().await;
    let budget = BudgetConfig::new().max_tokens(3_000).per_user_max_tokens(900);
    let ledgers = two(&database, &budget).await;
    let spent = Arc::new(AtomicU64::new(0));
    let callers = (0..100_usize).map(|n| {
        let (ledger, spent) = (ledgers[n % 2].clone(), spent.clone());
        tokio::spawn(async move {
            let scope = scope(&format!("user_{}", n % 7));
            for step in 0..6_u64 {
                let Reserve::Held(got) = ledger.reserve(&scope, &hold(100)).await.unwrap() else { continue };
                let all = ledger.namespace_usage(&scope).await.unwrap();
                let line = &all.windows[0];
                assert!(line.used + line.held <= line.limit, "{line:?}");
                let user = ledger.usage(&scope).await.unwrap();
                assert!(user.windows[0].used + user.windows[0].held <= 900, "{user:?}");
                ledger.sent(&scope, got.id).await.unwrap();
                let charge = if (n as u64 + step).is_multiple_of(3) { Charge::Refund } else { used(40) };
                spent.fetch_add(if charge == Charge::Refund { 0 } else { 40 }, Ordering::Relaxed);
                assert!(!ledger.close(&scope, got.id, charge).await.unwrap().duplicate);
            }
        })
    });
    for caller in join_all(callers).await {
        caller.unwrap();
    }
    let all = ledgers[0].namespace_usage(&scope("x")).await.unwrap();
    assert_eq!((all.used.total_tokens(), all.held_tokens), (spent.load(Ordering::Relaxed), 0));
    assert!(all.used.total_tokens() <= 3_000);
    let mut sum = 0;
    for n in 0..7 {
        let user = ledgers[1].usage(&scope(&format!("user_{n}"))).await.unwrap();
        assert_eq!((user.open_holds, user.held_tokens), (0, 0));
        sum += user.used.total_tokens();
    }
    assert_eq!(sum, all.used.total_tokens(), "the total is the sum of the users");
}

/// Groups of random users from two processes, with leases that run out meanwhile: nobody waits in a circle.
#[tokio::test(flavor = "multi_thread")]
async fn no_deadlock_reaches_a_caller() {
    for budget in [BudgetConfig::new().per_user_max_tokens(1 << 40), BudgetConfig::new().max_tokens(1 << 40)]
    {
        let database = Database::new().await;
        let ledgers = two(&database, &budget).await;
        let until = Instant::now() + Duration::from_secs(4);
        let callers = (0..64_usize).map(|n| {
            let ledger = ledgers[n % 2].clone();
            tokio::spawn(async move {
                let mut calls = 0;
                while Instant::now() < until {
                    let scope = scope(&format!("user_{}", rand::random::<u8>() % 40));
                    let lease = Duration::from_millis(if calls % 4 == 0 { 1 } else { 60_000 });
                    let got = held(&ledger, &scope, &hold(1).with_lease(lease)).await;
                    if calls % 4 != 0 {
                        ledger.sent(&scope, got.id).await.unwrap();
                        ledger.close(&scope, got.id, used(1)).await.unwrap();
                    }
                    calls += 1;
                }
                calls
            })
        });
        let mut calls = 0;
        for caller in join_all(callers).await {
            calls += caller.unwrap();
        }
        assert!(calls > 64, "{calls}");
        let found = database
            .number(&format!("SELECT deadlocks FROM pg_stat_database WHERE datname = '{}'", database.name))
            .await;
        assert_eq!(found, 0, "nor did one happen");
    }
}

/// Operations that are dropped while they wait are taken out; those that are under way are done whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_operation_is_done_whole_or_not_at_all() {
    let database = Database::new().await;
    let ledger = database.ledger(BudgetConfig::new().max_tokens(1 << 40)).await;
    for round in 0..20_u64 {
        let tasks: Vec<_> = (0..40)
            .map(|_| {
                let ledger = ledger.clone();
                tokio::spawn(async move { ledger.reserve(&scope("alice"), &hold(10)).await.map(drop) })
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(round * 300)).await;
        for task in tasks {
            task.abort();
        }
    }
    let id = held(&ledger, &scope("alice"), &hold(10)).await.id;
    ledger.close(&scope("alice"), id, used(10)).await.unwrap();
    let (user, all) =
        (ledger.usage(&scope("alice")).await.unwrap(), ledger.namespace_usage(&scope("x")).await.unwrap());
    assert_eq!(user.held_tokens, user.open_holds * 10);
    assert_eq!(all.held_tokens, user.held_tokens);
    let rows = database.number("SELECT count(*) FROM ledger_holds WHERE open").await;
    assert_eq!(u64::try_from(rows).unwrap(), user.open_holds);
}

/// A budget that is changed while holds are open: each is given back where it was counted.
#[tokio::test(flavor = "multi_thread")]
async fn caps_that_come_and_go_leave_no_phantom() {
    let database = Database::new().await;
    let capped = database.ledger(BudgetConfig::new().max_tokens(1_000).per_run_max_tokens(500)).await;
    let free = database.ledger(BudgetConfig::new()).await;
    let alice = scope("alice");
    let (with, without) =
        (held(&capped, &alice, &hold(100)).await.id, held(&free, &alice, &hold(50)).await.id);
    free.close(&alice, with, used(70)).await.unwrap();
    capped.close(&alice, without, used(20)).await.unwrap();
    let all = capped.namespace_usage(&alice).await.unwrap();
    assert_eq!((all.used.total_tokens(), all.held_tokens), (70, 0));
    let user = free.usage(&alice).await.unwrap();
    assert_eq!((user.used.total_tokens(), user.held_tokens, user.open_holds), (90, 0, 0));
    assert_eq!(free.namespace_usage(&alice).await.unwrap_err().kind(), ErrorKind::Unsupported);
}

/// Of two kinds of windows each has its own numbers.
#[tokio::test(flavor = "multi_thread")]
async fn kinds_of_windows_are_apart() {
    use loomflow_core::Window;
    let (database, clock) = (Database::new().await, clock());
    let minute = |seconds| Window::Rolling(Duration::from_millis(seconds));
    for window in [Window::Hour, Window::Day, Window::Lifetime, minute(60_000), minute(60_500)] {
        let budget = BudgetConfig::new().per_user_max_tokens(100).window(window);
        let config = database.config(budget).with_clock(clock.clone());
        let ledger = PostgresLedger::connect(config).await.unwrap();
        let id = held(&ledger, &scope("alice"), &hold(100)).await.id;
        ledger.close(&scope("alice"), id, used(100)).await.unwrap();
        assert!(matches!(ledger.reserve(&scope("alice"), &hold(1)).await.unwrap(), Reserve::Refused(_)));
    }
}
