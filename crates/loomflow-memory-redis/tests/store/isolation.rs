//! Hostile ids, and what is left when one of the two walls is taken down.

use loomflow_conformance::memory::Planted;
use loomflow_core::{
    Cardinality, Embedding, Erase, ErrorKind, FactQuery, HistoryLimit, MemoryStore, NewFact, PutBlock,
    RecallQuery, TenantData,
};
use loomflow_memory_redis::{RedisMemory, RedisMemoryConfig};

use crate::common::{at, connect, fresh_namespace, fresh_prefix, plant, session, turn, url, user};

/// Ids that a store which folds, splits, matches or normalises would mix up.
const HOSTILE: [&str; 16] = [
    "a",
    "A",
    "A,b",
    "a,b",
    "b",
    "{a}",
    "a}",
    "a:b",
    "*",
    "a*",
    "[a-z]",
    "a\\b",
    "a|b",
    "caf\u{e9}",
    "cafe\u{301}",
    "\u{430}",
];

fn vector(seed: usize) -> Embedding {
    let components: Vec<f32> = (0..1_024).map(|i| ((i * 7 + seed * 13) % 29) as f32 - 9.0).collect();
    Embedding::new("m", components)
}

#[tokio::test]
async fn hostile_ids_never_meet_on_either_path() {
    for service in ["redis", "redis-plain"] {
        let store = connect(service).await;
        assert_eq!(store.uses_search().await, service == "redis");
        let namespace = fresh_namespace();
        for (n, id) in HOSTILE.iter().enumerate() {
            let scope = user(&namespace, id, 0);
            // Enough that vectors are compared by the server where it can.
            for turns in 0..40 {
                let new = turn(turns + 1, "s", 1, &format!("falcon {n}"));
                let new = new.with_embedding(vector(n * 100 + turns as usize));
                store.remember(&scope, new).await.unwrap();
            }
            store.put_block(&scope, PutBlock::new("b", *id, at(1))).await.unwrap();
            store.facts().unwrap().assert(&scope, NewFact::new("me", "is", *id, at(1))).await.unwrap();
        }
        for (n, id) in HOSTILE.iter().enumerate() {
            let scope = user(&namespace, id, 0);
            let query = RecallQuery::new("falcon", 1_000).with_embedding(vector(0));
            for found in store.recall(&scope, &query).await.unwrap() {
                let found = found.open(&scope).unwrap();
                assert_eq!(found.episode.input(), format!("falcon {n}"), "{id:?} on {service}");
            }
            let blocks = store.blocks(&scope).await.unwrap();
            assert_eq!((blocks.len(), &*blocks[0].clone().open(&scope).unwrap().content), (1, *id));
            let facts = store.facts().unwrap().query(&scope, &FactQuery::all(99)).await.unwrap();
            assert_eq!((facts.len(), &*facts[0].clone().open(&scope).unwrap().object), (1, *id));
        }
    }
}

#[tokio::test]
async fn without_the_tenant_in_keys_and_filters_the_owner_in_the_row_is_seen() {
    use loomflow_memory_redis::Fault::NoPartitionFilter;
    for service in ["redis", "redis-plain"] {
        let config = RedisMemoryConfig::new(url(service)).with_key_prefix(fresh_prefix());
        let store = RedisMemory::connect(config.with_fault(NoPartitionFilter)).await.unwrap();
        let namespace = fresh_namespace();
        let (ada, bob) = (user(&namespace, "ada", 0), user(&namespace, "bob", 0));
        for n in 0..40 {
            let new = turn(n + 1, "s", 1, "falcon").with_embedding(vector(n as usize));
            store.remember(&ada, new).await.unwrap();
        }
        store.put_block(&ada, PutBlock::new("b", "x", at(1))).await.unwrap();
        store.facts().unwrap().assert(&ada, NewFact::new("me", "is", "x", at(1))).await.unwrap();
        fn must_trip<T: std::fmt::Debug>(bob: &loomflow_core::Scope, found: Vec<loomflow_core::Owned<T>>) {
            assert!(!found.is_empty(), "the wall is down, and the row is found");
            for row in found {
                assert_eq!(row.open(bob).unwrap_err().kind(), ErrorKind::IsolationViolation);
            }
        }
        for query in [
            RecallQuery::new("", 9),
            RecallQuery::new("falcon", 9),
            RecallQuery::new("", 9).with_embedding(vector(0)),
        ] {
            must_trip(&bob, store.recall(&bob, &query).await.unwrap());
        }
        must_trip(&bob, store.history(&bob, &session("s"), HistoryLimit::default()).await.unwrap());
        must_trip(&bob, store.blocks(&bob).await.unwrap());
        must_trip(&bob, store.facts().unwrap().query(&bob, &FactQuery::all(9)).await.unwrap());
        must_trip(&bob, vec![store.profile(&bob).await.unwrap()]);
        let export: Vec<_> =
            futures_util::TryStreamExt::try_collect(store.export(&bob).await.unwrap()).await.unwrap();
        must_trip(&bob, export);
    }
}

fn planted() -> [Planted; 3] {
    [
        Planted::Episode(turn(7, "s", 1, "falcon")),
        Planted::Fact(NewFact::new("me", "is", "x", at(1))),
        Planted::Block(PutBlock::new("b", "x", at(1))),
    ]
}

#[tokio::test]
async fn a_profile_that_counts_a_row_of_another_is_withheld() {
    let store = connect("redis-plain").await;
    for own_rows in [0, 3, 600] {
        for record in planted() {
            let namespace = fresh_namespace();
            let (ada, bob) = (user(&namespace, "ada", 0), user(&namespace, "bob\",\"v\":", 0));
            for n in 0..own_rows {
                store.remember(&ada, turn(100 + n, "t", 2, "own")).await.unwrap();
            }
            store.profile(&ada).await.unwrap().open(&ada).unwrap();
            let shown = format!("{record:?} among {own_rows}");
            plant(&url("redis-plain"), "lf", &ada, bob.owner(), record).await.unwrap();
            let profile = store.profile(&ada).await.unwrap().open(&ada);
            assert_eq!(profile.unwrap_err().kind(), ErrorKind::IsolationViolation, "{shown}");
        }
    }
}

#[tokio::test]
async fn a_row_of_another_is_neither_built_on_nor_changed_nor_erased() {
    let store = connect("redis-plain").await;
    for record in planted() {
        let namespace = fresh_namespace();
        let (ada, bob) = (user(&namespace, "ada", 0), user(&namespace, "bob", 0));
        let shown = format!("{record:?}");
        let asserts = matches!(record, Planted::Fact(_));
        plant(&url("redis-plain"), "lf", &ada, bob.owner(), record).await.unwrap();
        // The same again would reinforce it, and another value would supersede it.
        for object in ["x", "y"].into_iter().filter(|_| asserts) {
            let fact = NewFact::new("me", "is", object, at(1)).with_cardinality(Cardinality::One);
            let refused = store.facts().unwrap().assert(&ada, fact).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::IsolationViolation);
        }
        let later = user(&namespace, "ada", 1);
        let refused = store.forget(&later, &Erase::before(at(9))).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::IsolationViolation, "{shown}");
        assert_eq!(store.epoch(&ada).await.unwrap().get(), 0, "nothing was written");
        // Other rows of the tenant can be erased, and so can everything.
        store.forget(&later, &Erase::before(at(0))).await.unwrap();
        let everything = store.forget(&user(&namespace, "ada", 2), &Erase::everything()).await.unwrap();
        assert_eq!(everything.total(), 1, "{shown}");
    }
}
