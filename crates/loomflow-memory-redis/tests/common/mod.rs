//! What the tests share: servers, tenants, and rows planted by raw commands.
#![allow(dead_code, reason = "each test file uses some of it")]

use loomflow_conformance::memory::Planted;
use loomflow_core::danger::assume_scope;
use loomflow_core::rules::words;
use loomflow_core::{
    Digest, Episode, Epoch, Error, ErrorKind, Fact, FactId, Identity, Message, Namespace, NewEpisode, Owner,
    Result, RunId, Scope, SessionId, Timestamp, UserId,
};
use loomflow_memory_redis::{RedisMemory, RedisMemoryConfig};
use serde_json::json;

/// A prefix of its own, so that tests which look at the server see nobody else's keys.
pub fn fresh_prefix() -> String {
    format!("t{:016x}", rand::random::<u64>())
}

pub fn url(service: &str) -> String {
    loomflow_tests::services::url(service)
}

pub async fn connect(service: &str) -> RedisMemory {
    RedisMemory::connect(RedisMemoryConfig::new(url(service))).await.expect("the server takes it")
}

pub async fn raw(url: &str) -> redis::aio::MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// A namespace that nobody else uses.
pub fn fresh_namespace() -> Namespace {
    Namespace::new(format!("n{:016x}", rand::random::<u64>())).unwrap()
}

pub fn user(namespace: &Namespace, id: &str, epoch: u64) -> Scope {
    let identity = Identity::User(UserId::new(id).unwrap());
    assume_scope(namespace.clone(), identity, Epoch::new(epoch))
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

pub fn session(id: &str) -> SessionId {
    SessionId::new(id).unwrap()
}

pub fn turn(run: u128, session_id: &str, seconds: i64, said: &str) -> NewEpisode {
    let messages = vec![Message::user(said), Message::assistant("noted")];
    NewEpisode::new(RunId::from_u128(run), session(session_id), at(seconds), messages)
}

pub fn base(prefix: &str, owner: &Owner) -> String {
    format!("{prefix}:{{{}}}", owner.partition_hex())
}

/// Writes a row of `foreign` under the keys of `scope`, with commands of our own: the stored form is written down here a
/// second time.
pub async fn plant(url: &str, prefix: &str, scope: &Scope, foreign: &Owner, record: Planted) -> Result<()> {
    let base = base(prefix, scope.owner());
    let key = |kind: &str| format!("{base}:{kind}");
    let mut row = json!({"n": foreign.namespace().as_str()});
    if let Some(user) = foreign.user_id() {
        row["u"] = json!(user.as_str());
    }
    let mut pipe = redis::pipe();
    match record {
        Planted::Episode(new) => {
            let episode = Episode::from(new);
            let id = episode.id.as_u128().to_be_bytes();
            row["v"] = json!({"session": episode.session, "at": episode.at, "messages": episode.messages});
            let session = &Digest::of(&[episode.session.as_str().as_bytes()]).as_bytes()[..16].to_vec();
            let micros = episode.at.as_micros();
            let mut entry = micros.to_be_bytes().to_vec();
            entry.extend(u32::try_from(episode.messages.len()).unwrap().to_be_bytes());
            entry.push(0);
            entry.extend(session);
            entry.extend(words::to_bytes(&words::of_episode(&episode.messages)));
            let order = [&((micros as u64) ^ (1 << 63)).to_be_bytes()[..], &id].concat();
            pipe.hset(key("ep"), &id, row.to_string()).hset(key("ix"), &id, entry);
            pipe.zadd(key("or"), &order, 0).zadd(key("os"), [&session[..], &order].concat(), 0);
        }
        Planted::Block(block) => {
            row["v"] = json!({"content": block.content.unwrap(), "at": block.at});
            pipe.hset(key("bl"), &*block.name, format!("0000000000{row}"));
        }
        Planted::Fact(new) => {
            let fact = Fact::from_new(FactId::fresh(), &new);
            let id = fact.id.as_u128().to_be_bytes();
            row["v"] = json!(fact);
            let pair = words::pair(&fact.subject, &fact.predicate).to_be_bytes();
            let member = [&pair[..], &words::pair("", &fact.object).to_be_bytes(), &id].concat();
            pipe.hset(key("fa"), &id, row.to_string()).zadd(key("fb"), member, 0);
        }
        other => return Err(Error::new(ErrorKind::Unsupported, format!("the hook cannot plant {other:?}"))),
    }
    pipe.exec_async(&mut raw(url).await).await.expect("the server takes it");
    Ok(())
}
