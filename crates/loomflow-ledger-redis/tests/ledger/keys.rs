//! What lies in the server: whose keys, in which slot, and for how long.

use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::ManualClock;
use loomflow_core::{
    BudgetConfig, Charge, Erase, ErrorKind, Hold, HoldKey, Ledger, RunId, Scope, TenantData, Usage, Window,
};
use redis::aio::MultiplexedConnection;

use crate::common::{fresh_prefix, held, key, open, raw, refused, spend, url, used, user, user_in};

async fn all_keys(raw: &mut MultiplexedConnection, prefix: &str) -> Vec<String> {
    let mut keys: Vec<String> = redis::cmd("KEYS").arg(format!("{prefix}:*")).query_async(raw).await.unwrap();
    keys.sort();
    keys
}

async fn pttl(raw: &mut MultiplexedConnection, key: &str) -> i64 {
    redis::cmd("PTTL").arg(key).query_async(raw).await.unwrap()
}

/// The slot of a cluster that a key lies in, as the specification of Redis Cluster has it.
fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let mut crc = 0_u16;
    for byte in tag.filter(|tag| !tag.is_empty()).unwrap_or(key).bytes() {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
        }
    }
    crc % 16_384
}

/// Every kind of operation, so that every kind of key is there.
async fn everything(ledger: &dyn Ledger, scope: &Scope) {
    let run = RunId::from_u128(rand::random());
    spend(ledger, scope, 3, 2).await;
    held(ledger, scope, &Hold::tokens(HoldKey::new(run, 0), 5, 5)).await;
    let guessed = held(ledger, scope, &Hold::tokens(HoldKey::new(run, 1), 5, 5)).await;
    ledger.close(scope, guessed.id, Charge::Used { usage: Usage::new(4, 4), estimated: true }).await.unwrap();
    ledger.forget(scope, &Erase::everything()).await.unwrap();
}

#[tokio::test]
async fn all_keys_of_a_namespace_lie_in_one_slot_and_name_nobody() {
    assert_eq!(
        (slot("123456789"), slot("a{123456789}b")),
        (12_739, 12_739),
        "the specification's own example"
    );
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let budget = BudgetConfig::new().max_tokens(1_000).per_run_max_tokens(100);
    let ledger = open(&url, &prefix, budget.window(Window::Rolling(Duration::from_secs(60)))).await;
    let mut raw = raw(&url).await;
    let mut before = Vec::new();
    let mut slots = Vec::new();
    for namespace in ["app", "}app{", "{app}", "a:b", "*", "\u{e9}", "e\u{301}"] {
        for name in ["mallory", "{mallory}", "}:q:all", "m*a", "mallory\u{e9}"] {
            everything(&ledger, &user_in(namespace, name, 0)).await;
        }
        let keys = all_keys(&mut raw, &prefix).await;
        let new: Vec<&String> =
            keys.iter().filter(|key| !before.contains(*key) && !key.ends_with(":ledger")).collect();
        for kind in [":all", ":u:", ":r:", ":e:", ":due", ":x:"] {
            assert!(new.iter().any(|key| key.contains(kind)), "{kind}: {new:?}");
        }
        let all: Vec<u16> = new.iter().map(|key| slot(key)).collect();
        assert!(all.iter().all(|slot| *slot == all[0]), "{namespace}: {new:?}");
        slots.push(all[0]);
        before = keys;
    }
    slots.dedup();
    assert_eq!(slots.len(), 7, "namespaces are spread");
    assert!(
        before.iter().all(|key| key.is_ascii() && !key.contains("mallory") && !key.contains("app")),
        "{before:?}"
    );
}

/// A counter whose time to live is set again by every use would never go, and one that takes it for its window would
/// never reset.
#[tokio::test]
async fn use_alone_prolongs_nothing() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let clock = Arc::new(ManualClock::default());
    let budget = BudgetConfig::new().per_user_max_tokens(10_000).max_tokens(10_000).window(Window::Hour);
    let ledger = open(&url, &prefix, budget).await.with_clock(clock.clone());
    let ada = user("ada");
    spend(&ledger, &ada, 1, 1).await;
    let mut raw = raw(&url).await;
    let counters: Vec<String> = all_keys(&mut raw, &prefix).await;
    let counters: Vec<&String> =
        counters.iter().filter(|key| key.contains(":u:") || key.ends_with(":all")).collect();
    assert_eq!(counters.len(), 2);
    let (hour, day) = (3_600_000, 86_400_000);
    for counter in &counters {
        let left = pttl(&mut raw, counter).await;
        assert!(left > day && left <= day + hour, "the window's end and the longest lease: {left}");
        redis::cmd("PEXPIRE").arg(*counter).arg(hour).exec_async(&mut raw).await.unwrap();
    }
    for minute in 0..50 {
        clock.advance(Duration::from_secs(60));
        spend(&ledger, &ada, 1, 1).await;
        held(&ledger, &ada, &Hold::tokens(key(), 1, 1).with_lease(Duration::from_secs(minute))).await;
        ledger.usage(&ada).await.unwrap();
    }
    for counter in &counters {
        let left = pttl(&mut raw, counter).await;
        assert!(left <= hour, "use set the time to live again: {left}");
    }
    // The next window sets it once more; a lease that outlives it does, too.
    clock.advance(Duration::from_secs(3_600));
    spend(&ledger, &ada, 1, 1).await;
    for counter in &counters {
        assert!(pttl(&mut raw, counter).await > day);
    }
    let week = Duration::from_secs(7 * 86_400);
    let long = held(&ledger, &ada, &Hold::tokens(key(), 1, 1).with_lease(week)).await;
    for counter in &counters {
        assert!(pttl(&mut raw, counter).await > 7 * day, "a hold's keys outlive its lease");
    }
    ledger.extend(&ada, long.id, week * 3).await.unwrap();
    for counter in &counters {
        assert!(pttl(&mut raw, counter).await > 21 * day);
    }
}

#[tokio::test]
async fn a_lifetime_has_no_end_and_a_refund_leaves_nothing() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let ledger = open(&url, &prefix, BudgetConfig::new().per_user_max_tokens(100)).await;
    let mut raw = raw(&url).await;
    for n in 0..20 {
        let passing = user(&format!("passing_{n}"));
        let got = held(&ledger, &passing, &Hold::tokens(key(), 5, 5)).await;
        ledger.close(&passing, got.id, Charge::Refund).await.unwrap();
        assert!(ledger.close(&passing, got.id, used(5, 5)).await.unwrap().duplicate, "the id proves itself");
    }
    assert_eq!(all_keys(&mut raw, &prefix).await, [format!("{prefix}:ledger")]);
    spend(&ledger, &user("ada"), 5, 5).await;
    for key in all_keys(&mut raw, &prefix).await {
        assert_eq!(pttl(&mut raw, &key).await, -1, "{key}");
    }
}

#[tokio::test]
async fn a_budget_of_another_window_gives_nothing_back_and_sticks_to_nothing() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let clock = Arc::new(ManualClock::default());
    let ada = user("ada");
    let hour = Duration::from_secs(3_600);
    let windows =
        [Window::Day, Window::Month, Window::Hour, Window::Rolling(hour), Window::Lifetime, Window::Hour];
    for window in windows {
        let budget = BudgetConfig::new().per_user_max_tokens(100).window(window);
        let ledger = open(&url, &prefix, budget).await.with_clock(clock.clone());
        if ledger.usage(&ada).await.unwrap().used.total_tokens() == 0 {
            spend(&ledger, &ada, 60, 40).await;
        }
        refused(&ledger, &ada, &Hold::tokens(key(), 1, 0)).await;
        let mut raw = raw(&url).await;
        let keys = all_keys(&mut raw, &prefix).await;
        let counter = keys.iter().find(|key| key.contains(":u:")).unwrap();
        if window == Window::Lifetime {
            spend(&ledger, &user("bob"), 1, 1).await;
            assert_eq!(ledger.usage(&ada).await.unwrap().used.total_tokens(), 100, "{counter}");
        }
    }
    clock.advance(hour);
    let ledger = open(&url, &prefix, BudgetConfig::new().per_user_max_tokens(100).window(Window::Hour))
        .await
        .with_clock(clock);
    spend(&ledger, &ada, 60, 40).await;
}

#[tokio::test]
async fn a_user_keeps_the_newest_thousand_estimates() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let clock = Arc::new(ManualClock::default());
    let ledger = open(&url, &prefix, BudgetConfig::new()).await.with_clock(clock.clone());
    let ada = user("ada");
    let mut ids = Vec::new();
    for n in 0..1_010 {
        let got = held(&ledger, &ada, &Hold::tokens(key(), 5, 5)).await;
        ledger.close(&ada, got.id, Charge::Used { usage: Usage::new(1, n), estimated: true }).await.unwrap();
        ids.push(got.id);
        clock.advance(Duration::from_millis(1));
    }
    let listed = ledger.estimates(&ada).await.unwrap();
    let listed: Vec<_> = listed.into_iter().map(|one| one.open(&ada).unwrap().hold).collect();
    assert_eq!(listed, ids[10..], "oldest first");
    let before = ledger.usage(&ada).await.unwrap().used;
    assert!(
        ledger.reconcile(&ada, ids[0], Usage::new(900, 900)).await.unwrap().duplicate,
        "it stands as it is"
    );
    assert_eq!(ledger.usage(&ada).await.unwrap().used, before);
    let mut raw = raw(&url).await;
    let keys = all_keys(&mut raw, &prefix).await;
    let counter = keys.iter().find(|key| key.contains(":u:")).unwrap();
    let fields: usize = redis::cmd("HLEN").arg(counter).query_async(&mut raw).await.unwrap();
    assert_eq!(fields, 1_000 + 3, "the counter, the name in two parts, and the estimates");
}

#[tokio::test]
async fn an_erasure_leaves_no_name_and_an_older_scope_puts_none_back() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let ledger = open(&url, &prefix, BudgetConfig::new().per_user_max_tokens(1_000)).await;
    let mut raw = raw(&url).await;
    let names = async |raw: &mut MultiplexedConnection| {
        let mut found = 0;
        for key in all_keys(raw, &prefix).await.iter().filter(|key| key.contains(":u:")) {
            let all: Vec<Vec<u8>> = redis::cmd("HGETALL").arg(key).query_async(raw).await.unwrap();
            found += all.iter().filter(|bytes| bytes.windows(7).any(|part| part == b"mallory")).count();
        }
        found
    };
    let before = user_in("app", "mallory", 0);
    everything(&ledger, &user_in("app", "mallory", 1)).await;
    assert_eq!(names(&mut raw).await, 0);
    spend(&ledger, &before, 1, 1).await;
    assert_eq!(names(&mut raw).await, 0, "a run from before the erasure");
    spend(&ledger, &user_in("app", "mallory", 1), 1, 1).await;
    assert_eq!(names(&mut raw).await, 1, "one from after it");
    let receipt = ledger.forget(&user_in("app", "mallory", 2), &Erase::everything()).await.unwrap();
    assert_eq!((receipt.total(), receipt.retained.len()), (1, 1));
    let nobody = ledger.forget(&user_in("app", "nobody", 2), &Erase::everything()).await.unwrap();
    assert_eq!((nobody.total(), nobody.retained.len()), (0, 0));
}

#[tokio::test]
async fn what_is_stored_under_a_foreign_name_is_withheld() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let ledger = open(&url, &prefix, BudgetConfig::new()).await;
    let ada = user("ada");
    let got = held(&ledger, &ada, &Hold::tokens(key(), 5, 5)).await;
    ledger.close(&ada, got.id, Charge::Used { usage: Usage::new(1, 1), estimated: true }).await.unwrap();
    let mut raw = raw(&url).await;
    let keys = all_keys(&mut raw, &prefix).await;
    let counter = keys.iter().find(|key| key.contains(":u:")).unwrap();
    redis::cmd("HSET").arg(counter).arg("u").arg("eve").exec_async(&mut raw).await.unwrap();
    let listed = ledger.estimates(&ada).await.unwrap();
    assert_eq!(listed.len(), 1);
    for one in listed {
        assert_eq!(one.open(&ada).unwrap_err().kind(), ErrorKind::IsolationViolation);
    }
    assert_eq!(ledger.export(&ada).await.err().map(|e| e.kind()), Some(ErrorKind::IsolationViolation));
}

#[tokio::test]
async fn what_cannot_be_counted_exactly_is_refused() {
    let ledger = open(&url("redis-plain"), &fresh_prefix(), BudgetConfig::new()).await;
    let ada = user("ada");
    let most = 1 << 53;
    let too_long = ledger.reserve(&ada, &Hold::tokens(key(), most, 0)).await.unwrap_err();
    assert_eq!(too_long.kind(), ErrorKind::InvalidInput);
    spend(&ledger, &ada, 0, 1).await;
    let got = held(&ledger, &ada, &Hold::tokens(key(), most / 2, 0)).await;
    let beyond = ledger.reserve(&ada, &Hold::tokens(key(), most / 2, 0)).await.unwrap_err();
    assert!(beyond.kind() == ErrorKind::Capacity && beyond.to_string().contains("9,007,199"), "{beyond}");
    ledger.close(&ada, got.id, used(most / 2, 0)).await.unwrap();
    assert_eq!(ledger.usage(&ada).await.unwrap().used.total_tokens(), most / 2 + 1, "to the token");
}
