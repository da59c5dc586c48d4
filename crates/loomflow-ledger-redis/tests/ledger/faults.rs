//! Networks that fail, and servers that are killed, emptied of scripts, or full.

use std::time::Duration;

use loomflow_conformance::doubles::{Direction, FaultyProxy};
use loomflow_core::{BudgetConfig, Charge, ErrorKind, Hold, Ledger, Reserve, TenantData, Usage, Window};
use loomflow_ledger_redis::{RedisLedger, RedisLedgerConfig};
use loomflow_tests::own::OwnRedis;

use crate::common::{fresh_prefix, held, key, open, raw, spend, url, used, user};

async fn through(budget: BudgetConfig) -> (FaultyProxy, RedisLedger) {
    let url = url("redis-plain");
    let proxy = FaultyProxy::start(&url).await.unwrap();
    let config = RedisLedgerConfig::new(proxy.url_like(&url), budget)
        .with_key_prefix(fresh_prefix())
        .with_operation_timeout(Duration::from_secs(2))
        .with_connect_timeout(Duration::from_secs(2));
    (proxy, RedisLedger::connect(config).await.unwrap())
}

#[tokio::test]
async fn a_connection_that_is_cut_counts_nothing_twice() {
    let budget = BudgetConfig::new().max_tokens(1_000).per_user_max_tokens(1_000).per_run_max_tokens(1_000);
    let (proxy, ledger) = through(budget).await;
    let ada = user("ada");
    // The server has to know the scripts, or its first answer is that it does not.
    spend(&ledger, &ada, 1, 1).await;
    ledger.usage(&ada).await.unwrap();
    ledger.namespace_usage(&ada).await.unwrap();
    for turn in 1..=5_u64 {
        let hold = Hold::tokens(key(), 30, 20);
        // The server did its work, and its answer was lost.
        proxy.cut_after(Direction::Replies, 0);
        let got = held(&ledger, &ada, &hold).await;
        let usage = ledger.usage(&ada).await.unwrap();
        assert_eq!((usage.open_holds, usage.held_tokens), (1, 50), "held once");
        proxy.cut_after(Direction::Replies, 0);
        ledger.sent(&ada, got.id).await.unwrap();
        proxy.cut_after(Direction::Replies, 0);
        ledger.close(&ada, got.id, used(30, 5)).await.unwrap();
        assert!(ledger.close(&ada, got.id, used(30, 5)).await.unwrap().duplicate);
        let usage = ledger.usage(&ada).await.unwrap();
        assert_eq!((usage.used.total_tokens(), usage.held_tokens), (2 + 35 * turn, 0), "counted once");
        let all = ledger.namespace_usage(&ada).await.unwrap();
        assert_eq!((all.used.total_tokens(), all.held_tokens), (2 + 35 * turn, 0));
    }
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_is_told_again() {
    let own = OwnRedis::start(false).await;
    let ledger = open(own.url(), "lf", BudgetConfig::new().per_user_max_tokens(1_000)).await;
    let mut raw = raw(own.url()).await;
    let ada = user("ada");
    for turn in 1..=3_u64 {
        let got = held(&ledger, &ada, &Hold::tokens(key(), 10, 0)).await;
        redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut raw).await.unwrap();
        ledger.sent(&ada, got.id).await.unwrap();
        redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut raw).await.unwrap();
        ledger.close(&ada, got.id, used(10, 0)).await.unwrap();
        assert_eq!(ledger.usage(&ada).await.unwrap().used.total_tokens(), 10 * turn);
    }
}

#[tokio::test]
async fn a_server_that_is_away_refuses_everything() {
    let (proxy, ledger) = through(BudgetConfig::new().per_user_max_tokens(1_000)).await;
    let ada = user("ada");
    let got = held(&ledger, &ada, &Hold::tokens(key(), 10, 10)).await;
    proxy.refuse(true);
    proxy.cut().await;
    let answers = [
        ledger.reserve(&ada, &Hold::tokens(key(), 1, 1)).await.map(drop),
        ledger.sent(&ada, got.id).await,
        ledger.extend(&ada, got.id, Duration::from_secs(1)).await,
        ledger.close(&ada, got.id, Charge::Refund).await.map(drop),
        ledger.usage(&ada).await.map(drop),
        ledger.estimates(&ada).await.map(drop),
    ];
    for answer in answers {
        let error = answer.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
    }
    assert!(!ledger.ready().await.ready);
}

/// A holder of many holds, on a server that is killed without warning, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_loses_no_charge_that_it_acknowledged() {
    let mut own = OwnRedis::start(false).await;
    let config =
        RedisLedgerConfig::new(own.url(), BudgetConfig::new().max_tokens(1_000_000).window(Window::Hour))
            .with_operation_timeout(Duration::from_secs(5))
            .with_connect_timeout(Duration::from_secs(5));
    let ledger = RedisLedger::connect(config).await.unwrap();
    let lease = Duration::from_secs(2);
    let (mut acknowledged, mut begun) = (0_u64, 0_u64);
    for _ in 0..3 {
        let tasks: Vec<_> = (0..16)
            .map(|n| {
                let ledger = ledger.clone();
                tokio::spawn(async move {
                    let scope = user(&format!("user_{}", n % 4));
                    let (mut acknowledged, mut begun) = (0_u64, 0_u64);
                    loop {
                        let hold = Hold::tokens(key(), 3, 4).with_lease(lease);
                        let Ok(Reserve::Held(got)) = ledger.reserve(&scope, &hold).await else { break };
                        begun += 7;
                        if ledger.sent(&scope, got.id).await.is_err() {
                            break;
                        }
                        if ledger.close(&scope, got.id, used(3, 4)).await.is_err() {
                            break;
                        }
                        acknowledged += 7;
                    }
                    (acknowledged, begun)
                })
            })
            .collect();
        let enough = acknowledged + 7 * 300;
        let mut probe = raw(own.url()).await;
        // Killed in the midst of work, which the server itself says is under way.
        loop {
            let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut probe).await.unwrap();
            let calls = info.lines().find_map(|l| l.strip_prefix("cmdstat_evalsha:calls="));
            let calls: u64 = calls.and_then(|l| l.split(',').next()).map_or(0, |n| n.parse().unwrap());
            if calls * 7 / 3 > enough.min(7 * 900) / 3 {
                break;
            }
        }
        own.kill9();
        for task in tasks {
            let (a, b) = task.await.unwrap();
            (acknowledged, begun) = (acknowledged + a, begun + b);
        }
        own.restart().await;
        // The circuit may be open still.
        while ledger.usage(&user("user_0")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    tokio::time::sleep(lease).await;
    let all = ledger.namespace_usage(&user("user_0")).await.unwrap();
    assert_eq!(all.held_tokens, 0, "what its holder left is given back");
    let mut sum = Usage::default();
    for n in 0..4 {
        let usage = ledger.usage(&user(&format!("user_{n}"))).await.unwrap();
        assert_eq!((usage.held_tokens, usage.open_holds), (0, 0));
        sum += usage.used;
    }
    assert_eq!(all.used, sum, "the sum of the users is that of all together");
    let counted = sum.total_tokens();
    assert!(
        acknowledged > 0 && acknowledged <= counted && counted <= begun + 16 * 7 * 3,
        "{acknowledged} {counted} {begun}"
    );
}

#[tokio::test]
async fn a_server_that_is_full_reserves_nothing_and_closes_everything() {
    let own = OwnRedis::start(false).await;
    let ledger = open(own.url(), "lf", BudgetConfig::new().per_user_max_tokens(1_000)).await;
    let ada = user("ada");
    spend(&ledger, &ada, 1, 1).await;
    let got = held(&ledger, &ada, &Hold::tokens(key(), 10, 10)).await;
    let mut raw = raw(own.url()).await;
    let mut set = async |name: &str, value: &str| {
        redis::cmd("CONFIG").arg("SET").arg(name).arg(value).exec_async(&mut raw).await.unwrap();
    };
    set("maxmemory", "1mb").await;
    let full = ledger.reserve(&ada, &Hold::tokens(key(), 1, 1)).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Capacity, "{full:?}");
    ledger.close(&ada, got.id, used(10, 3)).await.unwrap();
    let usage = ledger.usage(&ada).await.unwrap();
    assert_eq!((usage.used.total_tokens(), usage.held_tokens), (15, 0));
    // One that would throw quotas away instead is refused.
    set("maxmemory-policy", "allkeys-lru").await;
    let config = RedisLedgerConfig::new(own.url(), BudgetConfig::new());
    let error = RedisLedger::connect(config).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("noeviction"), "{error}");
}

#[tokio::test]
async fn an_answer_can_wait_for_the_disk() {
    let own = OwnRedis::start(false).await;
    let mut raw = raw(own.url()).await;
    let mut set = async |name: &str, value: &str| {
        redis::cmd("CONFIG").arg("SET").arg(name).arg(value).exec_async(&mut raw).await.unwrap();
    };
    let config = || RedisLedgerConfig::new(own.url(), BudgetConfig::new()).with_wait_for_disk(true);
    set("appendfsync", "everysec").await;
    let ledger = RedisLedger::connect(config()).await.unwrap();
    let ada = user("ada");
    // All who wait at the same time wait together.
    let tasks = (0..50).map(|_| {
        let ledger = ledger.clone();
        tokio::spawn(async move { held(&ledger, &user("ada"), &Hold::tokens(key(), 1, 1)).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(ledger.usage(&ada).await.unwrap().open_holds, 50);
    set("appendonly", "no").await;
    let error = RedisLedger::connect(config()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("appendonly"), "{error}");
}
