//! The limiter on real servers: the suite, two processes' worth of connections, what the keys say, and a server that goes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::FaultyProxy;
use loomflow_conformance::rate_limit::Instance;
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    Amounts, Epoch, ErrorKind, Identity, Namespace, RateLimitConfig, RateLimiter as _, Resource, Scope,
    Taken, TenantData as _, UserId,
};
use loomflow_ledger_redis::{RedisRateLimiter, RedisRateLimiterConfig};

async fn open(service: &str, limits: RateLimitConfig) -> RedisRateLimiter {
    let url = loomflow_tests::services::url(service);
    RedisRateLimiter::connect(RedisRateLimiterConfig::new(url, limits)).await.unwrap()
}

mod on_redis {
    //! The service `redis`.

    async fn fresh(limits: loomflow_core::RateLimitConfig) -> super::Instance {
        super::Instance::new(std::sync::Arc::new(super::open("redis", limits).await))
    }

    loomflow_conformance::rate_limit!(fresh);
}

mod on_plain_redis {
    //! The service `redis-plain`.

    async fn fresh(limits: loomflow_core::RateLimitConfig) -> super::Instance {
        super::Instance::new(std::sync::Arc::new(super::open("redis-plain", limits).await))
    }

    loomflow_conformance::rate_limit!(fresh);
}

fn scope(namespace: &Namespace, user: &str) -> Scope {
    assume_scope(namespace.clone(), Identity::User(UserId::new(user).unwrap()), Epoch::ZERO)
}

fn fresh_namespace() -> Namespace {
    Namespace::new(format!("n{:016x}", rand::random::<u64>())).unwrap()
}

/// Four connections, as four processes have: together they let a burst through, of a user and of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_share_one_burst() {
    let limits = RateLimitConfig::new().per_user_rps(0.01).burst(30).global_rps(0.01).global_burst(50);
    let namespace = fresh_namespace();
    let mut asking = Vec::new();
    for _ in 0..4 {
        let limiter = Arc::new(open("redis", limits.clone()).await);
        for n in 0..60 {
            let (limiter, scope) = (limiter.clone(), scope(&namespace, ["alice", "bob"][n % 2]));
            asking.push(tokio::spawn(async move {
                let taken = limiter.take(&scope, &Amounts::run()).await.unwrap();
                (n % 2, taken == Taken::Admitted)
            }));
        }
    }
    let mut admitted = [0, 0];
    for asked in asking {
        let (who, yes) = asked.await.unwrap();
        admitted[who] += u32::from(yes);
    }
    assert_eq!(admitted[0] + admitted[1], 50, "{admitted:?}");
    assert!(admitted.iter().all(|n| *n <= 30), "{admitted:?}");
}

/// What lies on the server: no name, one hash slot for a namespace, and no key that outlives what it says.
#[tokio::test]
async fn keys_name_nobody_and_go_by_themselves() {
    let prefix = format!("t{:016x}", rand::random::<u64>());
    let limits = RateLimitConfig::new().per_user_rps(2.0).burst(4).global_rps(2.0).global_burst(9);
    let url = loomflow_tests::services::url("redis");
    let config = RedisRateLimiterConfig::new(url.clone(), limits).with_key_prefix(&prefix);
    let limiter = RedisRateLimiter::connect(config).await.unwrap();
    let namespace = Namespace::new("shop}{").unwrap();
    for user in ["alice", "bob} {", "*"] {
        assert_eq!(limiter.take(&scope(&namespace, user), &Amounts::run()).await.unwrap(), Taken::Admitted);
    }
    let mut raw = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let mut keys = async || -> Vec<String> {
        redis::cmd("KEYS").arg(format!("{prefix}:*")).query_async(&mut raw).await.unwrap()
    };
    let found = keys().await;
    assert_eq!(found.len(), 4, "three users and all together: {found:?}");
    let slots: Vec<_> = found.iter().map(|key| key.split_once('}').unwrap().0.to_owned()).collect();
    assert!(slots.windows(2).all(|two| two[0] == two[1]), "one slot of a cluster: {found:?}");
    assert!(!found.concat().contains("alice") && !found.concat().contains("shop"));
    for _ in 0..500 {
        if keys().await.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("keys stay although all limits are whole: {:?}", keys().await);
}

/// A server that is not there lets nothing through, and is asked again when it is back; nothing became fresh meanwhile.
#[tokio::test]
async fn a_server_that_is_down_refuses() {
    let url = loomflow_tests::services::url("redis");
    let proxy = FaultyProxy::start(url.split("//").nth(1).unwrap().trim_end_matches('/')).await.unwrap();
    let limits = RateLimitConfig::new().per_user_rps(0.01).burst(1);
    let config = RedisRateLimiterConfig::new(proxy.url_like(&url), limits)
        .with_operation_timeout(Duration::from_millis(500))
        .with_connect_timeout(Duration::from_millis(300));
    let limiter = RedisRateLimiter::connect(config).await.unwrap();
    let alice = scope(&fresh_namespace(), "alice");
    assert_eq!(limiter.take(&alice, &Amounts::run()).await.unwrap(), Taken::Admitted);
    proxy.refuse(true);
    proxy.cut().await;
    for _ in 0..3 {
        let error = limiter.take(&alice, &Amounts::run()).await.unwrap_err();
        let down = [ErrorKind::Unreachable, ErrorKind::Transport, ErrorKind::Timeout];
        assert!(down.contains(&error.kind()), "{error:?}");
        assert!(error.limited().is_none(), "an outage is no limit");
    }
    proxy.refuse(false);
    for _ in 0..200 {
        match limiter.take(&alice, &Amounts::run()).await {
            Ok(taken) => {
                let Taken::Limited(limited) = taken else { panic!("the outage made a limit fresh") };
                assert_eq!(limited.resource, Resource::Runs);
                assert!(limiter.ready().await.ready);
                return;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("the limiter does not come back with its server");
}

/// A killed server that is started again gives nothing back of what had reached its log.
#[tokio::test]
async fn a_killed_server_forgets_nothing_that_reached_its_log() {
    let mut server = loomflow_tests::own::OwnRedis::start(true).await;
    let limits = RateLimitConfig::new().per_user_rps(0.001).burst(2);
    let limiter = RedisRateLimiter::connect(RedisRateLimiterConfig::new(server.url(), limits)).await.unwrap();
    let alice = scope(&fresh_namespace(), "alice");
    for _ in 0..2 {
        assert_eq!(limiter.take(&alice, &Amounts::run()).await.unwrap(), Taken::Admitted);
    }
    let mut raw =
        redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let synced: (u64, u64) = redis::cmd("WAITAOF").arg(&[1, 0, 5_000]).query_async(&mut raw).await.unwrap();
    assert_eq!(synced.0, 1);
    server.kill9();
    server.restart().await;
    for _ in 0..200 {
        match limiter.take(&alice, &Amounts::run()).await {
            Ok(Taken::Limited(_)) => return,
            Ok(Taken::Admitted) => panic!("the restart made a limit fresh"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("the limiter does not come back with its server");
}
