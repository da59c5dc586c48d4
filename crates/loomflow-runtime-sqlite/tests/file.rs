//! The file: what survives, what is refused, what is bounded, and that erased bytes are gone.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Folder, at, binding, raw, request, scope, user};
use loomflow_core::{
    ApprovalDecision, ApprovalState, ApprovalStore as _, ArgumentPattern, Epoch, Erase, ErrorKind,
    GrantTerms, TenantData as _,
};
use loomflow_runtime_sqlite::{SqliteApprovals, SqliteApprovalsConfig};
use sqlx::Executor as _;

async fn open(folder: &Folder) -> SqliteApprovals {
    SqliteApprovals::connect(SqliteApprovalsConfig::new(folder.file())).await.unwrap()
}

fn remember(until: i64) -> ApprovalDecision {
    let grant = GrantTerms::new(ArgumentPattern::Any, at(until));
    ApprovalDecision::ApproveAndRemember { grant }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_decisions_and_grants_survive_a_restart() {
    let folder = Folder::new();
    let (alice, ops) = (scope("alice", 3), scope("ops", 0));
    let (pending, decided, used) = (request("a"), request("b"), request("c"));
    {
        let store = open(&folder).await;
        store.forget(&alice, &Erase::everything()).await.unwrap();
        for asked in [&pending, &decided, &used] {
            store.create(&alice, asked.clone()).await.unwrap();
        }
        store.decide(&ops, decided.id, remember(900), at(1)).await.unwrap();
        store.decide(&ops, used.id, ApprovalDecision::Approve, at(1)).await.unwrap();
        store.consume(&alice, used.id, binding(), 0, at(2)).await.unwrap();
    }
    let store = open(&folder).await;
    let state = async |id| store.get(&alice, id, at(3)).await.unwrap().open(&alice).unwrap().state;
    assert_eq!(state(pending.id).await, ApprovalState::Pending);
    let by = Some(user("ops"));
    assert_eq!(state(decided.id).await, ApprovalState::Decided { decision: remember(900), by: by.clone() });
    assert!(matches!(state(used.id).await, ApprovalState::Consumed { .. }));
    assert_eq!(store.epoch(&alice).await.unwrap(), Epoch::new(3));
    assert_eq!(store.list(&ops, at(3), loomflow_core::ApprovalPage::default()).await.unwrap().len(), 1);
    assert_eq!(store.remembered(&alice, "pay", at(3)).await.unwrap().len(), 1);
    let taken = store.consume(&alice, decided.id, binding(), 0, at(3)).await.unwrap();
    assert_eq!(taken, (remember(900), by));
    let again = store.consume(&alice, used.id, binding(), 0, at(3)).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_makes_room_and_a_grant_outlives_its_request() {
    let folder = Folder::new();
    let config = SqliteApprovalsConfig::new(folder.file()).with_max_requests_per_user(3);
    let store = SqliteApprovals::connect(config).await.unwrap();
    let (alice, ops) = (scope("alice", 0), scope("ops", 0));
    let first = request("first");
    store.create(&alice, first.clone()).await.unwrap();
    store.decide(&ops, first.id, remember(900), at(1)).await.unwrap();
    store.consume(&alice, first.id, binding(), 0, at(1)).await.unwrap();
    for _ in 0..2 {
        store.create(&alice, request("pending")).await.unwrap();
    }
    store.create(&alice, request("in the place of the first")).await.unwrap();
    let gone = store.get(&alice, first.id, at(1)).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    let full = store.create(&alice, request("one too many")).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Capacity, "{full}");
    assert!(full.message().contains('3'), "{full}");
    store.create(&scope("bob", 0), request("somebody else's")).await.unwrap();
    let mut stolen = request("stolen");
    stolen.id = first.id;
    let taken = store.create(&scope("bob", 0), stolen).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict, "the number of a live grant is taken");
    assert_eq!(store.grants(&ops, at(1)).await.unwrap().len(), 1, "who may revoke it still sees it");
    store.revoke(&ops, first.id.into()).await.unwrap();
    let mut conn = raw(&folder.file()).await;
    let strays: i64 = sqlx::query_scalar("SELECT count(*) FROM approvals_deciders WHERE id = ?")
        .bind(first.id.as_u128().to_be_bytes().to_vec())
        .fetch_one(&mut conn)
        .await
        .unwrap();
    assert_eq!(strays, 0, "nothing is left of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn erased_bytes_are_in_no_file() {
    let folder = Folder::new();
    let store = open(&folder).await;
    let (alice, ops) = (scope("alice-the-erased", 0), scope("ops", 0));
    for n in 0..30 {
        let asked = request(&format!("canary-{n}-{}", "x".repeat(n * 40)));
        store.create(&alice, asked.clone()).await.unwrap();
        store.create(&scope("bob", 0), request("kept")).await.unwrap();
        if n % 2 == 0 {
            store.decide(&ops, asked.id, remember(900), at(1)).await.unwrap();
        }
    }
    assert!(memchr::memmem::find(&folder.bytes(), b"canary-7-").is_some());
    let gone = store.forget(&scope("alice-the-erased", 1), &Erase::everything()).await.unwrap();
    assert_eq!(gone.total(), 45);
    let bytes = folder.bytes();
    for erased in [&b"canary-"[..], b"alice-the-erased"] {
        assert!(memchr::memmem::find(&bytes, erased).is_none(), "{}", String::from_utf8_lossy(erased));
    }
    assert!(memchr::memmem::find(&bytes, b"kept").is_some());
    assert_eq!(store.list(&ops, at(1), loomflow_core::ApprovalPage::default()).await.unwrap().len(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_or_missing_schema_is_refused_and_left_alone() {
    let folder = Folder::new();
    let config = SqliteApprovalsConfig::new(folder.file());
    let refused = SqliteApprovals::connect(config.clone().with_migrate(false)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    SqliteApprovals::migrate(&config).await.unwrap();
    SqliteApprovals::connect(config.clone().with_migrate(false)).await.unwrap();
    let mut conn = raw(&folder.file()).await;
    conn.execute("UPDATE loomflow_schema SET version = 99 WHERE part = 'approvals'").await.unwrap();
    for migrates in [true, false] {
        let newer = SqliteApprovals::connect(config.clone().with_migrate(migrates)).await.unwrap_err();
        assert_eq!(newer.kind(), ErrorKind::Config);
        assert!(newer.message().contains("99"), "{newer}");
    }
}

/// A waiter hears at once of what its own process does, and by looking of what another does.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_hears_of_another_handles_decision() {
    let folder = Folder::new();
    let (store, other) = (open(&folder).await, open(&folder).await);
    let asked = request("a");
    store.create(&scope("alice", 0), asked.clone()).await.unwrap();
    let waiter = tokio::spawn(async move { store.changed(&scope("alice", 0), asked.id).await });
    other.decide(&scope("ops", 0), asked.id, ApprovalDecision::Approve, at(1)).await.unwrap();
    waiter.await.unwrap().unwrap();
}
