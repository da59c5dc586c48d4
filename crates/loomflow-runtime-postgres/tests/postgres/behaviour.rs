//! Schemas, two pools on one database, and bounds.

use loomflow_core::{
    ApprovalDecision, ApprovalStore as _, ArgumentPattern, Erase, ErrorKind, GrantTerms, TenantData as _,
};
use loomflow_runtime_postgres::PostgresApprovals;

use crate::support::{Database, at, binding, request, scope, scope_at};

fn remember(until: i64) -> ApprovalDecision {
    let grant = GrantTerms::new(ArgumentPattern::Any, at(until));
    ApprovalDecision::ApproveAndRemember { grant }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_a_missing_and_a_changed_schema_are_refused() {
    let database = Database::new().await;
    let open = async || PostgresApprovals::connect(database.config().with_migrate(false)).await;
    assert_eq!(open().await.unwrap_err().kind(), ErrorKind::Config);
    PostgresApprovals::migrate(&database.config()).await.unwrap();
    open().await.unwrap();
    for (breaks, mends) in [
        (
            "UPDATE schema_versions SET version = 99 WHERE component = 'approvals'",
            "UPDATE schema_versions SET version = 1 WHERE component = 'approvals'",
        ),
        ("ALTER TABLE approvals_requests NO FORCE ROW LEVEL SECURITY", ""),
        ("ALTER POLICY loomflow_decider_sees ON approvals_requests USING (true)", ""),
        ("ALTER POLICY loomflow_decider_decides ON approvals_requests WITH CHECK (true)", ""),
        ("DROP POLICY loomflow_decider_revokes ON approvals_grants", ""),
        (
            "CREATE POLICY more ON approvals_grants FOR SELECT USING (true)",
            "DROP POLICY more ON approvals_grants",
        ),
    ] {
        database.sql(breaks).await;
        let refused = open().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Config, "{breaks}: {refused}");
        database.sql(mends).await;
        PostgresApprovals::migrate(&database.config()).await.unwrap();
        open().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_pools_one_decides_and_one_uses() {
    let database = Database::new().await;
    let pools = [database.store().await, database.store().await];
    for round in 0..40 {
        let asked = request("x");
        pools[round % 2].create(&scope("alice"), asked.clone()).await.unwrap();
        let decides = |n: usize| {
            let (store, who, id) = (pools[n].clone(), ["ops", "lead"][n], asked.id);
            let decision = if n == 0 { ApprovalDecision::Approve } else { remember(3) };
            tokio::spawn(async move { store.decide(&scope(who), id, decision, at(1)).await })
        };
        let mut won = 0;
        for decider in [decides(0), decides(1)] {
            match decider.await.unwrap() {
                Ok(()) => won += 1,
                Err(e) => assert_eq!(e.kind(), ErrorKind::Conflict, "{e}"),
            }
        }
        assert_eq!(won, 1, "round {round}");
        let uses = |n: usize| {
            let (store, id) = (pools[n].clone(), asked.id);
            tokio::spawn(async move { store.consume(&scope("alice"), id, binding(), 0, at(2)).await })
        };
        let mut used = 0;
        for user in [uses(0), uses(1)] {
            used += usize::from(user.await.unwrap().is_ok());
        }
        assert_eq!(used, 1, "round {round}");
    }
}

/// A waiter finds what another process decides, and holds no connection meanwhile: the pool has one, and others use it.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_holds_no_connection_and_finds_what_another_process_decides() {
    let database = Database::new().await;
    let store = PostgresApprovals::connect(database.config().with_max_connections(1)).await.unwrap();
    let other = database.store().await;
    let mut waiters = Vec::new();
    for _ in 0..8 {
        let asked = request("x");
        store.create(&scope("alice"), asked.clone()).await.unwrap();
        let (store, id) = (store.clone(), asked.id);
        waiters.push((id, tokio::spawn(async move { store.changed(&scope("alice"), id).await })));
    }
    for _ in 0..20 {
        store.list(&scope("alice"), at(1), loomflow_core::ApprovalPage::default()).await.unwrap();
    }
    for (id, _) in &waiters {
        other.decide(&scope("ops"), *id, ApprovalDecision::Approve, at(1)).await.unwrap();
    }
    for (_, waiter) in waiters {
        waiter.await.unwrap().unwrap();
    }
}

/// Erasures, and approvers who remember, race; nothing of the erased user is there afterwards, and nobody waits for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_erasure_and_a_decision_at_once_leave_nothing() {
    let database = Database::new().await;
    let (store, other) = (database.store().await, database.store().await);
    for epoch in 1..=15 {
        let mut decisions = Vec::new();
        for n in 0..4 {
            let asked = request("x");
            store.create(&scope_at("alice", epoch - 1), asked.clone()).await.unwrap();
            let other = other.clone();
            let decision = if n % 2 == 0 { remember(900) } else { ApprovalDecision::Approve };
            decisions.push(tokio::spawn(async move {
                other.decide(&scope("ops"), asked.id, decision, at(1)).await.map_err(|e| e.kind())
            }));
        }
        store.forget(&scope_at("alice", epoch), &Erase::everything()).await.unwrap();
        for decision in decisions {
            let outcome = decision.await.unwrap();
            let fair = matches!(outcome, Ok(()) | Err(ErrorKind::NotFound | ErrorKind::Conflict));
            assert!(fair, "{outcome:?}");
        }
        let left =
            "SELECT (SELECT count(*) FROM approvals_requests) + (SELECT count(*) FROM approvals_grants)";
        assert_eq!(database.number(left).await, 0, "epoch {epoch}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_makes_room_and_a_grant_keeps_its_request() {
    let database = Database::new().await;
    let config = database.config().with_max_requests_per_user(3).with_max_grants_per_user(1);
    let store = PostgresApprovals::connect(config).await.unwrap();
    let (alice, ops) = (scope("alice"), scope("ops"));
    let first = request("first");
    store.create(&alice, first.clone()).await.unwrap();
    store.decide(&ops, first.id, remember(900), at(1)).await.unwrap();
    store.consume(&alice, first.id, binding(), 0, at(1)).await.unwrap();
    let pending = [request("a"), request("b"), request("c")];
    for asked in &pending {
        store.create(&alice, asked.clone()).await.unwrap();
    }
    let full = store.create(&alice, request("one too many")).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Capacity, "{full}");
    let full = store.decide(&ops, pending[0].id, remember(900), at(1)).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Capacity, "{full}");
    assert_eq!(
        store.list(&ops, at(1), loomflow_core::ApprovalPage::default()).await.unwrap().len(),
        3,
        "a refused decision decides nothing"
    );
    assert_eq!(store.grants(&ops, at(1)).await.unwrap().len(), 1);
    store.revoke(&ops, first.id.into()).await.unwrap();
    store.decide(&ops, pending[0].id, remember(900), at(1)).await.unwrap();
}
