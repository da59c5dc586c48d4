//! Memories to test with, each in a collection of its own unless it is named.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "shared by tests that each use a part")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use loomflow_conformance::memory::Planted;
use loomflow_core::rules::words;
use loomflow_core::{
    Episode, Epoch, Fact, FactId, Identity, MemoryBlock, Message, Namespace, NewEpisode, Owner, RunId, Scope,
    SessionId, Timestamp, UserId, danger,
};
use loomflow_memory_qdrant::{QdrantMemory, QdrantMemoryConfig};
use qdrant_client::qdrant::{PointStruct, UpsertPointsBuilder};
use qdrant_client::{Payload, Qdrant};
use serde_json::{Value, json};

pub fn url() -> String {
    loomflow_tests::services::url("qdrant")
}

/// A name that nobody else uses.
pub fn name() -> String {
    format!("test_{:032x}", rand::random::<u128>())
}

pub fn uuid() -> String {
    let hex = format!("{:032x}", rand::random::<u128>());
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The collection that cases share which make their own tenants.
pub fn shared() -> QdrantMemoryConfig {
    QdrantMemoryConfig::new(url()).with_collection("test_conformance")
}

pub fn own() -> QdrantMemoryConfig {
    QdrantMemoryConfig::new(url()).with_collection(name())
}

pub async fn connect(config: &QdrantMemoryConfig) -> QdrantMemory {
    QdrantMemory::connect(config.clone()).await.unwrap()
}

pub fn client() -> Qdrant {
    let mut config = Qdrant::from_url(&url());
    config.check_compatibility = false;
    config.build().unwrap()
}

pub async fn drop_collection(name: &str) {
    client().delete_collection(name).await.unwrap();
}

/// A namespace of its own.
pub struct World(Namespace);

impl World {
    pub fn new() -> Self {
        Self(Namespace::new(name()).unwrap())
    }

    pub fn user(&self, user: &str) -> Scope {
        self.user_at(user, 0)
    }

    pub fn user_at(&self, user: &str, epoch: u64) -> Scope {
        let identity = Identity::User(UserId::new(user).unwrap());
        danger::assume_scope(self.0.clone(), identity, Epoch::new(epoch))
    }
}

pub fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

pub fn new_run() -> RunId {
    RunId::from_u128(rand::random())
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros((1_614_600_000 + seconds) * 1_000_000)
}

pub fn turn(run: RunId, session: &SessionId, at: Timestamp, said: &str, reply: &str) -> NewEpisode {
    NewEpisode::new(run, session.clone(), at, vec![Message::user(said), Message::assistant(reply)])
}

/// The payload of a point of `owner` that is filed under the partition of `filed_under`, written by hand.
pub fn payload(filed_under: &Owner, owner: &Owner, kind: &str, live: Value) -> Value {
    let mut payload = json!({
        "partition": filed_under.partition_hex(), "kind": kind, "namespace": owner.namespace().as_str(),
        "token": "planted", "writes": ["planted"], "live": live,
    });
    if let Some(user) = owner.user_id() {
        payload["user_id"] = json!(UserId::as_str(user));
    }
    payload
}

pub async fn put(collection: &str, payload: Value) {
    let payload = Payload::try_from(payload).unwrap();
    let none = std::collections::HashMap::<String, qdrant_client::qdrant::Vector>::new();
    let point = PointStruct::new(uuid(), none, payload);
    client().upsert_points(UpsertPointsBuilder::new(collection, vec![point]).wait(true)).await.unwrap();
}

/// Writes a foreign row by raw means.
pub async fn plant(collection: &str, filed_under: &Owner, owner: &Owner, record: Planted) {
    let (kind, live) = match record {
        Planted::Episode(new) => {
            let episode = Episode::from(new);
            let terms = words::to_bytes(&words::of_episode(&episode.messages));
            let live = json!({
                "id": episode.id.to_string(), "at": episode.at.as_micros(), "session": episode.session.as_str(),
                "messages": episode.messages.len(), "words": BASE64.encode(terms),
                "record": serde_json::to_string(&episode).unwrap(),
            });
            ("episode", live)
        }
        Planted::Block(put) => {
            let block = MemoryBlock::new(put.name, put.content.unwrap(), 0, put.at);
            ("block", json!({"record": serde_json::to_string(&block).unwrap()}))
        }
        Planted::Fact(new) => {
            let rows = json!([{"fact": Fact::from_new(FactId::fresh(), &new)}]);
            ("track", json!({"at": new.recorded_at.as_micros(), "record": rows.to_string()}))
        }
        other => panic!("a record that this test does not know: {other:?}"),
    };
    put(collection, payload(filed_under, owner, kind, live)).await;
}
