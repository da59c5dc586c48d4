//! What a server can do to a memory: be wrong, be newer, be cut off, die; and what a seeded fault shows.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{World, at, connect, drop_collection, new_run, own, session, shared, turn};
use loomflow_conformance::doubles::FaultyProxy;
use loomflow_core::{
    Embedding, Erase, ErrorKind, FactQuery, FactStore as _, HistoryLimit, MemoryStore as _, NewFact, Owner,
    PutBlock, RecallQuery, TenantData as _,
};
use loomflow_memory_qdrant::{QdrantMemory, QdrantMemoryConfig};
use qdrant_client::Payload;
use qdrant_client::qdrant::{Condition, Filter, SetPayloadPointsBuilder};
use serde_json::json;

/// Reads that lost their filter return what is another's, and core's wall withholds it.
#[cfg(feature = "testing")]
#[tokio::test]
async fn a_lost_filter_is_caught_by_the_other_wall() {
    use loomflow_memory_qdrant::Fault;
    let config = own();
    let (memory, world) = (connect(&config).await, World::new());
    let (alice, bob) = (world.user("alice"), world.user("bob"));
    let broken = connect(&config.clone().with_fault(Fault::NoPartitionFilter)).await;
    for (scope, word) in [(&alice, "falcon"), (&bob, "badger")] {
        memory.remember(scope, turn(new_run(), &session("s"), at(1), word, "r")).await.unwrap();
        memory.put_block(scope, PutBlock::new("b", word, at(1))).await.unwrap();
        memory.assert(scope, NewFact::new("me", "said", word, at(1))).await.unwrap();
    }
    let withheld = |kinds: Vec<Option<ErrorKind>>| {
        assert!(kinds.contains(&Some(ErrorKind::IsolationViolation)), "{kinds:?}");
    };
    let recalled = broken.recall(&alice, &RecallQuery::new("", 10)).await.unwrap();
    withheld(recalled.into_iter().map(|m| m.open(&alice).err().map(|e| e.kind())).collect());
    let said = broken.history(&alice, &session("s"), HistoryLimit::messages(9)).await.unwrap();
    withheld(said.into_iter().map(|m| m.open(&alice).err().map(|e| e.kind())).collect());
    let blocks = broken.blocks(&alice).await.unwrap();
    withheld(blocks.into_iter().map(|b| b.open(&alice).err().map(|e| e.kind())).collect());
    let facts = broken.query(&alice, &FactQuery::all(9)).await.unwrap();
    withheld(facts.into_iter().map(|f| f.open(&alice).err().map(|e| e.kind())).collect());
    let profile = broken.profile(&alice).await.unwrap();
    withheld(vec![profile.open(&alice).err().map(|e| e.kind())]);
    drop_collection(&config.collection).await;
}

/// A record that names its owner in another's partition was not written by this program.
#[cfg(feature = "testing")]
#[tokio::test]
async fn a_record_in_the_wrong_partition_is_refused() {
    use loomflow_memory_qdrant::Fault;
    let config = own();
    let (memory, world) = (connect(&config).await, World::new());
    let (alice, bob) = (world.user("alice"), world.user("bob"));
    memory.put_block(&alice, PutBlock::new("b", "c", at(1))).await.unwrap();
    let block = json!({"record": "{}"});
    let payload = common::payload(bob.owner(), alice.owner(), "block", block);
    common::put(&config.collection, payload).await;
    assert_eq!(memory.blocks(&alice).await.unwrap().len(), 1);
    let broken = connect(&config.clone().with_fault(Fault::NoPartitionFilter)).await;
    assert_eq!(broken.blocks(&alice).await.unwrap_err().kind(), ErrorKind::IsolationViolation);
    drop_collection(&config.collection).await;
}

/// A known run is known whatever vector comes with it, and an erased tenant's write is erased before it is invalid.
#[tokio::test]
async fn a_known_run_comes_before_its_vector() {
    let (memory, world) = (connect(&shared()).await, World::new());
    let (alice, run) = (world.user("alice"), new_run());
    let new = || turn(run, &session("s"), at(1), "falcon", "r");
    let id = memory.remember(&alice, new()).await.unwrap();
    let empty = Embedding::new("m", Vec::<f32>::new());
    assert_eq!(memory.remember(&alice, new().with_embedding(empty.clone())).await.unwrap(), id);
    let other = turn(new_run(), &session("s"), at(1), "falcon", "r").with_embedding(empty.clone());
    assert_eq!(memory.remember(&alice, other.clone()).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    let line = memory.forget(&world.user_at("alice", 1), &Erase::everything()).await.unwrap();
    assert!(line.retained.len() == 1 && line.retained[0].contains("user id"), "{line:?}");
    assert_eq!(memory.remember(&alice, other).await.unwrap_err().kind(), ErrorKind::Erased);
    let fact = NewFact::new("me", "said", "falcon", at(1)).with_embedding(empty);
    assert_eq!(memory.assert(&alice, fact).await.unwrap_err().kind(), ErrorKind::Erased);
}

/// Names another owner in the records of `owner`'s partition, and leaves the head.
async fn disown(collection: &str, owner: &Owner, kind: &str) {
    let partition = Condition::matches("partition", owner.partition_hex());
    let filter = Filter::must([partition, Condition::matches("kind", kind.to_owned())]);
    let payload = Payload::try_from(json!({"user_id": "mallory"})).unwrap();
    let set = SetPayloadPointsBuilder::new(collection, payload);
    common::client().set_payload(set.points_selector(filter).wait(true)).await.unwrap();
}

/// What is filed under a user and names another is neither reinforced, superseded, replaced nor erased as the user's.
#[tokio::test]
async fn a_write_or_an_erasure_does_not_take_over_a_foreign_record() {
    let config = own();
    let memory = connect(&config).await;
    for kind in ["episode", "track", "block"] {
        let world = World::new();
        let (alice, run) = (world.user("alice"), new_run());
        let episode = || turn(run, &session("s"), at(1), "falcon", "r");
        let fact = || NewFact::new("me", "said", "falcon", at(1));
        let block = || PutBlock::new("b", "falcon", at(1));
        memory.remember(&alice, episode()).await.unwrap();
        memory.assert(&alice, fact()).await.unwrap();
        memory.put_block(&alice, block()).await.unwrap();
        disown(&config.collection, alice.owner(), kind).await;
        let written = match kind {
            "episode" => memory.remember(&alice, episode()).await.map(drop),
            "track" => memory.assert(&alice, fact()).await.map(drop),
            _ => memory.put_block(&alice, block()).await,
        };
        assert_eq!(written.unwrap_err().kind(), ErrorKind::IsolationViolation, "{kind}");
        let erased = memory.forget(&world.user_at("alice", 1), &Erase::everything()).await;
        assert_eq!(erased.unwrap_err().kind(), ErrorKind::IsolationViolation, "{kind}");
        assert_eq!(memory.epoch(&alice).await.unwrap().get(), 0, "nothing was decided");
    }
    drop_collection(&config.collection).await;
}

/// A collection of a newer program is refused untouched, and one that is missing is made only on request.
#[tokio::test]
async fn versions_are_checked() {
    let config = own();
    let checked = QdrantMemory::connect(config.clone().with_migrate(false)).await.unwrap_err();
    assert_eq!(checked.kind(), ErrorKind::Config);
    assert!(
        checked.to_string().contains("version 0") && checked.to_string().contains("version 1"),
        "{checked}"
    );
    QdrantMemory::migrate(&config).await.unwrap();
    QdrantMemory::migrate(&config).await.unwrap();
    connect(&config.clone().with_migrate(false)).await;
    let client = common::client();
    let newer = Payload::try_from(json!({"version": 2})).unwrap();
    let all = Filter::must([Condition::matches("kind", "schema".to_owned())]);
    let set = SetPayloadPointsBuilder::new(&config.collection, newer).points_selector(all).wait(true);
    client.set_payload(set).await.unwrap();
    for config in [config.clone(), config.clone().with_migrate(false)] {
        let error = QdrantMemory::connect(config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("version 2") && error.to_string().contains("up to 1"), "{error}");
    }
    drop_collection(&config.collection).await;
}

/// Many that migrate at the same time make one collection.
#[tokio::test]
async fn many_may_migrate_at_once() {
    let config = own();
    let all = (0..6).map(|_| QdrantMemory::migrate(&config));
    for result in futures_util::future::join_all(all).await {
        result.unwrap();
    }
    drop_collection(&config.collection).await;
}

/// An address where nobody is, or that is none, is an error that names no secret.
#[tokio::test]
async fn errors_name_no_secret() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, kind) in [
        (format!("http://user:hunter2@{nobody}"), ErrorKind::Unreachable),
        (format!("http://user:hunter2@{nobody}/ \\"), ErrorKind::Config),
        (format!("ftp://user:hunter2@{nobody}"), ErrorKind::Config),
    ] {
        let config =
            QdrantMemoryConfig::new(url).with_api_key("hunter3").with_connect_timeout(Duration::from_secs(2));
        let error = QdrantMemory::connect(config).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let said = format!("{error} {error:?}");
        assert!(!said.contains("hunter"), "{said}");
    }
    let memory = connect(&shared().with_api_key("hunter4")).await;
    assert!(!format!("{memory:?}").contains("hunter4"));
}

/// A connection that is cut is made again; a server that is away is noticed, and used again when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_is_made_again() {
    let proxy = FaultyProxy::start(&common::url()).await.unwrap();
    let mut config = shared().with_max_connections(1);
    config.url = std::sync::Arc::new(loomflow_core::Secret::new(proxy.url_like(&common::url())));
    let (memory, world) = (connect(&config).await, World::new());
    let alice = world.user("alice");
    for n in 0..5 {
        proxy.cut().await;
        memory.remember(&alice, turn(new_run(), &session("s"), at(n), "falcon", "r")).await.unwrap();
        proxy.cut().await;
        memory.assert(&alice, NewFact::new("me", "said", &*format!("w{n}"), at(n))).await.unwrap();
    }
    proxy.refuse(true);
    proxy.cut().await;
    assert!(!memory.ready().await.ready);
    let error = memory.blocks(&alice).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    proxy.refuse(false);
    let profile = loop {
        match memory.profile(&alice).await {
            Ok(profile) => break profile.open(&alice).unwrap(),
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((profile.episodes, profile.facts), (5, 5));
    assert!(memory.ready().await.ready);
}

/// A server that says nothing is given up after its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_given_up() {
    let proxy = FaultyProxy::start(&common::url()).await.unwrap();
    let mut config = shared().with_operation_timeout(Duration::from_millis(300));
    config.url = std::sync::Arc::new(loomflow_core::Secret::new(proxy.url_like(&common::url())));
    let memory = connect(&config).await;
    proxy.stall(true);
    let error = memory.blocks(&World::new().user("alice")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

struct Server(Child);

impl Server {
    fn start(dir: &std::path::Path, port: u16) -> Self {
        let program = loomflow_tests::services::program("qdrant", "loomflow-qdrant-service");
        let child = Command::new(program)
            .arg("--dir")
            .arg(dir)
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn reconnect(config: &QdrantMemoryConfig) -> QdrantMemory {
    for _ in 0..600 {
        if let Ok(memory) = QdrantMemory::connect(config.clone()).await {
            return memory;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the server does not come up");
}

/// What was acknowledged is there when the server was killed and started again, and an erasure that the kill cut short is
/// whole or absent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_forgets_nothing_that_was_acknowledged() {
    let dir = std::env::temp_dir().join(common::name());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = QdrantMemoryConfig::new(format!("http://127.0.0.1:{port}"));
    let world = World::new();
    let mut server = Server::start(&dir, port);
    let mut memory = reconnect(&config).await;
    for round in 0..6_u64 {
        let alice = world.user_at("alice", memory.epoch(&world.user("alice")).await.unwrap().get());
        for n in 0..5 {
            let word = format!("w{n}");
            memory.remember(&alice, turn(new_run(), &session("s"), at(n), &word, "r")).await.unwrap();
            memory.remember(&alice, turn(new_run(), &session("kept"), at(n), &word, "r")).await.unwrap();
        }
        let fresh = world.user_at("alice", alice.epoch().get() + 1);
        let erasing = {
            let memory = memory.clone();
            tokio::spawn(async move { memory.forget(&fresh, &Erase::session(session("s"))).await })
        };
        tokio::time::sleep(Duration::from_millis(round * 4)).await;
        drop(server);
        let acknowledged = erasing.await.unwrap().is_ok();
        server = Server::start(&dir, port);
        memory = reconnect(&config).await;
        let after = memory.epoch(&alice).await.unwrap();
        let erased = after > alice.epoch();
        assert!(erased || !acknowledged);
        let now = world.user_at("alice", after.get());
        let kept = memory.history(&now, &session("kept"), HistoryLimit::messages(1_000)).await.unwrap().len();
        let gone = memory.history(&now, &session("s"), HistoryLimit::messages(1_000)).await.unwrap().len();
        assert_eq!(kept as u64, (round + 1) * 10, "round {round}");
        assert_eq!(gone == 0, erased, "round {round}: {gone} messages");
    }
    drop(server);
    std::fs::remove_dir_all(dir).unwrap();
}
