//! Erasures that are dropped, crash half-way, or meet one another.

use std::time::Duration;

use loomflow_core::{
    Embedding, Erase, ErrorKind, FactQuery, MemoryStore, NewFact, PutBlock, RecallQuery, TenantData,
};
use loomflow_memory_redis::{RedisMemory, RedisMemoryConfig};

use crate::common::{at, base, fresh_namespace, fresh_prefix, raw, turn, url, user};

async fn keys(prefix: &str) -> Vec<String> {
    let mut raw = raw(&url("redis")).await;
    redis::cmd("KEYS").arg(format!("{prefix}:*")).query_async(&mut raw).await.unwrap()
}

async fn store(prefix: &str) -> RedisMemory {
    RedisMemory::connect(RedisMemoryConfig::new(url("redis")).with_key_prefix(prefix)).await.unwrap()
}

async fn fill(store: &RedisMemory, scope: &loomflow_core::Scope) {
    for n in 0..20 {
        let vector = Embedding::new("m", [1.0, n as f32]);
        store.remember(scope, turn(n + 1, "s", 1, "falcon").with_embedding(vector.clone())).await.unwrap();
        let fact = NewFact::new("me", "said", format!("{n}"), at(1)).with_embedding(vector);
        store.facts().unwrap().assert(scope, fact).await.unwrap();
    }
    store.put_block(scope, PutBlock::new("b", "x", at(1))).await.unwrap();
}

async fn is_empty(store: &RedisMemory, scope: &loomflow_core::Scope) -> bool {
    let found = store.recall(scope, &RecallQuery::new("", 99)).await.unwrap().len()
        + store.blocks(scope).await.unwrap().len()
        + store.facts().unwrap().query(scope, &FactQuery::all(99)).await.unwrap().len();
    found == 0
}

#[tokio::test]
async fn everything_leaves_an_epoch_and_nothing_else() {
    let prefix = fresh_prefix();
    let store = store(&prefix).await;
    let namespace = fresh_namespace();
    let scope = user(&namespace, "ada", 0);
    fill(&store, &scope).await;
    assert!(
        keys(&prefix).await.iter().filter(|key| key.contains(":v:")).count() >= 39,
        "vectors are indexed"
    );
    let later = user(&namespace, "ada", 1);
    let line = store.forget(&later, &Erase::everything()).await.unwrap();
    assert_eq!(line.total(), 41);
    let mut left = keys(&prefix).await;
    left.sort();
    assert_eq!(left, [format!("{prefix}:schema"), format!("{}:e", base(&prefix, scope.owner()))]);
}

#[tokio::test]
async fn a_part_takes_its_entries_of_the_search_index_with_it() {
    let prefix = fresh_prefix();
    let store = store(&prefix).await;
    let namespace = fresh_namespace();
    fill(&store, &user(&namespace, "ada", 0)).await;
    let later = user(&namespace, "ada", 1);
    assert_eq!(store.forget(&later, &Erase::before(at(2))).await.unwrap().total(), 41);
    assert_eq!(keys(&prefix).await.iter().filter(|key| key.contains(":v:")).count(), 0);
    assert!(is_empty(&store, &later).await);
}

/// The future is dropped after each length of time; what is there then is all or nothing, and the next finishes.
#[tokio::test]
async fn an_erasure_that_is_dropped_is_whole_or_absent_and_is_finished_by_the_next() {
    let prefix = fresh_prefix();
    let store = store(&prefix).await;
    let namespace = fresh_namespace();
    for micros in (0..40).map(|n| n * 40) {
        let id = format!("u{micros}");
        let scope = user(&namespace, &id, 0);
        fill(&store, &scope).await;
        let later = user(&namespace, &id, 1);
        let everything = Erase::everything();
        let erasing = store.forget(&later, &everything);
        let _dropped = tokio::time::timeout(Duration::from_micros(micros), erasing).await;
        let epoch = store.epoch(&later).await.unwrap().get();
        assert_eq!(is_empty(&store, &later).await, epoch == 1, "after {micros} us");
        if epoch == 1 {
            let late = store.remember(&scope, turn(99, "s", 1, "late")).await.unwrap_err();
            assert_eq!(late.kind(), ErrorKind::Erased);
        } else {
            let again = user(&namespace, &id, 2);
            store.forget(&again, &Erase::everything()).await.unwrap();
        }
    }
    // The next program that connects clears away what those left behind.
    let _next = self::store(&prefix).await;
    assert_eq!(
        keys(&prefix).await.iter().filter(|key| key.contains(":v:") || key.contains("sweep")).count(),
        0
    );
}

/// The program dies after the one step that erases: only that step is run, by raw means.
#[tokio::test]
async fn what_a_crash_leaves_is_out_of_reach_and_cleared_away_by_a_write() {
    let prefix = fresh_prefix();
    let store = store(&prefix).await;
    let namespace = fresh_namespace();
    let scope = user(&namespace, "ada", 0);
    fill(&store, &scope).await;
    let wipe = concat!(include_str!("../../src/lua/prelude.lua"), include_str!("../../src/lua/wipe.lua"));
    let mut raw = raw(&url("redis")).await;
    let mut eval = redis::cmd("EVAL");
    eval.arg(wipe).arg(1).arg(base(&prefix, scope.owner())).arg("0").arg(format!("{:020}", 1));
    eval.exec_async(&mut raw).await.unwrap();
    let later = user(&namespace, "ada", 1);
    assert!(is_empty(&store, &later).await);
    let vector = RecallQuery::new("", 9).with_embedding(Embedding::new("m", [1.0, 1.0]));
    assert!(store.recall(&later, &vector).await.unwrap().is_empty());
    assert!(keys(&prefix).await.iter().any(|key| key.contains(":v:")), "something is left of it");
    store.put_block(&later, PutBlock::new("b", "x", at(1))).await.unwrap();
    assert!(!keys(&prefix).await.iter().any(|key| key.contains(":v:")), "the next write cleared it away");
}
