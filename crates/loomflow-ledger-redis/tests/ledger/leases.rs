//! Holds whose owner never comes back.

use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::ManualClock;
use loomflow_core::{BudgetConfig, Charge, ErrorKind, Hold, Ledger, Timestamp, Usage, Window};

use crate::common::{
    all_keys, connect, fresh_prefix, go_back, held, key, open, pass, pttl, raw, refused, snapshot, spend,
    url, used, user,
};

/// More holds than one call settles.
const MANY: u64 = 200;

#[tokio::test]
async fn however_many_leases_run_out_nothing_is_held_after_them() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let clock = Arc::new(ManualClock::default());
    let budget = BudgetConfig::new().max_tokens(10 * MANY).per_user_max_tokens(10 * MANY);
    let ledger = open(&url, &prefix, budget).await.with_clock(clock.clone());
    let lease = Duration::from_secs(60);
    for round in 0..3 {
        for n in 0..MANY {
            let gone = user(&format!("gone_{}", n % 7));
            held(&ledger, &gone, &Hold::tokens(key(), 5, 5).with_min_output(5).with_lease(lease)).await;
        }
        let here = user("here");
        refused(&ledger, &here, &Hold::tokens(key(), 1, 0)).await;
        clock.advance(lease);
        match round {
            0 => {
                let all = held(&ledger, &here, &Hold::tokens(key(), 10 * MANY, 0)).await;
                ledger.close(&here, all.id, Charge::Refund).await.unwrap();
            }
            1 => assert_eq!(ledger.namespace_usage(&here).await.unwrap().held_tokens, 0),
            _ => {
                let usage = ledger.usage(&user("gone_3")).await.unwrap();
                assert_eq!((usage.held_tokens, usage.open_holds), (0, 0));
            }
        }
    }
    ledger.namespace_usage(&user("here")).await.unwrap();
    let mut raw = raw(&url).await;
    let due: Vec<String> =
        redis::cmd("KEYS").arg(format!("{prefix}:*:due")).query_async(&mut raw).await.unwrap();
    assert!(due.is_empty(), "nothing waits for its end any more");
}

#[tokio::test]
async fn a_late_charge_takes_the_place_of_nothing_and_of_an_estimate() {
    let clock = Arc::new(ManualClock::default());
    let ledger =
        connect("redis-plain", BudgetConfig::new().max_tokens(1_000)).await.with_clock(clock.clone());
    let ada = user("ada");
    let lease = Duration::from_secs(60);
    let hold = || Hold::tokens(key(), 30, 20).with_lease(lease);
    let (held_only, sent) = (held(&ledger, &ada, &hold()).await, held(&ledger, &ada, &hold()).await);
    ledger.sent(&ada, sent.id).await.unwrap();
    clock.advance(lease);
    assert_eq!(ledger.usage(&ada).await.unwrap().used, Usage::new(30, 20), "what was sent is charged");
    assert_eq!(ledger.estimates(&ada).await.unwrap().len(), 1, "what was refunded is no estimate");
    for got in [held_only, sent] {
        for _ in 0..2 {
            assert!(ledger.close(&ada, got.id, used(30, 4)).await.unwrap().duplicate);
        }
    }
    let usage = ledger.usage(&ada).await.unwrap();
    assert_eq!((usage.used, usage.estimated_tokens, usage.held_tokens), (Usage::new(60, 8), 0, 0));
    assert_eq!(ledger.namespace_usage(&ada).await.unwrap().used, Usage::new(60, 8));
}

/// A process is killed, and nobody calls the namespace for longer than any counter lives.
#[tokio::test]
async fn a_hold_outlives_every_counter_that_it_is_kept_in() {
    // The user's would have gone and that of all not yet; or both.
    for idle in [Duration::from_secs(24 * 3_600 + 1_800), Duration::from_secs(40 * 86_400)] {
        idle_for(idle).await;
    }
}

async fn idle_for(idle: Duration) {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let start: Timestamp = "2026-03-15T10:59:00Z".parse().unwrap();
    let clock = Arc::new(ManualClock::new(start));
    let budget = BudgetConfig::new().max_tokens(100).per_user_max_tokens(100).window(Window::Hour);
    let ledger = open(&url, &prefix, budget).await.with_clock(clock.clone());
    let (ada, bob) = (user("ada"), user("bob"));
    let hold = || Hold::tokens(key(), 30, 10).with_min_output(10);
    let guessed = held(&ledger, &ada, &Hold::tokens(key(), 1, 1)).await;
    let guess = Charge::Used { usage: Usage::new(1, 1), estimated: true };
    ledger.close(&ada, guessed.id, guess).await.unwrap();
    clock.advance(Duration::from_secs(1));
    let (kept, sent) = (held(&ledger, &ada, &hold()).await, held(&ledger, &ada, &hold()).await);
    ledger.sent(&ada, sent.id).await.unwrap();
    // The counter of all is moved on by another; that of the user is not.
    clock.advance(Duration::from_secs(120));
    spend(&ledger, &bob, 1, 1).await;
    let mut raw = raw(&url).await;
    pass(&mut raw, &prefix, idle).await;
    clock.advance(idle);
    // Whoever comes finds what is due.
    assert_eq!(ledger.namespace_usage(&bob).await.unwrap().held_tokens, 0, "no hold is left behind");
    held(&ledger, &bob, &Hold::tokens(key(), 100, 0)).await;
    let listed = ledger.estimates(&ada).await.unwrap();
    let listed: Vec<_> = listed.into_iter().map(|one| one.open(&ada).unwrap()).collect();
    assert_eq!(listed.len(), 2, "what was sent was charged, and the estimate of before is there");
    assert_eq!((listed[1].hold, listed[1].charged), (sent.id, Usage::new(30, 10)));
    assert!(ledger.close(&ada, kept.id, used(30, 10)).await.unwrap().duplicate);
    // And nothing stays for ever on its account.
    for key in all_keys(&mut raw, &prefix).await {
        if [":u:", ":e:"].iter().any(|kind| key.contains(kind)) {
            let theirs = key.contains(&ada.owner().partition_hex());
            assert_eq!(pttl(&mut raw, &key).await > 0, theirs, "{key}");
        }
    }
}

/// The server is killed, and its disk has all but the last second.
#[tokio::test]
async fn a_hold_that_the_server_lost_is_charged_once_when_it_is_closed() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let clock = Arc::new(ManualClock::default());
    let budget = BudgetConfig::new().max_tokens(1_000).per_user_max_tokens(1_000).per_run_max_tokens(1_000);
    let ledger = open(&url, &prefix, budget).await.with_clock(clock.clone());
    let (ada, bob) = (user("ada"), user("bob"));
    spend(&ledger, &ada, 1, 1).await;
    let survivor = held(&ledger, &ada, &Hold::tokens(key(), 30, 20)).await;
    let mut raw = raw(&url).await;
    let before = snapshot(&mut raw, &prefix).await;
    let hold = || Hold::tokens(key(), 30, 20).with_lease(Duration::from_secs(7_200));
    let mut lost = Vec::new();
    for _ in 0..4 {
        lost.push(held(&ledger, &ada, &hold()).await.id);
    }
    let closed = held(&ledger, &ada, &hold()).await;
    ledger.close(&ada, closed.id, used(30, 1)).await.unwrap();
    ledger.close(&ada, survivor.id, used(30, 2)).await.unwrap();
    go_back(&mut raw, &prefix, &before).await;

    // A request that has not left does not leave.
    assert_eq!(ledger.sent(&ada, lost[0]).await.unwrap_err().kind(), ErrorKind::NotFound);
    let settled = ledger.close(&ada, lost[0], Charge::Refund).await.unwrap();
    assert_eq!((settled.duplicate, settled.excess_tokens), (false, 0));
    assert!(ledger.close(&ada, lost[0], used(9, 9)).await.unwrap().duplicate, "it was given back");
    // One that has is charged, all of it beyond what is held.
    for again in [false, true, true] {
        let settled = ledger.close(&ada, lost[1], used(30, 5)).await.unwrap();
        assert_eq!((settled.duplicate, settled.excess_tokens), (again, if again { 0 } else { 35 }));
    }
    let settled = ledger.close(&ada, closed.id, used(30, 1)).await.unwrap();
    assert!(!settled.duplicate, "its first close was lost as well");
    let settled = ledger.close(&ada, survivor.id, used(30, 2)).await.unwrap();
    assert!(!settled.duplicate && settled.excess_tokens == 0);
    let foreign = ledger.close(&bob, lost[2], used(30, 5)).await.unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::NotFound);
    let all = ledger.namespace_usage(&ada).await.unwrap();
    let usage = ledger.usage(&ada).await.unwrap();
    assert_eq!(usage.used.total_tokens(), 2 + 35 + 31 + 32);
    assert_eq!((usage.used, usage.held_tokens, usage.open_holds), (all.used, all.held_tokens, 0));

    // Invoiced or late, once; later than ends are remembered it cannot be told from one that was closed.
    assert!(!ledger.reconcile(&ada, lost[2], Usage::new(10, 0)).await.unwrap().duplicate);
    assert!(ledger.close(&ada, lost[2], used(30, 5)).await.unwrap().duplicate);
    clock.advance(Duration::from_secs(17 * 60));
    assert!(ledger.close(&ada, lost[3], used(30, 5)).await.unwrap().duplicate);
    assert_eq!(ledger.usage(&ada).await.unwrap().used.total_tokens(), 110);
}

#[tokio::test]
async fn a_hold_that_ended_is_never_taken_for_one_that_was_lost() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let clock = Arc::new(ManualClock::default());
    let budget = BudgetConfig::new().max_tokens(100_000).window(Window::Hour);
    let ledger = open(&url, &prefix, budget).await.with_clock(clock.clone());
    let mut raw = raw(&url).await;
    let mut ended = Vec::new();
    let names = ["ada", "bob", "cy"];
    for minute in 0..40_u64 {
        for (n, name) in names.iter().enumerate() {
            let scope = user(name);
            let lease = Duration::from_secs(if minute % 3 == 0 { 20 } else { 7_200 });
            let got = held(&ledger, &scope, &Hold::tokens(key(), 3, 2).with_lease(lease)).await;
            match (minute + n as u64) % 4 {
                0 => drop(ledger.close(&scope, got.id, Charge::Refund).await.unwrap()),
                1 => {
                    let guess = Charge::Used { usage: Usage::new(1, 1), estimated: true };
                    ledger.close(&scope, got.id, guess).await.unwrap();
                    ledger.reconcile(&scope, got.id, Usage::new(1, 1)).await.unwrap();
                }
                2 => drop(ledger.close(&scope, got.id, used(1, 1)).await.unwrap()),
                // Its lease runs out, or is ended in its turn.
                _ if minute % 3 == 0 => {}
                _ => drop(ledger.close(&scope, got.id, used(2, 0)).await.unwrap()),
            }
            ended.push((scope, got.id));
        }
        let step = Duration::from_secs(60);
        clock.advance(step);
        pass(&mut raw, &prefix, step).await;
        for (scope, id) in &ended {
            let before = ledger.usage(scope).await.unwrap().used;
            assert!(ledger.close(scope, *id, Charge::Refund).await.unwrap().duplicate, "{minute}");
            let after = ledger.usage(scope).await.unwrap().used;
            assert_eq!(after, before, "{minute}: nothing was estimated");
        }
    }
}

/// Forgetting which holds ended was read off the clock, and a close that came twice was charged twice when that was set back.
#[tokio::test]
async fn a_clock_set_back_makes_no_ended_hold_a_lost_one() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let start = Timestamp::from_micros(1_800_000_000_000_000);
    let clock = Arc::new(ManualClock::new(start));
    let ledger = open(&url, &prefix, BudgetConfig::new().max_tokens(100_000)).await.with_clock(clock.clone());
    let ada = user("ada");
    let mut ended = Vec::new();
    for minute in [0, 5, 20, 300] {
        clock.set(start.saturating_add(Duration::from_secs(60 * minute)));
        // Enough of them that what is old is let go meanwhile.
        for _ in 0..100 {
            let hold = Hold::tokens(key(), 3, 2).with_lease(Duration::from_secs(86_400));
            ended.push(held(&ledger, &ada, &hold).await.id);
        }
        if minute == 5 {
            // Some end later than ends are remembered.
            continue;
        }
        for id in &ended {
            ledger.close(&ada, *id, used(1, 1)).await.unwrap();
        }
    }
    for minute in [300, 21, 6, 1, 0] {
        clock.set(start.saturating_add(Duration::from_secs(60 * minute)));
        for id in &ended {
            assert!(ledger.close(&ada, *id, used(1, 1)).await.unwrap().duplicate, "{minute}");
        }
    }
    assert_eq!(ledger.usage(&ada).await.unwrap().used.total_tokens(), 800);
    let mut raw = raw(&url).await;
    let keys = all_keys(&mut raw, &prefix).await;
    let key = keys.iter().find(|key| key.ends_with(":ended")).unwrap();
    let kept: u64 = redis::cmd("ZCARD").arg(key).query_async(&mut raw).await.unwrap();
    assert!((100..400).contains(&kept), "some were let go, and none of the last minutes: {kept}");
}
