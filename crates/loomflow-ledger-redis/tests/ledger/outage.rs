//! The allowance of one process while the server is away.

use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::{FaultyProxy, ManualClock};
use loomflow_core::{BudgetConfig, Charge, ErrorKind, Hold, HoldKey, Ledger, Reserve, Scope, Usage, Window};
use loomflow_ledger_redis::{Allowance, OnOutage, RedisLedger, RedisLedgerConfig};

use crate::common::{
    all_keys, fresh_prefix, go_back, held, key, open, pttl, raw, refused, snapshot, spend, url, used, user,
};

struct Place {
    proxy: FaultyProxy,
    ledger: RedisLedger,
    /// Another process, which reaches the server all the time.
    witness: RedisLedger,
    prefix: String,
}

async fn place(allowance: Allowance) -> Place {
    place_with(allowance, BudgetConfig::new().max_tokens(10_000).per_user_max_tokens(5_000)).await
}

async fn place_with(allowance: Allowance, budget: BudgetConfig) -> Place {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let proxy = FaultyProxy::start(&url).await.unwrap();
    let config = RedisLedgerConfig::new(proxy.url_like(&url), budget.clone())
        .with_key_prefix(&prefix)
        .with_operation_timeout(Duration::from_millis(800))
        .with_connect_timeout(Duration::from_millis(800))
        .with_on_outage(OnOutage::Allow(allowance));
    let ledger = RedisLedger::connect(config).await.unwrap();
    Place { proxy, ledger, witness: open(&url, &prefix, budget).await, prefix }
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

/// Spends what this process still grants by itself, and returns how much it was.
async fn spend_all(place: &Place, name: &str) -> u64 {
    let (scope, mut granted) = (user(name), 0);
    loop {
        let hold = Hold::tokens(key(), 1, 20);
        let Reserve::Held(got) = place.ledger.reserve(&scope, &hold).await.unwrap() else { return granted };
        place.ledger.sent(&scope, got.id).await.unwrap();
        place.ledger.close(&scope, got.id, used(1, got.output_tokens)).await.unwrap();
        granted += 1 + got.output_tokens;
    }
}

#[tokio::test]
async fn a_server_that_comes_and_goes_is_no_way_around_a_cap() {
    let caps = [
        BudgetConfig::new().max_tokens(200),
        BudgetConfig::new().per_user_max_tokens(200),
        BudgetConfig::new().max_tokens(200).window(Window::Hour),
        BudgetConfig::new().per_user_max_tokens(200).window(Window::Rolling(Duration::from_secs(3_600))),
    ];
    for budget in caps {
        let windowed = budget.window != Window::Lifetime;
        let mut place = place_with(Allowance::tokens(100, 100), budget.clone()).await;
        let clock = Arc::new(ManualClock::default());
        place.ledger = place.ledger.with_clock(clock.clone());
        place.witness = place.witness.with_clock(clock.clone());
        spend(&place.ledger, &user("ada"), 100, 0).await;
        let mut granted = Vec::new();
        for _ in 0..3 {
            place.down().await;
            granted.push(spend_all(&place, "ada").await);
            place.up().await;
        }
        // What fits is replenished, once it is booked; what is beyond the cap is beyond it once.
        assert_eq!(granted, [100, 100, 0], "{budget:?}");
        assert_eq!(place.used(&user("ada")).await, 300);
        if windowed {
            // Another window is another allowance.
            clock.advance(Duration::from_secs(7_200));
            place.down().await;
            assert_eq!(spend_all(&place, "ada").await, 100);
            place.up().await;
            assert_eq!(place.used(&user("ada")).await, 100);
        }
    }
}

#[tokio::test]
async fn what_one_user_is_over_a_cap_leaves_another_what_is_theirs() {
    let place = place_with(Allowance::tokens(50, 100), BudgetConfig::new().per_user_max_tokens(60)).await;
    spend(&place.ledger, &user("ada"), 60, 0).await;
    let mut granted = Vec::new();
    for name in ["ada", "bob", "ada", "bob", "cy", "di"] {
        place.down().await;
        granted.push(spend_all(&place, name).await);
        place.up().await;
    }
    // What ada and bob spent beyond their caps stays spent, and there is no more for all.
    assert_eq!(granted, [50, 50, 0, 50, 0, 0]);
    assert_eq!((place.used(&user("ada")).await, place.used(&user("bob")).await), (110, 100));
}

#[tokio::test]
async fn a_close_that_comes_before_the_booking_counts_once() {
    let place = place(Allowance::tokens(1_000, 1_000)).await;
    let (ada, lease) = (user("ada"), Duration::from_millis(300));
    // Here: its lease ran out a moment ago, and the server has not been told.
    for turn in 1..=3_u64 {
        place.down().await;
        let kept = held(&place.ledger, &ada, &Hold::tokens(key(), 30, 0).with_lease(lease)).await;
        let sent = held(&place.ledger, &ada, &Hold::tokens(key(), 30, 20).with_lease(lease)).await;
        place.ledger.sent(&ada, sent.id).await.unwrap();
        place.up().await;
        tokio::time::sleep(lease).await;
        for (got, input) in [(kept, 7), (sent, 31)] {
            assert!(place.ledger.close(&ada, got.id, used(input, 1)).await.unwrap().duplicate);
        }
        place.ledger.book().await.unwrap();
        let usage = place.witness.usage(&ada).await.unwrap();
        let both = Usage::new(38 * turn, 2 * turn);
        assert_eq!((usage.used, usage.estimated_tokens, usage.open_holds), (both, 0, 0));
    }
}

#[tokio::test]
async fn a_close_by_another_process_before_the_booking_counts_once() {
    let place = place(Allowance::tokens(1_000, 1_000)).await;
    let ada = user("ada");
    place.down().await;
    let (there, both) = (
        held(&place.ledger, &ada, &Hold::tokens(key(), 30, 20)).await,
        held(&place.ledger, &ada, &Hold::tokens(key(), 30, 20)).await,
    );
    place.ledger.close(&ada, both.id, used(30, 3)).await.unwrap();
    // The run goes on in a process that reaches the server.
    assert!(!place.witness.close(&ada, there.id, used(30, 1)).await.unwrap().duplicate);
    assert!(!place.witness.close(&ada, both.id, used(30, 3)).await.unwrap().duplicate);
    assert_eq!(place.used(&ada).await, 31 + 33);
    place.up().await;
    place.ledger.close(&ada, there.id, used(30, 1)).await.unwrap();
    place.ledger.book().await.unwrap();
    assert_eq!(place.used(&ada).await, 31 + 33, "told of twice, counted once");
    for got in [there, both] {
        assert!(place.witness.close(&ada, got.id, used(5, 5)).await.unwrap().duplicate);
    }
}

#[tokio::test]
async fn what_is_booked_late_counts_in_the_window_it_was_closed_in() {
    let budget = BudgetConfig::new().max_tokens(1_000).window(Window::Hour);
    let mut place = place_with(Allowance::tokens(100, 100), budget).await;
    let clock = Arc::new(ManualClock::default());
    place.ledger = place.ledger.with_clock(clock.clone());
    place.witness = place.witness.with_clock(clock.clone());
    let ada = user("ada");
    let before = held(&place.ledger, &ada, &Hold::tokens(key(), 20, 20)).await;
    place.down().await;
    spend(&place.ledger, &ada, 30, 0).await;
    let guess = Charge::Used { usage: Usage::new(6, 1), estimated: true };
    place.ledger.close(&ada, before.id, guess).await.unwrap();
    clock.advance(Duration::from_secs(120));
    place.up().await;
    let usage = place.witness.usage(&ada).await.unwrap();
    assert_eq!((usage.used.total_tokens(), usage.estimated_tokens, usage.held_tokens), (37, 7, 0));
    assert_eq!(place.witness.estimates(&ada).await.unwrap().len(), 1, "and that it is one");
    place.down().await;
    spend(&place.ledger, &ada, 40, 0).await;
    clock.advance(Duration::from_secs(3_600));
    place.up().await;
    assert_eq!(place.used(&ada).await, 0, "its hour is over");
}

#[tokio::test]
async fn a_hold_of_the_allowance_is_held_once_when_the_server_is_back() {
    let place = place(Allowance::tokens(100, 100)).await;
    let (ada, bob, hold) = (user("ada"), user("bob"), Hold::tokens(key(), 10, 10));
    place.down().await;
    let got = held(&place.ledger, &ada, &hold).await;
    place.up().await;
    assert_eq!(held(&place.ledger, &ada, &hold).await.id, got.id);
    assert_eq!(place.witness.usage(&ada).await.unwrap().open_holds, 0, "it is not the server's");
    // Another's of the same key, and another of the same user, are the server's.
    held(&place.ledger, &bob, &hold).await;
    held(&place.ledger, &ada, &Hold::tokens(key(), 1, 1)).await;
    for scope in [&ada, &bob] {
        assert_eq!(place.witness.usage(scope).await.unwrap().open_holds, 1);
    }
}

#[tokio::test]
async fn what_was_granted_is_booked_although_nobody_calls() {
    let place = place(Allowance::tokens(100, 100)).await;
    let (ada, bob) = (user("ada"), user("bob"));
    let before = held(&place.ledger, &bob, &Hold::tokens(key(), 5, 5)).await;
    place.down().await;
    spend(&place.ledger, &ada, 4, 4).await;
    place.ledger.close(&bob, before.id, used(3, 0)).await.unwrap();
    place.proxy.refuse(false);
    for _ in 0..600 {
        if place.used(&ada).await + place.used(&bob).await == 11 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((place.used(&ada).await, place.used(&bob).await), (8, 3));
}

#[tokio::test]
async fn whoever_is_over_in_a_window_that_ended_takes_nobodys_place() {
    let budget = BudgetConfig::new().per_user_max_tokens(1).window(Window::Hour);
    let mut place = place_with(Allowance::tokens(10, 1_000).with_max_pending(3), budget).await;
    let clock = Arc::new(ManualClock::default());
    place.ledger = place.ledger.with_clock(clock.clone());
    place.down().await;
    for name in ["ada", "bob", "cy"] {
        spend(&place.ledger, &user(name), 5, 0).await;
        place.up().await;
        place.down().await;
    }
    let (di, hold) = (user("di"), Hold::tokens(key(), 5, 0));
    assert_eq!(place.ledger.reserve(&di, &hold).await.unwrap_err().kind(), ErrorKind::Capacity);
    clock.advance(Duration::from_secs(3_600));
    held(&place.ledger, &di, &hold).await;
}

#[tokio::test]
async fn what_was_given_back_during_an_outage_is_closed_for_good() {
    let place = place_with(Allowance::tokens(100, 100), BudgetConfig::new().window(Window::Month)).await;
    let (ada, bob) = (user("ada"), user("bob"));
    spend(&place.ledger, &bob, 1, 0).await;
    place.down().await;
    let refunded = held(&place.ledger, &ada, &Hold::tokens(key(), 40, 40)).await;
    place.ledger.close(&ada, refunded.id, Charge::Refund).await.unwrap();
    let nothing = held(&place.ledger, &ada, &Hold::tokens(key(), 40, 40)).await;
    place.ledger.close(&ada, nothing.id, used(0, 0)).await.unwrap();
    let lease = Duration::from_millis(100);
    let left = held(&place.ledger, &bob, &Hold::tokens(key(), 40, 0).with_lease(lease)).await;
    tokio::time::sleep(lease).await;
    assert_eq!(
        held(&place.ledger, &ada, &Hold::tokens(key(), 50, 50)).await.output_tokens,
        50,
        "all is there"
    );
    place.up().await;
    let mut raw = raw(&url("redis-plain")).await;
    for key in all_keys(&mut raw, &place.prefix).await {
        assert!(pttl(&mut raw, &key).await > 0 || key.ends_with(":ledger"), "{key}");
    }
    for got in [refunded, nothing] {
        assert!(place.ledger.close(&ada, got.id, used(9, 9)).await.unwrap().duplicate);
        assert!(place.witness.close(&ada, got.id, used(9, 9)).await.unwrap().duplicate);
    }
    assert_eq!(place.used(&ada).await, 0);
    // What its lease ended was not told, and its truth counts still.
    assert!(place.witness.close(&bob, left.id, used(7, 0)).await.unwrap().duplicate);
    assert_eq!(place.used(&bob).await, 8);
}

#[tokio::test]
async fn a_hold_that_was_lost_in_the_outage_is_charged_when_its_close_is_booked() {
    let place = place(Allowance::tokens(100, 100)).await;
    let ada = user("ada");
    spend(&place.ledger, &ada, 1, 1).await;
    let mut raw = raw(&url("redis-plain")).await;
    let before = snapshot(&mut raw, &place.prefix).await;
    let got = held(&place.ledger, &ada, &Hold::tokens(key(), 20, 20)).await;
    place.ledger.sent(&ada, got.id).await.unwrap();
    place.down().await;
    place.ledger.close(&ada, got.id, used(20, 3)).await.unwrap();
    go_back(&mut raw, &place.prefix, &before).await;
    place.up().await;
    let usage = place.witness.usage(&ada).await.unwrap();
    assert_eq!((usage.used.total_tokens(), usage.held_tokens), (25, 0));
    assert!(place.witness.close(&ada, got.id, used(20, 3)).await.unwrap().duplicate);
    assert_eq!(place.used(&ada).await, 25);
}
