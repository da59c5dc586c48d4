//! What lies in the server: whose keys, in which slot, and for how long.

use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::ManualClock;
use loomflow_core::{
    BudgetConfig, Charge, Erase, ErrorKind, Hold, HoldKey, Ledger, RunId, Scope, TenantData, Timestamp,
    Usage, Window,
};
use loomflow_ledger_redis::RedisLedger;
use redis::aio::MultiplexedConnection;

use crate::common::{
    all_keys, fresh_prefix, held, key, open, pass, pttl, raw, refused, spend, url, used, user, user_in,
};

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
    // How long the counters live when nothing is open; all of them stay for as long as something is.
    let left = async |raw: &mut MultiplexedConnection| {
        let (one, other) = (pttl(raw, counters[0]).await, pttl(raw, counters[1]).await);
        assert!((one - other).abs() < 10_000, "{one} {other}");
        one
    };
    let first = left(&mut raw).await;
    assert!(first > day && first <= day + hour, "the window's end and the longest lease: {first}");
    for minute in 1..50 {
        clock.advance(Duration::from_secs(60));
        spend(&ledger, &ada, 1, 1).await;
        ledger.usage(&ada).await.unwrap();
        let now = left(&mut raw).await;
        assert!(now <= first - minute * 60_000 + 5_000, "use set a later end: {now}");
        let lease = Duration::from_secs(30);
        let open = held(&ledger, &ada, &Hold::tokens(key(), 1, 1).with_lease(lease)).await;
        assert_eq!(left(&mut raw).await, -1, "no hold is lost with its counter");
        ledger.extend(&ada, open.id, lease).await.unwrap();
        if minute % 2 == 0 {
            ledger.close(&ada, open.id, Charge::Refund).await.unwrap();
        }
    }
    clock.advance(Duration::from_secs(60));
    ledger.usage(&user("bob")).await.unwrap();
    let now = left(&mut raw).await;
    assert!(now > 0 && now <= first - 50 * 60_000 + 5_000, "a lease that ran out did not, either: {now}");
    // The next window sets it once more.
    clock.advance(Duration::from_secs(3_600));
    spend(&ledger, &ada, 1, 1).await;
    assert!(left(&mut raw).await > day);
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
    // But that these holds ended, for a while.
    let lasting = async |raw: &mut MultiplexedConnection| {
        let (ends, lasting): (Vec<String>, Vec<String>) =
            all_keys(raw, &prefix).await.into_iter().partition(|key| key.ends_with(":ended"));
        assert_eq!(ends.len(), 1);
        lasting
    };
    assert_eq!(lasting(&mut raw).await, [format!("{prefix}:ledger")]);
    spend(&ledger, &user("ada"), 5, 5).await;
    for key in lasting(&mut raw).await {
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

fn guessed(input: u64, output: u64) -> Charge {
    Charge::Used { usage: Usage::new(input, output), estimated: true }
}

fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

#[tokio::test]
async fn an_estimate_is_corrected_in_the_window_it_was_charged_in_whatever_the_windows_are_now() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let clock = Arc::new(ManualClock::new(at("2026-01-31T10:30:00Z")));
    let ada = user("ada");
    let with = async |window| {
        let budget = BudgetConfig::new().per_user_max_tokens(1_000).max_tokens(1_000).window(window);
        open(&url, &prefix, budget).await.with_clock(clock.clone())
    };
    let used_by = async |ledger: &RedisLedger| {
        let (one, all) = (ledger.usage(&ada).await.unwrap(), ledger.namespace_usage(&ada).await.unwrap());
        assert_eq!(one.used, all.used, "both count alike");
        one.used.total_tokens()
    };
    let hourly = with(Window::Hour).await;
    let over = held(&hourly, &ada, &Hold::tokens(key(), 30, 20)).await;
    hourly.close(&ada, over.id, guessed(30, 20)).await.unwrap();
    clock.advance(Duration::from_secs(2 * 3_600));
    spend(&hourly, &ada, 4, 3).await;
    let running = held(&hourly, &ada, &Hold::tokens(key(), 30, 20)).await;
    hourly.close(&ada, running.id, guessed(10, 5)).await.unwrap();
    let late = Hold::tokens(key(), 30, 20).with_lease(Duration::from_secs(60));
    let late = held(&hourly, &ada, &late).await;
    hourly.sent(&ada, late.id).await.unwrap();

    let across = held(&hourly, &ada, &Hold::tokens(key(), 30, 20)).await;

    let daily = with(Window::Day).await;
    assert_eq!(used_by(&daily).await, 22, "nothing is given back");
    // What the rules in core say of the hour that is over: nothing that counts now changes.
    daily.reconcile(&ada, over.id, Usage::new(1, 1)).await.unwrap();
    assert_eq!(used_by(&daily).await, 22, "its hour was over before the day began to count");
    daily.reconcile(&ada, running.id, Usage::new(100, 0)).await.unwrap();
    assert_eq!(used_by(&daily).await, 107, "its hour is counted in this day, and so is what it lacked");

    // Reserved in an hour and charged in a day, it is of the day.
    daily.close(&ada, across.id, guessed(20, 0)).await.unwrap();
    daily.reconcile(&ada, across.id, Usage::new(3, 0)).await.unwrap();
    assert_eq!(used_by(&daily).await, 110);

    // A lease that ran out in January is of January, also where the first to look is of February.
    let monthly = with(Window::Month).await;
    spend(&monthly, &ada, 1, 0).await;
    clock.set(at("2026-02-02T00:00:00Z"));
    assert_eq!(used_by(&monthly).await, 0);
    let listed = monthly.estimates(&ada).await.unwrap();
    assert_eq!(listed.len(), 1);
    monthly.reconcile(&ada, late.id, Usage::new(500, 0)).await.unwrap();
    assert_eq!(used_by(&monthly).await, 0);
}

#[tokio::test]
async fn a_lifetime_that_becomes_a_window_keeps_its_estimates() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let ada = user("ada");
    let mut raw = raw(&url).await;
    let windows = [Window::Lifetime, Window::Hour, Window::Lifetime, Window::Day];
    for (n, window) in windows.into_iter().enumerate() {
        let ledger = open(&url, &prefix, BudgetConfig::new().window(window)).await;
        let got = held(&ledger, &ada, &Hold::tokens(key(), 5, 5)).await;
        ledger.close(&ada, got.id, guessed(1, 1)).await.unwrap();
        assert_eq!(ledger.estimates(&ada).await.unwrap().len(), n + 1, "{window}");
        for key in all_keys(&mut raw, &prefix).await {
            if key.contains(":u:") || key.contains(":e:") {
                let (left, day) = (pttl(&mut raw, &key).await, 86_400_000);
                let kept = if window == Window::Lifetime { -1..0 } else { 34 * day..35 * day + 1 };
                assert!(kept.contains(&left), "{window} {key}: {left}");
            }
        }
    }
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
    // Nothing says how long a run from before lives: what refuses its name stays when the counter went.
    for key in all_keys(&mut raw, &prefix).await {
        if key.contains(":x:") {
            assert_eq!(pttl(&mut raw, &key).await, -1);
        } else if key.contains(":u:") || key.contains(":e:") {
            redis::cmd("DEL").arg(key).exec_async(&mut raw).await.unwrap();
        }
    }
    pass(&mut raw, &prefix, Duration::from_secs(400 * 86_400)).await;
    spend(&ledger, &user_in("app", "mallory", 1), 1, 1).await;
    assert_eq!(names(&mut raw).await, 0, "however late it comes");
    spend(&ledger, &user_in("app", "mallory", 2), 1, 1).await;
    assert_eq!(names(&mut raw).await, 1);
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
