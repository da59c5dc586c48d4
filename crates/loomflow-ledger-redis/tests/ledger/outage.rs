//! The allowance of one process while the server is away.

use std::time::Duration;

use loomflow_conformance::doubles::FaultyProxy;
use loomflow_core::{BudgetConfig, Charge, ErrorKind, Hold, HoldKey, Ledger, Reserve, Scope, Usage};
use loomflow_ledger_redis::{Allowance, OnOutage, RedisLedger, RedisLedgerConfig};

use crate::common::{fresh_prefix, held, key, open, refused, spend, url, used, user};

struct Place {
    proxy: FaultyProxy,
    ledger: RedisLedger,
    /// Another process, which reaches the server all the time.
    witness: RedisLedger,
}

async fn place(allowance: Allowance) -> Place {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let proxy = FaultyProxy::start(&url).await.unwrap();
    let budget = BudgetConfig::new().max_tokens(10_000).per_user_max_tokens(5_000);
    let config = RedisLedgerConfig::new(proxy.url_like(&url), budget.clone())
        .with_key_prefix(&prefix)
        .with_operation_timeout(Duration::from_millis(800))
        .with_connect_timeout(Duration::from_millis(800))
        .with_on_outage(OnOutage::Allow(allowance));
    let ledger = RedisLedger::connect(config).await.unwrap();
    Place { proxy, ledger, witness: open(&url, &prefix, budget).await }
}

impl Place {
    async fn down(&self) {
        self.proxy.refuse(true);
        self.proxy.cut().await;
    }

    async fn up(&self) {
        self.proxy.refuse(false);
        // The circuit may be open for a while.
        while self.ledger.book().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn used(&self, scope: &Scope) -> u64 {
        self.witness.usage(scope).await.unwrap().used.total_tokens()
    }
}

#[tokio::test]
async fn what_is_spent_within_the_allowance_is_booked_once_and_exactly() {
    let place = place(Allowance::tokens(100, 150)).await;
    let (ada, bob) = (user("ada"), user("bob"));
    spend(&place.ledger, &ada, 5, 5).await;
    let before = held(&place.ledger, &ada, &Hold::tokens(key(), 20, 20)).await;
    place.ledger.sent(&ada, before.id).await.unwrap();
    place.down().await;

    // A hold of before is closed later; one that is made now comes out of the allowance.
    assert!(!place.ledger.close(&ada, before.id, used(20, 7)).await.unwrap().duplicate);
    spend(&place.ledger, &ada, 30, 30).await;
    let hold = Hold::tokens(key(), 10, 10);
    let got = held(&place.ledger, &ada, &hold).await;
    assert_eq!(held(&place.ledger, &ada, &hold).await.id, got.id, "the same key holds once");
    let no = refused(&place.ledger, &ada, &Hold::tokens(key(), 21, 0)).await;
    assert_eq!((no.cap, no.limit, no.used, no.held), ("per_user_max_tokens", 100, 60, 20));
    let guessed = held(&place.ledger, &bob, &Hold::tokens(key(), 40, 100)).await;
    assert_eq!(guessed.output_tokens, 30, "150 for all, of which 80 are gone");
    refused(&place.ledger, &bob, &Hold::tokens(key(), 1, 0)).await;
    place.ledger.sent(&bob, guessed.id).await.unwrap();
    let estimate = Charge::Used { usage: Usage::new(40, 9), estimated: true };
    place.ledger.close(&bob, guessed.id, estimate).await.unwrap();
    let listed = place.ledger.estimates(&bob).await.unwrap();
    assert_eq!(listed.len(), 1, "what is not booked is an estimate");
    assert_eq!(place.ledger.estimates(&ada).await.unwrap().len(), 1);
    assert!(place.ledger.usage(&ada).await.is_err(), "what the server knows cannot be told");
    assert_eq!((place.used(&ada).await, place.used(&bob).await), (10, 0));

    place.up().await;
    assert_eq!((place.used(&ada).await, place.used(&bob).await), (10 + 27 + 60, 49), "exactly");
    let all = place.witness.namespace_usage(&ada).await.unwrap();
    assert_eq!((all.used.total_tokens(), all.held_tokens), (146, 0));
    assert_eq!(place.witness.usage(&bob).await.unwrap().estimated_tokens, 49);
    assert_eq!(place.witness.estimates(&bob).await.unwrap().len(), 1, "its caller's estimate stays one");
    assert!(place.witness.estimates(&ada).await.unwrap().is_empty());
    // The hold that is open still is closed as if nothing had been.
    place.ledger.sent(&ada, got.id).await.unwrap();
    place.ledger.close(&ada, got.id, used(10, 2)).await.unwrap();
    assert!(place.ledger.close(&ada, got.id, used(10, 2)).await.unwrap().duplicate);
    place.ledger.book().await.unwrap();
    assert_eq!(place.used(&ada).await, 97 + 12);
    place.ledger.reconcile(&bob, guessed.id, Usage::new(40, 11)).await.unwrap();
    assert_eq!(place.used(&bob).await, 51);
}

#[tokio::test]
async fn never_more_than_the_allowance_in_each_outage() {
    let place = place(Allowance::tokens(60, 100)).await;
    let mut total = 0;
    for outage in 1..=3_u64 {
        place.down().await;
        let tasks = (0..40).map(|n| {
            let (ledger, scope) = (place.ledger.clone(), user(&format!("user_{}", n % 4)));
            tokio::spawn(async move {
                let Ok(Reserve::Held(got)) = ledger.reserve(&scope, &Hold::tokens(key(), 5, 8)).await else {
                    return 0;
                };
                ledger.close(&scope, got.id, used(5, got.output_tokens)).await.unwrap();
                5 + got.output_tokens
            })
        });
        let mut granted = 0;
        for task in tasks.collect::<Vec<_>>() {
            granted += task.await.unwrap();
        }
        assert!(granted > 0 && granted <= 100, "{granted}");
        total += granted;
        place.up().await;
        let all = place.witness.namespace_usage(&user("user_0")).await.unwrap();
        assert_eq!((all.used.total_tokens(), all.held_tokens), (total, 0), "outage {outage}");
    }
}

#[tokio::test]
async fn a_booking_whose_answer_is_lost_is_not_counted_again() {
    use loomflow_conformance::doubles::Direction;
    let place = place(Allowance::tokens(1_000, 1_000)).await;
    let ada = user("ada");
    spend(&place.ledger, &ada, 1, 1).await;
    for turn in 1..=3_u64 {
        place.down().await;
        for _ in 0..10 {
            spend(&place.ledger, &ada, 3, 4).await;
        }
        place.proxy.refuse(false);
        while place.ledger.book().await.is_err() {
            // Every connection that is made dies at an answer of its own.
            place.proxy.cut_after(Direction::Replies, rand::random::<u64>() % 120);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(place.used(&ada).await, 2 + 70 * turn);
    }
}

#[tokio::test]
async fn a_lease_of_its_own_that_runs_out_is_refunded_or_booked_as_an_estimate() {
    let place = place(Allowance::tokens(100, 100)).await;
    let ada = user("ada");
    place.down().await;
    let lease = Duration::from_millis(300);
    let kept = held(&place.ledger, &ada, &Hold::tokens(key(), 20, 0).with_lease(lease)).await;
    let sent = held(&place.ledger, &ada, &Hold::tokens(key(), 30, 20).with_lease(lease)).await;
    place.ledger.sent(&ada, sent.id).await.unwrap();
    tokio::time::sleep(lease).await;
    held(&place.ledger, &ada, &Hold::tokens(key(), 50, 0).with_lease(lease)).await;
    place.up().await;
    assert_eq!(place.used(&ada).await, 50);
    assert_eq!(place.witness.usage(&ada).await.unwrap().estimated_tokens, 50);
    // The truth comes late, and takes its place.
    for (got, input) in [(kept, 7), (sent, 31)] {
        assert!(place.ledger.close(&ada, got.id, used(input, 1)).await.unwrap().duplicate);
    }
    let usage = place.witness.usage(&ada).await.unwrap();
    assert_eq!((usage.used, usage.estimated_tokens, usage.open_holds), (Usage::new(38, 2), 0, 0));
}

#[tokio::test]
async fn the_queue_is_bounded_and_foreign_holds_are_not_found() {
    let place = place(Allowance::tokens(1_000, 1_000).with_max_pending(3)).await;
    let (ada, bob) = (user("ada"), user("bob"));
    let theirs = held(&place.ledger, &bob, &Hold::tokens(key(), 1, 1)).await;
    place.down().await;
    let mut last = None;
    for _ in 0..3 {
        last = Some(held(&place.ledger, &ada, &Hold::tokens(key(), 1, 1)).await);
    }
    let full = place.ledger.reserve(&ada, &Hold::tokens(key(), 1, 1)).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Capacity);
    assert!(
        place.ledger.close(&bob, theirs.id, used(1, 1)).await.unwrap_err().is_retryable(),
        "no room to keep it"
    );
    let own = last.unwrap().id;
    place.ledger.close(&ada, own, used(1, 1)).await.unwrap();
    place.ledger.close(&ada, own, used(9, 9)).await.unwrap_err();
    let key = HoldKey::new(key().run, 0);
    assert!(place.ledger.reserve(&ada, &Hold::tokens(key, 1, 1)).await.is_err());
    place.up().await;
    assert_eq!(place.used(&ada).await, 2);
    let foreign = place.ledger.close(&ada, theirs.id, used(1, 1)).await.unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::NotFound);
}
