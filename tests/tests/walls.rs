//! Each wall alone. Reads of every store lose their partition filter; nothing of another tenant comes out of the agent all
//! the same: from PostgreSQL because row-level security returns none, from the others because core looks at whose each
//! record is, withholds it, writes an audit entry and counts.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;

use futures_util::StreamExt as _;
use loomflow_core::{
    Action, Agent, Clock as _, Embedding, ErrorKind, FactQuery, HistoryLimit, MemoryStore, Message,
    Namespace, NewEpisode, NewFact, PutBlock, RecallQuery, Result, RunId, SessionId, SystemClock, UserAgent,
};
use loomflow_local::InMemoryAuditLog;
use loomflow_memory_postgres as postgres;
use loomflow_memory_qdrant as qdrant;
use loomflow_memory_redis as redis;
use loomflow_memory_sqlite as sqlite;
use loomflow_tests::double::ModelDouble;
use loomflow_tests::fixture::{Counts, actions, user};
use loomflow_tests::services::url;

/// Who stops a foreign row when its store has lost its filter.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wall {
    /// The store itself: it returns the tenant's own, and nothing else.
    Store,
    /// Core: what comes is an error.
    Core,
}

struct Case {
    name: &'static str,
    wall: Wall,
    /// The partition is part of where a row lies: a fault has to write it, too, or there is nothing to be found.
    by_place: bool,
    /// How many kinds of read hand out foreign rows.
    least: usize,
    sound: Arc<dyn MemoryStore>,
    broken: Arc<dyn MemoryStore>,
}

macro_rules! case {
    ($name:literal, $wall:ident, $least:literal, $krate:ident, $memory:ident, $config:expr) => {{
        let config = $config;
        Case {
            name: $name,
            wall: Wall::$wall,
            by_place: $name == "redis",
            least: $least,
            sound: Arc::new($krate::$memory::connect(config.clone()).await.unwrap()),
            broken: Arc::new(
                $krate::$memory::connect(config.with_fault($krate::Fault::NoPartitionFilter)).await.unwrap(),
            ),
        }
    }};
}

fn agent(memory: Arc<dyn MemoryStore>, namespace: &str, counts: &Arc<Counts>) -> Agent {
    Agent::builder("x")
        .model(ModelDouble::saying("ok"))
        .memory(memory)
        .namespace(Namespace::new(namespace).unwrap())
        .audit_log(InMemoryAuditLog::new())
        .telemetry(counts.clone())
        .build()
        .unwrap()
}

fn vector() -> Embedding {
    Embedding::new("m", [1.0, 0.5])
}

async fn fill(tenant: &UserAgent, canary: &str) {
    let (memory, now) = (tenant.memory().await.unwrap(), SystemClock.now());
    let messages = vec![Message::user(format!("falcon {canary}")), Message::assistant("ok")];
    let turn = NewEpisode::new(RunId::from_u128(rand::random()), SessionId::new("s").unwrap(), now, messages);
    memory.remember(turn.with_embedding(vector())).await.unwrap();
    memory.put_block(PutBlock::new("note", canary, now)).await.unwrap();
    memory.assert_fact(NewFact::new("me", "likes", format!("falcon {canary}"), now)).await.unwrap();
}

/// What each read gives, as text to be searched.
async fn reads(tenant: &UserAgent) -> Vec<(&'static str, Result<String>)> {
    let memory = tenant.memory().await.unwrap();
    let shown = |read: Result<Vec<loomflow_core::EpisodeMatch>>| read.map(|found| format!("{found:?}"));
    let about = RecallQuery::new("", 100).with_embedding(vector());
    let export: Result<Vec<_>> = match tenant.export().await {
        Ok(items) => items.collect::<Vec<_>>().await.into_iter().collect(),
        Err(e) => Err(e),
    };
    vec![
        ("recall of the newest", shown(memory.recall(&RecallQuery::new("", 100)).await)),
        ("recall by words", shown(memory.recall(&RecallQuery::new("falcon", 100)).await)),
        ("recall by vectors", shown(memory.recall(&about).await)),
        (
            "history",
            memory
                .history(&SessionId::new("s").unwrap(), HistoryLimit::messages(1_000))
                .await
                .map(|found| format!("{found:?}")),
        ),
        ("blocks", memory.blocks().await.map(|found| format!("{found:?}"))),
        ("facts", memory.facts(&FactQuery::all(100)).await.map(|found| format!("{found:?}"))),
        (
            "facts by words",
            memory.facts(&FactQuery::all(100).about("falcon", None)).await.map(|found| format!("{found:?}")),
        ),
        ("export", export.map(|items| format!("{items:?}"))),
    ]
}

async fn holds(case: Case) {
    let namespace = format!("walls-{:016x}", rand::random::<u64>());
    let canary = |name: &str| format!("canary{name}{:032x}", rand::random::<u128>());
    let (own, foreign) = (canary("own"), canary("foreign"));
    let counts = Arc::new(Counts::default());
    let sound = agent(case.sound, &namespace, &counts);
    fill(&sound.for_user(user("alice")), &own).await;
    fill(&sound.for_user(user("bob")), &foreign).await;
    for (what, found) in reads(&sound.for_user(user("alice"))).await {
        let found = found.unwrap_or_else(|e| panic!("{}: {what}: {e:?}", case.name));
        assert!(found.contains(&own) && !found.contains(&foreign), "{}: {what}: {found}", case.name);
    }
    let broken = agent(case.broken, &namespace, &counts);
    let alice = broken.for_user(user("alice"));
    if case.by_place {
        fill(&broken.for_user(user("bob")), &foreign).await;
    }
    let mut violations = 0;
    for (what, found) in reads(&alice).await {
        match found {
            Ok(found) => {
                assert!(!found.contains(&foreign), "{}: {what} leaked", case.name);
                if case.wall == Wall::Store {
                    assert!(found.contains(&own), "{}: {what} has lost what is one's own", case.name);
                }
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::IsolationViolation, "{}: {what}: {e:?}", case.name);
                assert!(!format!("{e} {e:?}").contains(&foreign), "{}: {what}", case.name);
                violations += 1;
            }
        }
    }
    let noted = actions(&alice).await.into_iter().filter(|a| *a == Action::IsolationViolation).count();
    // An export says so for each record.
    assert!(noted >= violations, "{}: {violations} violations, {noted} in the audit log", case.name);
    assert_eq!(counts.total("loom.isolation.violations"), noted as u64, "{}: and counted", case.name);
    match case.wall {
        Wall::Store => assert_eq!(violations, 0, "{}: not one foreign row reached core", case.name),
        Wall::Core => assert!(violations >= case.least, "{}: only {violations} lost their filter", case.name),
    }
    if case.by_place {
        broken.for_user(user("bob")).forget(loomflow_core::Erase::everything()).await.unwrap();
    }
    for name in ["alice", "bob"] {
        sound.for_user(user(name)).forget(loomflow_core::Erase::everything()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_returns_no_foreign_row() {
    let config = postgres::PostgresMemoryConfig::new(url("postgres"));
    holds(case!("postgres", Store, 0, postgres, PostgresMemory, config)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn core_stops_what_comes_from_sqlite() {
    let dir = std::env::temp_dir().join(format!("loomflow-walls-{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(&dir).unwrap();
    let config = sqlite::SqliteMemoryConfig::new(dir.join("memory.db"));
    holds(case!("sqlite", Core, 8, sqlite, SqliteMemory, config)).await;
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn core_stops_what_comes_from_redis() {
    for service in ["redis", "redis-plain"] {
        let config = redis::RedisMemoryConfig::new(url(service));
        holds(case!("redis", Core, 6, redis, RedisMemory, config)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn core_stops_what_comes_from_qdrant() {
    let config = qdrant::QdrantMemoryConfig::new(url("qdrant"));
    holds(case!("qdrant", Core, 8, qdrant, QdrantMemory, config)).await;
}
