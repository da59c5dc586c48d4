//! Reads without their filter: the owner in each row is the other wall, and it holds.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Folder, at, scope, session, turn};
use futures_util::TryStreamExt as _;
use loomflow_core::{
    Embedding, ErrorKind, FactQuery, FactStore as _, HistoryLimit, MemoryStore as _, NewFact, Owned,
    PutBlock, RecallQuery, Result, Scope, TenantData as _,
};
use loomflow_memory_sqlite::{Fault, SqliteMemory, SqliteMemoryConfig};

async fn filled(store: &SqliteMemory) {
    for user in ["alice", "bob"] {
        let vector = Embedding::new("m", [1.0, 0.5]);
        let scope = scope(user, 0);
        store.remember(&scope, turn(1, "falcon").with_embedding(vector)).await.unwrap();
        store.put_block(&scope, PutBlock::new(format!("note of {user}"), "falcon", at(1))).await.unwrap();
        store.assert(&scope, NewFact::new("me", "likes", "falcon", at(1))).await.unwrap();
    }
}

fn opens<T>(scope: &Scope, read: Result<Vec<Owned<T>>>) -> Result<Vec<T>> {
    read?.into_iter().map(|owned| owned.open(scope)).collect()
}

/// What each read of alice's gives, after core's check.
async fn reads(store: &SqliteMemory) -> Vec<(&'static str, Result<usize>)> {
    let alice = scope("alice", 0);
    let n = |read: Result<usize>| read;
    let newest = opens(&alice, store.recall(&alice, &RecallQuery::new("", 10)).await).map(|all| all.len());
    let words =
        opens(&alice, store.recall(&alice, &RecallQuery::new("falcon", 10)).await).map(|all| all.len());
    let query = RecallQuery::new("", 10).with_embedding(Embedding::new("m", [1.0, 0.5]));
    let vectors = opens(&alice, store.recall(&alice, &query).await).map(|all| all.len());
    let history = store.history(&alice, &session("s"), HistoryLimit::messages(20)).await;
    let history = opens(&alice, history).map(|all| all.len() / 2);
    let blocks = opens(&alice, store.blocks(&alice).await).map(|all| all.len());
    let facts = opens(&alice, store.query(&alice, &FactQuery::all(10)).await).map(|all| all.len());
    let query = FactQuery::all(10).about("falcon", None);
    let found = opens(&alice, store.query(&alice, &query).await).map(|all| all.len());
    let profile = store.profile(&alice).await.and_then(|owned| owned.open(&alice));
    let profile = profile.map(|p| usize::try_from(p.episodes).unwrap());
    let export = store.export(&alice).await.unwrap().try_collect::<Vec<_>>().await;
    let export = opens(&alice, export).map(|all| all.len() / 3);
    vec![
        ("recall of the newest", n(newest)),
        ("recall by words", n(words)),
        ("recall by vectors", n(vectors)),
        ("history", n(history)),
        ("blocks", n(blocks)),
        ("facts", n(facts)),
        ("facts by words", n(found)),
        ("profile", n(profile)),
        ("export", n(export)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_lost_its_filter_is_a_violation() {
    let folder = Folder::new();
    let sound = SqliteMemory::connect(SqliteMemoryConfig::new(folder.file())).await.unwrap();
    filled(&sound).await;
    for (what, outcome) in reads(&sound).await {
        assert_eq!(outcome.unwrap(), 1, "{what}");
    }
    let config = SqliteMemoryConfig::new(folder.file()).with_fault(Fault::NoPartitionFilter);
    let broken = SqliteMemory::connect(config).await.unwrap();
    for (what, outcome) in reads(&broken).await {
        let error = outcome.err().unwrap_or_else(|| panic!("{what} handed out what is bob's"));
        assert_eq!(error.kind(), ErrorKind::IsolationViolation, "{what}: {error}");
        assert!(!format!("{error:?}").contains("bob"), "{what}");
    }
}
