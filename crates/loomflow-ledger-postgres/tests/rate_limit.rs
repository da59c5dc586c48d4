//! The limiter on a real server: the suite, several processes' worth of pools, what lies in the tables, and a server that goes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::FaultyProxy;
use loomflow_conformance::rate_limit::Instance;
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    Amounts, Epoch, ErrorKind, Identity, Namespace, RateLimitConfig, RateLimiter as _, Scope, Taken, UserId,
};
use loomflow_ledger_postgres::{PostgresRateLimiter, PostgresRateLimiterConfig};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

fn config(limits: RateLimitConfig) -> PostgresRateLimiterConfig {
    PostgresRateLimiterConfig::new(loomflow_tests::services::url("postgres"), limits)
}

async fn fresh(limits: RateLimitConfig) -> Instance {
    Instance::new(Arc::new(PostgresRateLimiter::connect(config(limits)).await.unwrap()))
}

loomflow_conformance::rate_limit!(fresh);

fn scope(namespace: &Namespace, user: &str) -> Scope {
    assume_scope(namespace.clone(), Identity::User(UserId::new(user).unwrap()), Epoch::ZERO)
}

fn fresh_namespace() -> Namespace {
    Namespace::new(format!("n{:016x}", rand::random::<u64>())).unwrap()
}

async fn admits(limiter: &PostgresRateLimiter, scope: &Scope) -> bool {
    limiter.take(scope, &Amounts::run()).await.unwrap() == Taken::Admitted
}

/// Three pools, as three processes have: together they let a burst through, of a user and of all, and none waits in a circle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_share_one_burst() {
    let limits = RateLimitConfig::new().per_user_rps(0.01).burst(30).global_rps(0.01).global_burst(50);
    let namespace = fresh_namespace();
    let mut asking = Vec::new();
    for _ in 0..3 {
        let limiter = Arc::new(PostgresRateLimiter::connect(config(limits.clone())).await.unwrap());
        for n in 0..60 {
            let (limiter, scope) = (limiter.clone(), scope(&namespace, ["alice", "bob"][n % 2]));
            asking.push(tokio::spawn(async move { (n % 2, admits(&limiter, &scope).await) }));
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

/// Rows whose limits are whole again are taken out by the way, and no other: whoever is held back stays so.
#[tokio::test]
async fn rows_that_say_nothing_go_and_no_other() {
    let url = loomflow_tests::services::url("postgres");
    let namespace = fresh_namespace();
    let slow = PostgresRateLimiter::connect(config(RateLimitConfig::new().per_user_rps(0.01).burst(1)))
        .await
        .unwrap();
    let quick = PostgresRateLimiter::connect(config(RateLimitConfig::new().per_user_rps(1_000.0).burst(9)))
        .await
        .unwrap();
    assert!(admits(&slow, &scope(&namespace, "victim")).await);
    // 512 throw-away users pass: two sweeps.
    for n in 0..511 {
        assert!(admits(&quick, &scope(&namespace, &format!("throw-away-{n}"))).await);
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(admits(&quick, &scope(&namespace, "last")).await);
    let mut admin = PgConnection::connect(&url).await.unwrap();
    let count = format!("SELECT count(*) FROM loomflow.rate_limits WHERE namespace = '{namespace}'");
    let left: i64 = sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut admin).await.unwrap();
    assert!((1..=2).contains(&left), "{left}: the victim, and at most the one that came last");
    assert!(!admits(&slow, &scope(&namespace, "victim")).await, "the victim is still held back");
}

/// The second wall: a connection of the application's role that names no partition sees nothing, and one that names its own sees
/// its own and can write no other.
#[tokio::test]
async fn row_level_security_binds_every_row() {
    let namespace = fresh_namespace();
    let limiter = PostgresRateLimiter::connect(config(RateLimitConfig::new().per_user_rps(0.01).burst(2)))
        .await
        .unwrap();
    let (alice, bob) = (scope(&namespace, "alice"), scope(&namespace, "bob"));
    assert!(admits(&limiter, &alice).await && admits(&limiter, &bob).await);
    let mut raw = PgConnection::connect(&loomflow_tests::services::url("postgres")).await.unwrap();
    raw.execute("SET ROLE loomflow_app; SET search_path TO loomflow").await.unwrap();
    let seen = async |raw: &mut PgConnection| -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM rate_limits").fetch_one(raw).await.unwrap()
    };
    assert_eq!(seen(&mut raw).await, 0, "a connection that names nobody sees nobody");
    let name =
        format!("SELECT set_config('loomflow.partitions', '{}', false)", alice.owner().partition_hex());
    raw.execute(AssertSqlSafe(name)).await.unwrap();
    assert_eq!(seen(&mut raw).await, 1, "its own row");
    let foreign =
        format!("UPDATE rate_limits SET until = 0 WHERE partition = '\\x{}'", bob.owner().partition_hex());
    let touched = raw.execute(AssertSqlSafe(foreign)).await.unwrap().rows_affected();
    assert_eq!(touched, 0, "another's row is not there to be written");
}

/// A server that is not there lets nothing through, and nothing is fresh when it is back.
#[tokio::test]
async fn a_server_that_is_down_refuses() {
    let url = loomflow_tests::services::url("postgres");
    let address = url.split('@').nth(1).unwrap().split('/').next().unwrap();
    let proxy = FaultyProxy::start(address).await.unwrap();
    let limits = RateLimitConfig::new().per_user_rps(0.01).burst(1);
    let config = PostgresRateLimiterConfig::new(proxy.url_like(&url), limits)
        .with_connect_timeout(Duration::from_millis(500))
        .with_operation_timeout(Duration::from_secs(2));
    let limiter = PostgresRateLimiter::connect(config).await.unwrap();
    let alice = scope(&fresh_namespace(), "alice");
    assert!(admits(&limiter, &alice).await);
    proxy.refuse(true);
    proxy.cut().await;
    for _ in 0..3 {
        let error = limiter.take(&alice, &Amounts::run()).await.unwrap_err();
        let down = [ErrorKind::Unreachable, ErrorKind::Transport, ErrorKind::Timeout];
        assert!(down.contains(&error.kind()) && error.limited().is_none(), "{error:?}");
    }
    proxy.refuse(false);
    for _ in 0..200 {
        match limiter.take(&alice, &Amounts::run()).await {
            Ok(Taken::Limited(_)) => return,
            Ok(Taken::Admitted) => panic!("the outage made a limit fresh"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("the limiter does not come back with its server");
}
