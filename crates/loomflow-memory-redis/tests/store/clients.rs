//! Several clients on one server, versions of the schema, and time to live.

use std::time::Duration;

use loomflow_core::rules::words::{self, Corpus, QueryTerms};
use loomflow_core::{
    Cardinality, ErrorKind, FactQuery, HistoryLimit, MemoryStore, NewFact, PutBlock, RecallQuery, TenantData,
};
use loomflow_memory_redis::{RedisMemory, RedisMemoryConfig};

use crate::common::{at, base, connect, fresh_namespace, fresh_prefix, raw, session, turn, url, user};

fn value(n: u64) -> NewFact {
    let fact = NewFact::new("ada", "lives_in", format!("city {n}"), at(i64::try_from(n).unwrap()));
    fact.with_cardinality(Cardinality::One)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clients_that_supersede_one_another_leave_one_value() {
    let clients = [connect("redis-plain").await, connect("redis-plain").await];
    let namespace = fresh_namespace();
    let work = |client: RedisMemory, from: u64| {
        let scope = user(&namespace, "ada", 0);
        tokio::spawn(async move {
            for n in 0..500 {
                client.facts().unwrap().assert(&scope, value(from + 2 * n)).await.unwrap();
            }
        })
    };
    let both = [work(clients[0].clone(), 0), work(clients[1].clone(), 1)];
    for one in both {
        one.await.unwrap();
    }
    let scope = user(&namespace, "ada", 0);
    let facts = clients[0].facts().unwrap();
    let current = facts.query(&scope, &FactQuery::current(at(1 << 30), 9)).await.unwrap();
    assert_eq!(current.len(), 1);
    assert_eq!(&*current[0].clone().open(&scope).unwrap().object, "city 999", "the newest value stands");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_that_assert_at_once_are_all_kept() {
    let clients = [connect("redis-plain").await, connect("redis-plain").await];
    let namespace = fresh_namespace();
    let tasks = (0..50).map(|n| {
        let (client, scope) = (clients[n % 2].clone(), user(&namespace, "ada", 0));
        let fact = NewFact::new("ada", "likes", format!("thing {n}"), at(1));
        tokio::spawn(async move { client.facts().unwrap().assert(&scope, fact).await.unwrap() })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let scope = user(&namespace, "ada", 0);
    let all = clients[0].facts().unwrap().query(&scope, &FactQuery::all(100)).await.unwrap();
    assert_eq!(all.len(), 50);
}

#[tokio::test]
async fn another_client_sees_everything_at_once_and_so_does_the_next_program() {
    let first = connect("redis-plain").await;
    let second = connect("redis-plain").await;
    let scope = user(&fresh_namespace(), "ada", 0);
    first.remember(&scope, turn(1, "s", 1, "falcon")).await.unwrap();
    first.put_block(&scope, PutBlock::new("note", "text", at(2))).await.unwrap();
    first.facts().unwrap().assert(&scope, value(3)).await.unwrap();
    drop(first);
    for client in [second, connect("redis-plain").await] {
        assert_eq!(client.recall(&scope, &RecallQuery::new("falcon", 9)).await.unwrap().len(), 1);
        assert_eq!(client.blocks(&scope).await.unwrap().len(), 1);
        let profile = client.profile(&scope).await.unwrap().open(&scope).unwrap();
        assert_eq!((profile.episodes, profile.facts, profile.blocks), (1, 1, 1));
        assert!(client.ready().await.ready);
    }
}

#[tokio::test]
async fn a_large_partition_is_read_in_pages_and_whole() {
    let store = connect("redis-plain").await;
    let scope = user(&fresh_namespace(), "ada", 0);
    let write = |n: u128| {
        let said = if n == 77 { "falcon" } else { "plain words" };
        store.remember(&scope, turn(n + 1, "s", i64::try_from(n).unwrap(), said))
    };
    for n in (0..2_500).step_by(50) {
        futures_util::future::try_join_all((n..n + 50).map(write)).await.unwrap();
    }
    let found = store.recall(&scope, &RecallQuery::new("falcon", 9)).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].clone().open(&scope).unwrap().episode.id.as_u128(), 78);
    let bm25 = found[0].clone().open(&scope).unwrap().bm25.unwrap();
    let document = |said| words::terms([said, "noted"].into_iter());
    let (rare, plain) = (document("falcon"), document("plain words"));
    let terms = (2_499 * plain.len() + rare.len()) as u64;
    let corpus = Corpus { documents: 2_500, terms };
    let expected = words::score_all(&QueryTerms::parse("falcon"), corpus, [&*rare].into_iter());
    assert_eq!(bm25, expected[0], "every episode was counted once");
    let history = store.history(&scope, &session("s"), HistoryLimit::messages(4_999)).await.unwrap();
    assert_eq!(history.len(), 4_998);
    let newest = store.recall(&scope, &RecallQuery::new("", 2_100)).await.unwrap();
    assert_eq!(newest.len(), 2_100);
    let profile = store.profile(&scope).await.unwrap().open(&scope).unwrap();
    assert_eq!((profile.episodes, profile.recent_sessions.len()), (2_500, 1));
}

/// They are read in pages as they were at one moment, which writes of blocks and episodes do not move.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_facts_are_read_while_everything_else_is_written() {
    const FACTS: usize = 2_100;
    let store = connect("redis-plain").await;
    let namespace = fresh_namespace();
    let scope = user(&namespace, "ada", 0);
    for n in 0..FACTS {
        let fact = NewFact::new("ada", "likes", format!("thing {n}"), at(1));
        store.facts().unwrap().assert(&scope, fact).await.unwrap();
    }
    let write = |n: usize| {
        let (store, scope) = (store.clone(), user(&namespace, "ada", 0));
        tokio::spawn(async move {
            loop {
                store.put_block(&scope, PutBlock::new(format!("b{n}"), "x", at(1))).await.unwrap();
            }
        })
    };
    let writers: Vec<_> = (0..8).map(write).collect();
    for _ in 0..3 {
        let all = store.facts().unwrap().query(&scope, &FactQuery::all(9_999)).await;
        assert_eq!(all.map(|all| all.len()).map_err(|e| e.kind()), Ok(FACTS));
    }
    for writer in writers {
        writer.abort();
    }
}

#[tokio::test]
async fn a_schema_that_is_missing_or_newer_is_refused_and_left_alone() {
    let prefix = fresh_prefix();
    let config = RedisMemoryConfig::new(url("redis-plain")).with_key_prefix(&prefix);
    let missing = RedisMemory::connect(config.clone().with_migrate(false)).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Config);
    RedisMemory::migrate(&config).await.unwrap();
    RedisMemory::connect(config.clone().with_migrate(false)).await.unwrap();
    let mut raw = raw(&url("redis-plain")).await;
    let key = format!("{prefix}:schema");
    redis::cmd("SET").arg(&key).arg(9).exec_async(&mut raw).await.unwrap();
    for newer in [RedisMemory::connect(config.clone()).await.err(), RedisMemory::migrate(&config).await.err()]
    {
        let newer = newer.unwrap();
        assert!(newer.kind() == ErrorKind::Config && newer.to_string().contains('9'), "{newer}");
    }
    let stored: u32 = redis::cmd("GET").arg(&key).query_async(&mut raw).await.unwrap();
    assert_eq!(stored, 9);
}

#[tokio::test]
async fn everything_of_an_idle_tenant_expires_together_and_the_epoch_does_not() {
    let prefix = fresh_prefix();
    let config = RedisMemoryConfig::new(url("redis")).with_key_prefix(&prefix);
    let store = RedisMemory::connect(config.with_idle_ttl(Duration::from_secs(1_000))).await.unwrap();
    let namespace = fresh_namespace();
    store.forget(&user(&namespace, "ada", 1), &loomflow_core::Erase::everything()).await.unwrap();
    let scope = user(&namespace, "ada", 1);
    let vector = loomflow_core::Embedding::new("m", [1.0, 0.0]);
    store.remember(&scope, turn(1, "s", 1, "falcon").with_embedding(vector)).await.unwrap();
    store.put_block(&scope, PutBlock::new("note", "text", at(2))).await.unwrap();
    store.facts().unwrap().assert(&scope, value(3)).await.unwrap();
    let mut raw = raw(&url("redis")).await;
    let base = base(&prefix, scope.owner());
    let pttl = async |raw: &mut redis::aio::MultiplexedConnection| {
        let keys: Vec<String> =
            redis::cmd("KEYS").arg(format!("{prefix}:{{*")).query_async(raw).await.unwrap();
        let mut left = Vec::new();
        for key in &keys {
            let ms: i64 = redis::cmd("PTTL").arg(key).query_async(raw).await.unwrap();
            left.push((key.strip_prefix(&base).unwrap().to_owned(), ms));
        }
        left
    };
    for (kind, ms) in pttl(&mut raw).await {
        assert_eq!(kind == ":e", ms == -1, "{kind} {ms}");
    }
    // A use of one kind keeps all of it.
    for kind in ["ep", "bl", "m"] {
        redis::cmd("PEXPIRE").arg(format!("{base}:{kind}")).arg(5_000).exec_async(&mut raw).await.unwrap();
    }
    store.blocks(&scope).await.unwrap();
    assert!(pttl(&mut raw).await.iter().all(|(kind, ms)| kind == ":e" || *ms > 900_000));
    for (kind, _) in pttl(&mut raw).await.iter().filter(|(kind, _)| kind != ":e") {
        redis::cmd("PEXPIRE").arg(format!("{base}{kind}")).arg(0).exec_async(&mut raw).await.unwrap();
    }
    assert!(store.recall(&scope, &RecallQuery::new("", 9)).await.unwrap().is_empty());
    let late = store.remember(&user(&namespace, "ada", 0), turn(2, "s", 1, "late")).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Erased);
}
