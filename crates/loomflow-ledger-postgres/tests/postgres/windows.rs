//! A budget whose window became one of another kind while holds of the old kind were open.

use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::ManualClock;
use loomflow_core::{BudgetConfig, Ledger as _, Reserve, Usage, Window};
use loomflow_ledger_postgres::PostgresLedger;

use crate::support::{Database, clock, held, hold, scope, used};

async fn open(database: &Database, clock: &Arc<ManualClock>, window: Window) -> PostgresLedger {
    let budget =
        BudgetConfig::new().max_tokens(1_000).per_user_max_tokens(500).per_run_max_tokens(300).window(window);
    PostgresLedger::connect(database.config(budget).with_clock(clock.clone())).await.unwrap()
}

/// The process that reserved died with the old budget; nobody has that one any more. Its leases end all the same: the charge
/// is in the window in which each did, of the kind it was reserved in.
#[tokio::test(flavor = "multi_thread")]
async fn leases_of_another_kind_of_window_end() {
    let minute = Duration::from_secs(60);
    for (old, new) in [
        (Window::Hour, Window::Day),
        (Window::Rolling(Duration::from_millis(3_600_500)), Window::Lifetime),
        (Window::Lifetime, Window::Hour),
    ] {
        let (database, clock) = (Database::new().await, clock());
        let (alice, bob) = (scope("alice"), scope("bob"));
        let before = open(&database, &clock, old).await;
        let spent = held(&before, &alice, &hold(30)).await.id;
        before.close(&alice, spent, used(30)).await.unwrap();
        let sent = held(&before, &alice, &hold(100).with_lease(minute)).await.id;
        before.sent(&alice, sent).await.unwrap();
        held(&before, &bob, &hold(10).with_lease(minute)).await;
        drop(before);
        let after = open(&database, &clock, new).await;
        clock.advance(minute * 2);
        while after.maintain(&scope("x")).await.unwrap() {}
        let open_holds = "SELECT (SELECT count(*) FROM ledger_holds WHERE open) + (SELECT sum(open_holds) FROM ledger_users)::bigint";
        assert_eq!(database.number(open_holds).await, 0, "{old} {new}");
        assert_eq!(after.usage(&alice).await.unwrap().used.total_tokens(), 0, "a window of another kind");
        let before = open(&database, &clock, old).await;
        let all = before.namespace_usage(&alice).await.unwrap();
        assert_eq!((all.used.total_tokens(), all.held_tokens), (130, 0), "{old}");
        assert_eq!(before.usage(&alice).await.unwrap().estimated_tokens, 100, "{old}");
    }
}

/// What was reserved under the old kind is found by who has the new one: to be closed, listed and corrected.
#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_settled_in_the_kind_of_window_it_was_reserved_in() {
    let (database, clock) = (Database::new().await, clock());
    let alice = scope("alice");
    let before = open(&database, &clock, Window::Hour).await;
    let (closed, ends) = (hold(100), hold(50).with_lease(Duration::from_secs(60)));
    let (closed, ends) = (held(&before, &alice, &closed).await.id, held(&before, &alice, &ends).await.id);
    before.sent(&alice, ends).await.unwrap();
    let after = open(&database, &clock, Window::Day).await;
    after.sent(&alice, closed).await.unwrap();
    let more = hold(300);
    let (first, new) = tokio::join!(after.close(&alice, closed, used(7)), after.reserve(&alice, &more));
    assert!(!first.unwrap().duplicate && matches!(new.unwrap(), Reserve::Held(_)));
    assert!(after.close(&alice, closed, used(7)).await.unwrap().duplicate);
    clock.advance(Duration::from_secs(61));
    let listed = async || {
        let listed = after.estimates(&alice).await.unwrap();
        listed.into_iter().map(|owned| owned.open(&alice).unwrap().hold).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, [ends], "its lease ended, and nobody settled it yet");
    assert!(!after.reconcile(&alice, ends, Usage::new(30, 0)).await.unwrap().duplicate);
    assert_eq!(listed().await, []);
    let usage = before.usage(&alice).await.unwrap();
    assert_eq!((usage.used.total_tokens(), usage.held_tokens, usage.open_holds), (37, 0, 0));
    let all = before.namespace_usage(&alice).await.unwrap();
    assert_eq!((all.used.total_tokens(), all.held_tokens), (37, 0));
    let usage = after.usage(&alice).await.unwrap();
    assert_eq!((usage.used.total_tokens(), usage.held_tokens, usage.open_holds), (0, 300, 1));
}
