//! What the tests of this crate share: a folder of their own, rows by raw SQL, tenants and turns.

#![allow(dead_code, reason = "each test uses some of it")]

use std::path::PathBuf;

use loomflow_core::danger::assume_scope;
use loomflow_core::rules::words;
use loomflow_core::{
    Epoch, Fact, FactId, Identity, Message, Namespace, NewEpisode, NewFact, Owner, PutBlock, RunId, Scope,
    SessionId, Timestamp, UserId,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, SqliteConnection};

/// A folder that is gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("loomflow-sqlite-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&path).expect("a folder for the test's files");
        Self(path)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.0.join("memory.db")
    }

    /// Every byte of every file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let files = std::fs::read_dir(&self.0).expect("the folder is there");
        files.flat_map(|file| std::fs::read(file.expect("a file").path()).unwrap_or_default()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

pub(crate) fn owner(name: &str) -> Owner {
    Owner::new(Namespace::default(), Identity::User(UserId::new(name).unwrap()))
}

pub(crate) fn scope(name: &str, epoch: u64) -> Scope {
    assume_scope(Namespace::default(), Identity::User(UserId::new(name).unwrap()), Epoch::new(epoch))
}

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros((1_614_600_000 + seconds) * 1_000_000)
}

pub(crate) fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

pub(crate) fn turn(when: i64, said: &str) -> NewEpisode {
    let messages = [Message::user(said), Message::assistant("noted")];
    NewEpisode::new(RunId::from_u128(rand::random()), session("s"), at(when), messages)
}

/// A connection that knows nothing of the store.
pub(crate) async fn raw(file: &std::path::Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(file).connect().await.expect("the file can be opened")
}

fn parts(owner: &Owner) -> (String, Option<String>) {
    (owner.namespace().to_string(), owner.user_id().map(ToString::to_string))
}

pub(crate) async fn plant_episode(
    conn: &mut SqliteConnection,
    filed_under: &Owner,
    owner: &Owner,
    new: &NewEpisode,
) {
    let (namespace, user) = parts(owner);
    let text = sqlx::query("INSERT INTO memory_episode_texts (partition, namespace, user_id, session, terms, messages) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(filed_under.partition().to_vec())
        .bind(namespace)
        .bind(user)
        .bind(new.session.as_str().to_owned())
        .bind(words::to_bytes(&words::of_episode(&new.messages)))
        .bind(serde_json::to_string(&new.messages).unwrap());
    let content = text.execute(&mut *conn).await.unwrap().last_insert_rowid();
    let key = sqlx::query("INSERT INTO memory_episodes VALUES (?, ?, ?, ?, ?, ?)")
        .bind(filed_under.partition().to_vec())
        .bind(new.at.as_micros())
        .bind(new.run.as_u128().to_be_bytes().to_vec())
        .bind(content)
        .bind(words::pair("session", new.session.as_str()).cast_signed())
        .bind(i64::try_from(new.messages.len()).unwrap());
    key.execute(conn).await.unwrap();
}

pub(crate) async fn plant_block(
    conn: &mut SqliteConnection,
    filed_under: &Owner,
    owner: &Owner,
    new: &PutBlock,
) {
    let (namespace, user) = parts(owner);
    let text = sqlx::query(
        "INSERT INTO memory_block_texts (partition, namespace, user_id, name, text) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(filed_under.partition().to_vec())
    .bind(namespace)
    .bind(user)
    .bind(new.name.to_string())
    .bind(new.content.as_ref().unwrap().to_string());
    let content = text.execute(&mut *conn).await.unwrap().last_insert_rowid();
    let key = sqlx::query("INSERT INTO memory_blocks VALUES (?, ?, 0, ?)")
        .bind(filed_under.partition().to_vec())
        .bind(content)
        .bind(new.at.as_micros());
    key.execute(conn).await.unwrap();
}

pub(crate) async fn plant_fact(
    conn: &mut SqliteConnection,
    filed_under: &Owner,
    owner: &Owner,
    new: &NewFact,
) {
    let (namespace, user) = parts(owner);
    let fact = Fact::from_new(FactId::fresh(), new);
    let text = sqlx::query("INSERT INTO memory_fact_texts (partition, namespace, user_id, subject, predicate, object, terms) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind(filed_under.partition().to_vec())
        .bind(namespace)
        .bind(user)
        .bind(new.subject.to_string())
        .bind(new.predicate.to_string())
        .bind(new.object.to_string())
        .bind(words::to_bytes(&words::of_fact(&fact)));
    let content = text.execute(&mut *conn).await.unwrap().last_insert_rowid();
    let key = sqlx::query("INSERT INTO memory_facts VALUES (?, ?, ?, ?, ?, 100, ?, NULL, NULL, x'')")
        .bind(filed_under.partition().to_vec())
        .bind(fact.known_from.as_micros())
        .bind(fact.id.as_u128().to_be_bytes().to_vec())
        .bind(content)
        .bind(words::pair(&fact.subject, &fact.predicate).cast_signed())
        .bind(fact.valid_from.as_micros());
    key.execute(conn).await.unwrap();
}
