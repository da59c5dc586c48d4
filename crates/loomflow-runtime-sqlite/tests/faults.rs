//! Reads without their filter: the owner in each row is the other wall, and it holds.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Folder, at, binding, request, scope};
use futures_util::TryStreamExt as _;
use loomflow_core::{
    ApprovalDecision, ApprovalStore as _, ArgumentPattern, ErrorKind, GrantTerms, Owned, Result, Scope,
    TenantData as _,
};
use loomflow_runtime_sqlite::{Fault, SqliteApprovals, SqliteApprovalsConfig};

fn opens<T>(scope: &Scope, read: Result<Vec<Owned<T>>>) -> Result<usize> {
    read?.into_iter().map(|owned| owned.open(scope)).collect::<Result<Vec<_>>>().map(|all| all.len())
}

/// What each read of alice's gives, after core's check.
async fn reads(store: &SqliteApprovals) -> Vec<(&'static str, Result<usize>)> {
    let alice = scope("alice", 0);
    let export = store.export(&alice).await.unwrap().try_collect::<Vec<_>>().await;
    vec![
        ("list", opens(&alice, store.list(&alice, at(1), loomflow_core::ApprovalPage::default()).await)),
        ("remembered", opens(&alice, store.remembered(&alice, "pay", at(1)).await)),
        ("grants", opens(&alice, store.grants(&alice, at(1)).await)),
        ("export", opens(&alice, export).map(|all| all / 3)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_lost_its_filter_is_a_violation() {
    let folder = Folder::new();
    let sound = SqliteApprovals::connect(SqliteApprovalsConfig::new(folder.file())).await.unwrap();
    let mut of_bob = None;
    for user in ["alice", "bob"] {
        let pending = request(user);
        sound.create(&scope(user, 0), pending.clone()).await.unwrap();
        let remembered = request(user);
        sound.create(&scope(user, 0), remembered.clone()).await.unwrap();
        let grant = GrantTerms::new(ArgumentPattern::Any, at(500));
        let decision = ApprovalDecision::ApproveAndRemember { grant };
        sound.decide(&scope("ops", 0), remembered.id, decision, at(1)).await.unwrap();
        of_bob = Some(pending);
    }
    for (what, outcome) in reads(&sound).await {
        assert_eq!(outcome.unwrap(), 1, "{what}");
    }
    let config = SqliteApprovalsConfig::new(folder.file()).with_fault(Fault::NoPartitionFilter);
    let broken = SqliteApprovals::connect(config).await.unwrap();
    for (what, outcome) in reads(&broken).await {
        let error = outcome.err().unwrap_or_else(|| panic!("{what} handed out what is bob's"));
        assert_eq!(error.kind(), ErrorKind::IsolationViolation, "{what}: {error}");
        assert!(!format!("{error:?}").contains("bob"), "{what}");
    }
    // One of bob's, by its id, is bob's, and alice can do nothing with it.
    let (alice, of_bob) = (scope("alice", 0), of_bob.unwrap());
    let found = broken.get(&alice, of_bob.id, at(1)).await.unwrap();
    assert_eq!(found.open(&alice).unwrap_err().kind(), ErrorKind::IsolationViolation);
    let decided = broken.decide(&alice, of_bob.id, ApprovalDecision::Approve, at(1)).await;
    assert_eq!(decided.unwrap_err().kind(), ErrorKind::NotFound);
    let used = broken.consume(&alice, of_bob.id, binding(), 0, at(1)).await;
    assert_eq!(used.unwrap_err().kind(), ErrorKind::NotFound);
}
