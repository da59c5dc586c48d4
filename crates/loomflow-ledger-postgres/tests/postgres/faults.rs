//! A server that cuts, ends connections and dies: what was answered is kept, and nothing is counted twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use loomflow_conformance::doubles::{Direction, FaultyProxy};
use loomflow_core::{
    BudgetConfig, Charge, Hold, HoldId, Ledger as _, Reserve, Result, Scope, Settled, TenantData as _,
};
use loomflow_ledger_postgres::{PostgresLedger, PostgresLedgerConfig};
use loomflow_tests::own::OwnPostgres;

use crate::support::{Database, clock, held, hold, run, scope, used};

fn budget() -> BudgetConfig {
    BudgetConfig::new().max_tokens(1 << 40).per_user_max_tokens(1 << 40)
}

async fn behind_a_proxy(database: &Database) -> (FaultyProxy, PostgresLedger) {
    let proxy = FaultyProxy::start(&database.admin).await.unwrap();
    let mut config = database.config(budget()).with_operation_timeout(Duration::from_secs(5));
    config.url = PostgresLedgerConfig::new(proxy.url_like(&database.url()), budget()).url;
    (proxy, PostgresLedger::connect(config).await.unwrap())
}

/// Again until it works: what a caller may do with every operation but `extend`.
async fn again<T, Fut: Future<Output = Result<T>>>(operation: impl Fn() -> Fut) -> T {
    for _ in 0..600 {
        match operation().await {
            Ok(done) => return done,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not work again");
}

async fn reserved(ledger: &PostgresLedger, scope: &Scope, hold: &Hold) -> HoldId {
    match again(|| ledger.reserve(scope, hold)).await {
        Reserve::Held(got) => got.id,
        Reserve::Refused(refusal) => panic!("{refusal}"),
    }
}

/// A connection is cut after each possible number of bytes, towards the server and from it: in every statement, and in the
/// commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_anywhere_counts_once() {
    let database = Database::new().await;
    let (proxy, ledger) = behind_a_proxy(&database).await;
    let alice = scope("alice");
    let (mut counted, mut unknown) = (0, 0);
    for n in 0..90_u64 {
        let direction = if n.is_multiple_of(2) { Direction::Requests } else { Direction::Replies };
        let hold = hold(100);
        let at = n * 61 % 4_000;
        if n.is_multiple_of(3) {
            proxy.cut_after(direction, at);
        }
        let id = reserved(&ledger, &alice, &hold).await;
        assert_eq!(reserved(&ledger, &alice, &hold).await, id, "the same key is the same hold");
        if n % 3 == 1 {
            proxy.cut_after(direction, at);
        }
        again(|| ledger.sent(&alice, id)).await;
        if n % 3 == 2 {
            proxy.cut_after(direction, at);
        }
        let closed: Settled = match ledger.close(&alice, id, used(7)).await {
            Ok(settled) => {
                assert!(!settled.duplicate, "an answer is that of the close that counted");
                settled
            }
            Err(error) => {
                assert!(error.is_retryable(), "{error:?}");
                unknown += 1;
                again(|| ledger.close(&alice, id, used(7))).await
            }
        };
        assert_eq!(closed.excess_tokens, 0);
        counted += 7;
        let usage = again(|| ledger.usage(&alice)).await;
        assert_eq!((usage.used.total_tokens(), usage.held_tokens, usage.open_holds), (counted, 0, 0), "{n}");
    }
    assert!(unknown < 30, "most are repeated by the ledger itself: {unknown}");
    let all = again(|| ledger.namespace_usage(&alice)).await;
    assert_eq!((all.used.total_tokens(), all.held_tokens), (counted, 0));
}

/// The commit reaches the server and its answer is lost: the server is asked what became of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_not_done_twice() {
    let database = Database::new().await;
    let (proxy, ledger) = behind_a_proxy(&database).await;
    let alice = scope("alice");
    for n in 1..=10 {
        let id = held(&ledger, &alice, &hold(100)).await.id;
        // A trigger would say more about where it is; the answer to a commit is the last of the replies.
        let before = proxy.passed(Direction::Replies);
        ledger.close(&alice, id, used(1)).await.unwrap();
        let replies = proxy.passed(Direction::Replies) - before;
        let id = held(&ledger, &alice, &hold(100)).await.id;
        proxy.cut_after(Direction::Replies, replies - 1 - n % 3);
        let settled = ledger.close(&alice, id, used(1)).await.unwrap();
        assert!(!settled.duplicate, "it was counted by this very close");
        assert_eq!(ledger.usage(&alice).await.unwrap().used.total_tokens(), n * 2);
    }
}

/// The server ends every connection while callers spend.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_connections_loses_nothing() {
    let database = Database::new().await;
    let ledger = database.ledger(budget()).await;
    let kill = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND application_name = 'loomflow'",
        database.name
    );
    let admin = database.admin.clone();
    let during = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(60)).await;
            run(&admin, &kill).await;
        }
    };
    spend_during(&ledger, during).await;
}

/// The server is killed without warning under load, and started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_that_was_answered() {
    let mut server = OwnPostgres::start().await;
    let ledger = PostgresLedger::connect(PostgresLedgerConfig::new(server.url(), budget())).await.unwrap();
    let during = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            server.kill9();
            tokio::time::sleep(Duration::from_millis(100)).await;
            server.restart().await;
        }
    };
    spend_during(&ledger, during).await;
}

/// Callers spend until `during` is over; each repeats what failed until it is answered. The sums are exact.
async fn spend_during(ledger: &PostgresLedger, during: impl Future<Output = ()>) {
    let over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..16_u64)
        .map(|n| {
            let (ledger, over) = (ledger.clone(), over.clone());
            tokio::spawn(async move {
                let (scope, mut charged) = (scope(&format!("user_{n}")), 0);
                while !over.load(Ordering::Relaxed) {
                    let id = reserved(&ledger, &scope, &hold(50)).await;
                    again(|| ledger.sent(&scope, id)).await;
                    again(|| ledger.close(&scope, id, used(3))).await;
                    charged += 3;
                }
                charged
            })
        })
        .collect();
    during.await;
    over.store(true, Ordering::Relaxed);
    let mut sum = 0;
    for (n, caller) in join_all(callers).await.into_iter().enumerate() {
        let (charged, scope) = (caller.unwrap(), scope(&format!("user_{n}")));
        let usage = again(|| ledger.usage(&scope)).await;
        assert_eq!((usage.used.total_tokens(), usage.open_holds, usage.held_tokens), (charged, 0, 0), "{n}");
        sum += charged;
    }
    let nobody = scope("x");
    let all = again(|| ledger.namespace_usage(&nobody)).await;
    assert_eq!((all.used.total_tokens(), all.held_tokens), (sum, 0));
    assert!(sum > 0);
    assert!(again(|| async { Ok(ledger.ready().await) }).await.ready);
}

/// A process that died keeps nothing aside after its leases: not with its users, and not with all together.
#[tokio::test(flavor = "multi_thread")]
async fn no_hold_outlives_its_lease() {
    let (database, clock) = (Database::new().await, clock());
    let config = || database.config(budget()).with_clock(clock.clone());
    let dies = PostgresLedger::connect(config()).await.unwrap();
    for n in 0..30 {
        let scope = scope(&format!("user_{n}"));
        let id = held(&dies, &scope, &hold(10).with_lease(Duration::from_secs(1 + n % 5))).await.id;
        if n.is_multiple_of(2) {
            dies.sent(&scope, id).await.unwrap();
        }
    }
    drop(dies);
    let ledger = PostgresLedger::connect(config()).await.unwrap();
    clock.advance(Duration::from_secs(5));
    let all = ledger.namespace_usage(&scope("x")).await.unwrap();
    assert_eq!((all.held_tokens, all.used.total_tokens(), all.estimated_tokens), (0, 150, 150));
    assert_eq!(database.number("SELECT count(*) FROM ledger_holds WHERE open").await, 0);
    assert!(
        !ledger
            .close(&scope("user_1"), HoldId::from_u128(1), Charge::Refund)
            .await
            .is_ok_and(|s| s.duplicate)
    );
}

/// After a cut the next operation finds a live connection by itself.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_cut_the_next_operation_works() {
    let database = Database::new().await;
    let (proxy, ledger) = behind_a_proxy(&database).await;
    for _ in 0..5 {
        held(&ledger, &scope("alice"), &hold(1)).await;
        proxy.cut().await;
    }
    assert_eq!(ledger.usage(&scope("alice")).await.unwrap().open_holds, 5);
}
