//! What the tests share: servers, tenants, holds.
#![allow(dead_code, reason = "each test file uses some of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use loomflow_core::danger::assume_scope;
use loomflow_core::{
    BudgetConfig, Charge, Epoch, Granted, Hold, HoldKey, Identity, Ledger, Namespace, Refusal, Reserve,
    RunId, Scope, Usage, UserId,
};
use loomflow_ledger_redis::{RedisLedger, RedisLedgerConfig};

/// A prefix of its own, so that a test sees nobody else's keys and counters.
pub(crate) fn fresh_prefix() -> String {
    format!("t{:016x}", rand::random::<u64>())
}

pub(crate) fn url(service: &str) -> String {
    loomflow_tests::services::url(service)
}

/// A ledger with counters of its own.
pub(crate) async fn connect(service: &str, budget: BudgetConfig) -> RedisLedger {
    open(&url(service), &fresh_prefix(), budget).await
}

pub(crate) async fn open(url: &str, prefix: &str, budget: BudgetConfig) -> RedisLedger {
    RedisLedger::connect(RedisLedgerConfig::new(url, budget).with_key_prefix(prefix))
        .await
        .expect("the server takes it")
}

pub(crate) async fn raw(url: &str) -> redis::aio::MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

pub(crate) fn user(id: &str) -> Scope {
    user_in("app", id, 0)
}

pub(crate) fn user_in(namespace: &str, id: &str, epoch: u64) -> Scope {
    let identity = Identity::User(UserId::new(id).unwrap());
    assume_scope(Namespace::new(namespace).unwrap(), identity, Epoch::new(epoch))
}

pub(crate) fn key() -> HoldKey {
    HoldKey::new(RunId::from_u128(rand::random()), 0)
}

pub(crate) fn used(input: u64, output: u64) -> Charge {
    Charge::Used { usage: Usage::new(input, output), estimated: false }
}

pub(crate) async fn held(ledger: &dyn Ledger, scope: &Scope, hold: &Hold) -> Granted {
    match ledger.reserve(scope, hold).await.unwrap() {
        Reserve::Held(granted) => granted,
        Reserve::Refused(refusal) => panic!("refused: {refusal}"),
    }
}

pub(crate) async fn refused(ledger: &dyn Ledger, scope: &Scope, hold: &Hold) -> Refusal {
    match ledger.reserve(scope, hold).await.unwrap() {
        Reserve::Held(granted) => panic!("granted {granted:?}"),
        Reserve::Refused(refusal) => *refusal,
    }
}

pub(crate) async fn spend(ledger: &dyn Ledger, scope: &Scope, input: u64, output: u64) {
    let got = held(ledger, scope, &Hold::tokens(key(), input, output).with_min_output(output)).await;
    ledger.sent(scope, got.id).await.unwrap();
    assert!(!ledger.close(scope, got.id, used(input, output)).await.unwrap().duplicate);
}

/// All keys of a prefix, and what lies under each.
pub(crate) async fn all_keys(raw: &mut redis::aio::MultiplexedConnection, prefix: &str) -> Vec<String> {
    let mut keys: Vec<String> = redis::cmd("KEYS").arg(format!("{prefix}:*")).query_async(raw).await.unwrap();
    keys.sort();
    keys
}

/// Milliseconds until a key goes; -1 for one that stays.
pub(crate) async fn pttl(raw: &mut redis::aio::MultiplexedConnection, key: &str) -> i64 {
    redis::cmd("PTTL").arg(key).query_async(raw).await.unwrap()
}

/// Brings every key of a prefix as much nearer to its end as if that much time had passed.
pub(crate) async fn pass(
    raw: &mut redis::aio::MultiplexedConnection,
    prefix: &str,
    time: std::time::Duration,
) {
    let time = i64::try_from(time.as_millis()).unwrap();
    for key in all_keys(raw, prefix).await {
        let left = pttl(raw, &key).await;
        if left >= 0 {
            redis::cmd("PEXPIRE").arg(&key).arg((left - time).max(0)).exec_async(raw).await.unwrap();
        }
    }
}

/// All that lies under a prefix.
pub(crate) async fn snapshot(
    raw: &mut redis::aio::MultiplexedConnection,
    prefix: &str,
) -> Vec<(String, i64, Vec<u8>)> {
    let mut out = Vec::new();
    for key in all_keys(raw, prefix).await {
        let bytes = redis::cmd("DUMP").arg(&key).query_async(raw).await.unwrap();
        out.push((key.clone(), pttl(raw, &key).await.max(0), bytes));
    }
    out
}

/// What a crash leaves: all that was there at an earlier moment, and nothing that came after it.
pub(crate) async fn go_back(
    raw: &mut redis::aio::MultiplexedConnection,
    prefix: &str,
    to: &[(String, i64, Vec<u8>)],
) {
    for key in all_keys(raw, prefix).await {
        redis::cmd("DEL").arg(key).exec_async(raw).await.unwrap();
    }
    for (key, left, bytes) in to {
        redis::cmd("RESTORE").arg(key).arg(*left).arg(bytes).exec_async(raw).await.unwrap();
    }
}
