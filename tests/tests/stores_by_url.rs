//! Every store is what its URL says, through one agent and no other line of code; and what goes wrong on the way says what to
//! do and nothing of the URL.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a store that cannot be opened is a failed test")]

use std::error::Error as _;
use std::path::PathBuf;

use loomflow::prelude::*;
use loomflow_core::{HistoryLimit, RecallQuery};
use loomflow_tests::services;

/// A folder for one file, cleared away afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("loomflow-url-{:x}", rand::random::<u64>()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn url(&self) -> String {
        format!("sqlite:{}/bot.db", self.0.display())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Everything a reader of this error may come to see.
fn everything(error: &Error) -> String {
    let mut all = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        all.push_str(&format!(" {cause} {cause:?}"));
        source = cause.source();
    }
    all
}

/// Two tenants of one agent: what one says comes back to it, and to nobody else.
async fn is_a_memory(url: &str, name: &str) {
    let memory = resolve::memory(url).await.unwrap();
    assert_eq!(memory.store_name(), name);
    let namespace = Namespace::new(format!("url-{:x}", rand::random::<u64>())).unwrap();
    let agent =
        Agent::builder("").model(EchoModel::new()).memory(memory).namespace(namespace).build().unwrap();
    let (alice, bob) =
        (agent.for_user(UserId::new("alice").unwrap()), agent.for_user(UserId::new("Alice").unwrap()));
    alice.run("My tea is green").session("s").await.unwrap();
    let session = SessionId::new("s").unwrap();
    for (who, expected) in [(&alice, 1), (&bob, 0)] {
        let memory = who.memory().await.unwrap();
        assert_eq!(memory.recall(&RecallQuery::new("tea", 5)).await.unwrap().len(), expected, "{name}");
        let said = memory.history(&session, HistoryLimit::messages(5)).await.unwrap();
        assert_eq!(said.len(), 2 * expected, "{name}");
    }
    assert!(alice.forget(Erase::everything()).await.unwrap().total() > 0);
    agent.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_process_and_in_a_file() {
    is_a_memory("inmemory", "memory:inmemory").await;
    let folder = Folder::new();
    is_a_memory(&folder.url(), "memory:sqlite").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_there_for_the_next_process() {
    let folder = Folder::new();
    let alice = || UserId::new("alice").unwrap();
    for turn in 0..2_u32 {
        let memory = resolve::memory(folder.url()).await.unwrap();
        let agent = Agent::builder("").model(EchoModel::new()).memory(memory).build().unwrap();
        let before = agent.for_user(alice()).memory().await.unwrap();
        let session = SessionId::new("s").unwrap();
        let said = before.history(&session, HistoryLimit::messages(5)).await.unwrap();
        assert_eq!(said.len(), 2 * turn as usize);
        agent.for_user(alice()).run("hello").session("s").await.unwrap();
        agent.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres() {
    let url = services::url("postgres");
    is_a_memory(&url, "memory:postgres").await;
    is_a_memory(&url.replacen("postgres://", "PostgreSQL://", 1), "memory:postgres").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_redis_with_and_without_search() {
    for service in ["redis", "redis-plain"] {
        is_a_memory(&services::url(service), "memory:redis").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_qdrant() {
    is_a_memory(&format!("qdrant:{}", services::url("qdrant")), "memory:qdrant").await;
}

/// The kinds that tell an operator where to look, and nothing of what was given.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_told_without_the_url() {
    let with_password = |url: &str| {
        let (scheme, rest) = url.split_once("://").unwrap();
        format!("{scheme}://hunter2user:hunter2%40pass@{}", rest.rsplit('@').next().unwrap())
    };
    let postgres = services::url("postgres");
    let (server, _) = postgres.rsplit_once('/').unwrap();
    let closed = "127.0.0.1:1";
    let cases = [
        (format!("postgres://hunter2user:hunter2@{closed}/hunter2db"), ErrorKind::Unreachable),
        (format!("redis://:hunter2@{closed}"), ErrorKind::Unreachable),
        (format!("qdrant:http://{closed}?api_key=hunter2"), ErrorKind::Unreachable),
        (with_password(&services::url("redis")), ErrorKind::Config),
        (with_password(&postgres), ErrorKind::Config),
        (format!("{server}/no_such_database?application_name=hunter2"), ErrorKind::Config),
        ("sqlite:/no/such/folder/hunter2.db".to_owned(), ErrorKind::Config),
    ];
    for (url, kind) in cases {
        let error = resolve::memory(url.as_str()).await.expect_err("it cannot be opened");
        let text = everything(&error);
        let where_it_is = !url.starts_with("sqlite:");
        assert!(!where_it_is || !text.contains("hunter2@") && !text.contains("hunter2%40"), "{text}");
        assert!(!text.contains(&url) || !where_it_is, "{text}");
        assert_eq!(error.kind(), kind, "{}: {text}", url.split(':').next().unwrap());
        assert!(error.message().len() > 30, "it says what to do: {text}");
    }
}
