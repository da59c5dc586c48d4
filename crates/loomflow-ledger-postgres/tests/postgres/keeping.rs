//! What is kept, and for how long: names, estimates, counters whose window ended.

use std::time::Duration;

use loomflow_core::{BudgetConfig, Erase, Ledger as _, Reserve, TenantData as _, Usage, Window};
use loomflow_ledger_postgres::PostgresLedger;

use crate::support::{Database, clock, estimated, held, hold, scope, scope_at, used};

const NAMED: &str = "SELECT (SELECT count(*) FROM ledger_users WHERE user_id = 'alice')
  + (SELECT count(*) FROM ledger_holds WHERE user_id = 'alice') + (SELECT count(*) FROM ledger_runs WHERE user_id = 'alice')";

/// The name goes from every row and stays off for scopes from before; the numbers stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_was_taken_off_stays_off_for_older_scopes() {
    let database = Database::new().await;
    let ledger =
        database.ledger(BudgetConfig::new().per_user_max_tokens(1_000).per_run_max_tokens(500)).await;
    let open = held(&ledger, &scope("alice"), &hold(10)).await.id;
    let late = held(&ledger, &scope("alice"), &hold(10)).await.id;
    ledger.close(&scope("alice"), late, estimated(10)).await.unwrap();
    assert!(database.number(NAMED).await > 3);
    let receipt = ledger.forget(&scope_at("alice", 1), &Erase::everything()).await.unwrap();
    assert_eq!((receipt.store.as_str(), receipt.total()), ("ledger:postgres", 1));
    assert!(!receipt.retained.is_empty());
    assert_eq!(database.number(NAMED).await, 0);
    // A run that is still going closes and reserves, and writes no name back.
    ledger.close(&scope("alice"), open, used(5)).await.unwrap();
    held(&ledger, &scope("alice"), &hold(10)).await;
    assert_eq!(database.number(NAMED).await, 0);
    let usage = ledger.usage(&scope("alice")).await.unwrap();
    assert_eq!((usage.used.total_tokens(), usage.open_holds), (15, 1));
    assert_eq!(ledger.estimates(&scope_at("alice", 1)).await.unwrap().len(), 1);
    held(&ledger, &scope_at("alice", 1), &hold(10)).await;
    assert_eq!(database.number(NAMED).await, 3, "a newer scope is named: the counter, the hold, its run");
    // Somebody who was never here: what is under way then writes no name, either.
    let receipt = ledger.forget(&scope_at("bob", 4), &Erase::everything()).await.unwrap();
    assert_eq!((receipt.total(), receipt.retained.len()), (0, 0));
    held(&ledger, &scope("bob"), &hold(10)).await;
    assert_eq!(database.number("SELECT count(*) FROM ledger_users WHERE user_id = 'bob'").await, 0);
}

/// A user has at most a thousand estimates, the newest.
#[tokio::test(flavor = "multi_thread")]
async fn of_estimates_the_newest_thousand_are_listed() {
    let (database, clock) = (Database::new().await, clock());
    let config = database.config(BudgetConfig::new()).with_clock(clock.clone());
    let ledger = PostgresLedger::connect(config).await.unwrap();
    let alice = scope("alice");
    let first = held(&ledger, &alice, &hold(1)).await.id;
    ledger.close(&alice, first, estimated(1)).await.unwrap();
    clock.advance(Duration::from_secs(1));
    for _ in 0..20 {
        let calls = (0..60).map(|_| async {
            let id = held(&ledger, &alice, &hold(1)).await.id;
            ledger.close(&alice, id, estimated(1)).await.unwrap();
        });
        futures_util::future::join_all(calls).await;
    }
    let listed = ledger.estimates(&alice).await.unwrap();
    assert_eq!(listed.len(), 1_000);
    let listed: Vec<_> = listed.into_iter().map(|owned| owned.open(&alice).unwrap().hold).collect();
    assert!(!listed.contains(&first));
    let kept = database.number("SELECT count(*) FROM ledger_holds").await;
    assert!(kept < 1_201, "what is beyond is taken out now and then: {kept}");
    assert_eq!(ledger.usage(&alice).await.unwrap().estimated_tokens, 1_201, "and stays charged");
    ledger.reconcile(&alice, listed[0], Usage::new(0, 0)).await.unwrap();
    assert_eq!(ledger.usage(&alice).await.unwrap().estimated_tokens, 1_200);
}

/// Counters of ended windows go; those that still count, or of which a hold is open, stay.
#[tokio::test(flavor = "multi_thread")]
async fn ended_windows_are_taken_out() {
    let (database, clock) = (Database::new().await, clock());
    let budget = BudgetConfig::new().per_user_max_tokens(100).per_run_max_tokens(90).window(Window::Day);
    let ledger = PostgresLedger::connect(database.config(budget).with_clock(clock.clone())).await.unwrap();
    let long = Duration::from_secs(100 * 86_400);
    for user in ["gone", "open", "estimated", "back"] {
        let id = held(&ledger, &scope(user), &hold(50)).await.id;
        let charge = if user == "estimated" { estimated(50) } else { used(50) };
        ledger.close(&scope(user), id, charge).await.unwrap();
    }
    held(&ledger, &scope("open"), &hold(50).with_lease(long)).await;
    while ledger.maintain(&scope("x")).await.unwrap() {}
    assert_eq!(database.number("SELECT count(*) FROM ledger_users").await, 4, "none has ended");
    clock.advance(Duration::from_secs(3 * 86_400));
    held(&ledger, &scope("back"), &hold(50)).await;
    while ledger.maintain(&scope("x")).await.unwrap() {}
    let left = "SELECT count(*) FROM ledger_users WHERE user_id IN ('open', 'back')";
    assert_eq!(database.number(left).await, 2);
    assert_eq!(database.number("SELECT count(*) FROM ledger_users").await, 2);
    assert_eq!(database.number("SELECT count(*) FROM ledger_runs").await, 6, "runs stay for 40 days");
    clock.advance(Duration::from_secs(42 * 86_400));
    while ledger.maintain(&scope("x")).await.unwrap() {}
    assert_eq!(
        database.number("SELECT count(*) FROM ledger_holds").await,
        2,
        "the open one, and back's that lapsed"
    );
    assert_eq!(database.number("SELECT count(*) FROM ledger_runs").await, 2, "theirs, one settled just now");
    let usage = ledger.usage(&scope("open")).await.unwrap();
    assert_eq!((usage.open_holds, usage.held_tokens), (1, 50));
    assert!(matches!(ledger.reserve(&scope("open"), &hold(51)).await.unwrap(), Reserve::Refused(_)));
}

/// Numbers beyond what the server's integers hold are kept to the last one.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_numbers_are_kept() {
    let database = Database::new().await;
    let ledger = database.ledger(BudgetConfig::new()).await;
    let alice = scope("alice");
    let id = held(&ledger, &alice, &hold(u64::MAX >> 2)).await.id;
    assert_eq!(ledger.usage(&alice).await.unwrap().held_tokens, u64::MAX >> 2);
    ledger.close(&alice, id, used(u64::MAX - 5)).await.unwrap();
    assert_eq!(ledger.usage(&alice).await.unwrap().used.input_tokens, u64::MAX - 5);
    assert!(ledger.reserve(&alice, &hold(u64::MAX)).await.is_err(), "what cannot be counted is refused");
}
