//! Equal answers with RediSearch, without it, and in process; also while it is not there to be asked.

use loomflow_core::{Embedding, EpisodeMatch, FactQuery, MemoryStore, NewFact, RecallQuery, Scope};
use loomflow_local::InMemoryMemory;
use loomflow_memory_redis::{RedisMemory, RedisMemoryConfig};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::common::{at, base, connect, fresh_namespace, fresh_prefix, raw, turn, url, user};

const DIMENSIONS: usize = 768;

/// Vectors among which some are equal, some are scaled, some are nearly equal, and some point nowhere.
fn vectors(rng: &mut StdRng, count: usize) -> Vec<Embedding> {
    let mut all: Vec<Vec<f32>> = Vec::new();
    for n in 0..count {
        let of = |all: &Vec<Vec<f32>>, rng: &mut StdRng| all[rng.random_range(0..all.len())].clone();
        let fresh = |rng: &mut StdRng| (0..DIMENSIONS).map(|_| rng.random_range(-1.0..1.0_f32)).collect();
        let vector = match if n == 0 { 9 } else { rng.random_range(0..10) } {
            0 => of(&all, rng),
            1 => of(&all, rng).iter().map(|x| x * 3.0).collect(),
            2 => {
                let mut near = of(&all, rng);
                near[0] += 1e-6;
                near
            }
            3 => vec![0.0; DIMENSIONS],
            4 => of(&all, rng).iter().map(|x| -x).collect(),
            _ => fresh(rng),
        };
        all.push(vector);
    }
    all.into_iter().map(|v| Embedding::new("m", v)).collect()
}

/// Ids, scores and cosines, bit by bit.
async fn recall(store: &dyn MemoryStore, scope: &Scope, query: &RecallQuery) -> Vec<String> {
    let show = |m: EpisodeMatch| {
        let bits = (m.score.to_bits(), m.bm25.map(f64::to_bits), m.cosine.map(f32::to_bits));
        format!("{} {bits:?} {:?}", m.episode.id, m.episode.embedding.is_some())
    };
    let found = store.recall(scope, query).await.unwrap();
    found.into_iter().map(|m| show(m.open(scope).unwrap())).collect()
}

async fn facts(store: &dyn MemoryStore, scope: &Scope, query: &FactQuery) -> Vec<String> {
    let found = store.facts().unwrap().query(scope, query).await.unwrap();
    found.into_iter().map(|f| f.open(scope).unwrap().object.to_string()).collect()
}

#[tokio::test]
async fn answers_are_equal_with_and_without_it_and_to_those_in_process() {
    for seed in 0..6 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (with, plain, local) =
            (connect("redis").await, connect("redis-plain").await, InMemoryMemory::new());
        assert!(with.uses_search().await && !plain.uses_search().await);
        let stores: [&dyn MemoryStore; 3] = [&with, &plain, &local];
        let scope = user(&fresh_namespace(), "A,b", 0);
        let words = ["falcon", "violet", "granite", "copper"];
        for (n, vector) in vectors(&mut rng, 90).into_iter().enumerate() {
            let said = format!("{} {}", words[rng.random_range(0..4)], words[rng.random_range(0..4)]);
            let mut new = turn(n as u128 + 1, "s", rng.random_range(0..9), &said);
            if rng.random_range(0..5) > 0 {
                new = new.with_embedding(vector.clone());
            }
            let fact = NewFact::new("me", "said", format!("{said} {n}"), at(n as i64)).with_embedding(vector);
            for store in stores {
                store.remember(&scope, new.clone()).await.unwrap();
                store.facts().unwrap().assert(&scope, fact.clone()).await.unwrap();
            }
        }
        for asked in vectors(&mut rng, 8) {
            for (text, limit) in [("", 5), ("", 90), ("falcon", 7), ("copper granite", 90)] {
                let query = RecallQuery::new(text, limit).with_embedding(asked.clone());
                let about = FactQuery::all(limit).about(text, Some(asked.clone()));
                let expected = (recall(&local, &scope, &query).await, facts(&local, &scope, &about).await);
                for store in [&with, &plain] {
                    let found = (recall(store, &scope, &query).await, facts(store, &scope, &about).await);
                    assert_eq!(found, expected, "seed {seed}, {text:?}, {limit}");
                }
            }
        }
    }
}

/// What the index lacks, and what it has of others, changes nothing.
#[tokio::test]
async fn an_index_that_is_incomplete_or_gone_changes_no_answer() {
    let prefix = fresh_prefix();
    let config = RedisMemoryConfig::new(url("redis")).with_key_prefix(&prefix);
    let store = RedisMemory::connect(config).await.unwrap();
    let local = InMemoryMemory::new();
    let scope = user(&fresh_namespace(), "ada", 0);
    let mut rng = StdRng::seed_from_u64(7);
    for (n, vector) in vectors(&mut rng, 80).into_iter().enumerate() {
        let new = turn(n as u128 + 1, "s", 1, "falcon").with_embedding(vector);
        store.remember(&scope, new.clone()).await.unwrap();
        local.remember(&scope, new).await.unwrap();
    }
    let query = RecallQuery::new("", 80).with_embedding(vectors(&mut rng, 1).remove(0));
    let expected = recall(&local, &scope, &query).await;
    assert_eq!(recall(&store, &scope, &query).await, expected);
    let mut raw = raw(&url("redis")).await;
    let entries = format!("{prefix}:v:{DIMENSIONS}:*");
    let keys: Vec<String> = redis::cmd("KEYS").arg(&entries).query_async(&mut raw).await.unwrap();
    assert_eq!(keys.len(), 80 - zeros(&local, &scope).await, "each vector that points somewhere is indexed");
    for key in &keys[..30] {
        redis::cmd("DEL").arg(key).exec_async(&mut raw).await.unwrap();
    }
    assert_eq!(recall(&store, &scope, &query).await, expected, "what the index lacks is compared here");
    let foreign = format!("{}{:032x}", &keys[40][..keys[40].len() - 32], 0xbad_u32);
    redis::cmd("COPY").arg(&keys[40]).arg(&foreign).exec_async(&mut raw).await.unwrap();
    assert_eq!(recall(&store, &scope, &query).await, expected, "what only the index knows is not believed");
    redis::cmd("FT.DROPINDEX").arg(format!("{prefix}:v:{DIMENSIONS}")).exec_async(&mut raw).await.unwrap();
    for _ in 0..3 {
        assert_eq!(
            recall(&store, &scope, &query).await,
            expected,
            "without an index, and while it is made again"
        );
    }
    assert!(!base(&prefix, scope.owner()).contains("ada"));
}

async fn zeros(local: &InMemoryMemory, scope: &Scope) -> usize {
    let all = local.recall(scope, &RecallQuery::new("", 1_000)).await.unwrap();
    let zero =
        |m: &EpisodeMatch| m.episode.embedding.as_ref().is_none_or(|e| e.vector.iter().all(|x| *x == 0.0));
    all.into_iter().filter(|m| zero(&m.clone().open(scope).unwrap())).count()
}
