//! Row-level security by itself: what a session sees and does by raw SQL, and what a store without its filter shows.

use loomflow_core::{ApprovalDecision, ApprovalRequest, ApprovalStore as _, ArgumentPattern, GrantTerms};

use crate::support::{Database, at, owner, request, scope};

/// A database in which alice has a pending request, and one that was remembered.
async fn filled() -> (Database, ApprovalRequest, ApprovalRequest) {
    let database = Database::new().await;
    let store = database.store().await;
    let (pending, remembered) = (request("pending"), request("remembered"));
    store.create(&scope("alice"), pending.clone()).await.unwrap();
    store.create(&scope("alice"), remembered.clone()).await.unwrap();
    let grant = GrantTerms::new(ArgumentPattern::Any, at(900));
    let decision = ApprovalDecision::ApproveAndRemember { grant };
    store.decide(&scope("ops"), remembered.id, decision, at(1)).await.unwrap();
    (database, pending, remembered)
}

const DECIDE: &str = "UPDATE approvals_requests SET state = 1, decision = '{}', \
                      decider = decode(current_setting('loomflow.partition'), 'hex')";

#[tokio::test(flavor = "multi_thread")]
async fn a_session_sees_its_own_and_what_it_may_decide() {
    let (database, _, _) = filled().await;
    for (who, requests, grants) in
        [("alice", 2, 1), ("ops", 2, 1), ("lead", 2, 1), ("mallory", 0, 0), ("Ops", 0, 0)]
    {
        let session = owner(who);
        let seen = database.as_app(Some(&session), "SELECT * FROM approvals_requests").await;
        assert_eq!(seen, Ok(requests), "{who}");
        let seen = database.as_app(Some(&session), "SELECT * FROM approvals_grants").await;
        assert_eq!(seen, Ok(grants), "{who}");
    }
    for table in ["approvals_requests", "approvals_grants", "approvals_partitions"] {
        let seen = database.as_app(None, &format!("SELECT * FROM {table}")).await;
        assert_eq!(seen, Ok(0), "a session that names nobody");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_changes_nothing_by_raw_sql() {
    let (database, pending, _) = filled().await;
    let mallory = owner("mallory");
    for sql in [
        DECIDE,
        "UPDATE approvals_requests SET state = 2",
        "DELETE FROM approvals_requests",
        "DELETE FROM approvals_grants",
    ] {
        assert_eq!(database.as_app(Some(&mallory), sql).await, Ok(0), "{sql}");
    }
    let hex = owner("alice").partition_hex();
    let id = format!("{:032x}", pending.id.as_u128());
    let own = "decode(current_setting('loomflow.partition'), 'hex')";
    let insert = format!(
        "INSERT INTO approvals_grants (partition, id, decider, namespace, user_id, tool, asked_at, granted_at, \
         expires_at, deciders, body) VALUES (decode('{hex}', 'hex'), decode('{id}', 'hex'), {own}, 'app', 'alice', \
         'pay', 0, 0, 9, ARRAY[{own}], '{{}}')"
    );
    for who in ["mallory", "ops"] {
        let refused = database.as_app(Some(&owner(who)), &insert).await.unwrap_err();
        assert!(refused.contains("row-level security"), "{who}: {refused}");
    }
    // Nor does the requester: there is no decision that the grant could be of.
    let refused = database.as_app(Some(&owner("alice")), &insert).await.unwrap_err();
    assert!(refused.contains("foreign key"), "{refused}");
    assert_eq!(database.number("SELECT count(*) FROM approvals_grants").await, 1);
    assert_eq!(database.number("SELECT count(*) FROM approvals_requests WHERE state = 0").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approver_decides_what_is_pending_once_in_their_own_name_and_does_nothing_else() {
    let (database, _, _) = filled().await;
    let ops = owner("ops");
    let lead = owner("lead").partition_hex();
    let in_name_of_lead = DECIDE.replace("current_setting('loomflow.partition')", &format!("'{lead}'"));
    for (sql, why) in [
        (DECIDE.replace("state = 1", "state = 2"), "uses it"),
        (in_name_of_lead, "decides in somebody else's name"),
    ] {
        let refused = database.as_app(Some(&ops), &sql).await.unwrap_err();
        assert!(refused.contains("row-level security"), "{why}: {refused}");
    }
    for column in ["body = ''", "deciders = '{}'", "expires_at = 0", "partition = partition", "user_id = 'x'"]
    {
        let sql = format!("UPDATE approvals_requests SET {column}");
        let refused = database.as_app(Some(&ops), &sql).await.unwrap_err();
        assert!(refused.contains("permission denied"), "{column}: {refused}");
    }
    assert_eq!(database.as_app(Some(&ops), "DELETE FROM approvals_requests").await, Ok(0));
    assert_eq!(database.as_app(Some(&ops), DECIDE).await, Ok(1), "of two, one is pending");
    for who in ["ops", "lead"] {
        assert_eq!(database.as_app(Some(&owner(who)), DECIDE).await, Ok(0), "{who} decides it again");
    }
    let revoked = database.as_app(Some(&ops), "DELETE FROM approvals_grants").await;
    assert_eq!(revoked, Ok(1), "it is theirs to revoke");
}

#[cfg(feature = "testing")]
#[tokio::test(flavor = "multi_thread")]
async fn without_its_filter_the_store_shows_a_stranger_nothing() {
    use futures_util::TryStreamExt as _;
    use loomflow_core::{ErrorKind, TenantData as _};
    use loomflow_runtime_postgres::{Fault, PostgresApprovals};

    use crate::support::binding;

    let (database, pending, remembered) = filled().await;
    let config = database.config().with_fault(Fault::NoPartitionFilter);
    let broken = PostgresApprovals::connect(config).await.unwrap();
    let not_found = |kind| assert_eq!(kind, ErrorKind::NotFound);
    for who in ["mallory", "Alice", "alice2", "OPS"] {
        let stranger = scope(who);
        assert!(
            broken.list(&stranger, at(1), loomflow_core::ApprovalPage::default()).await.unwrap().is_empty(),
            "{who}"
        );
        assert!(broken.remembered(&stranger, "pay", at(1)).await.unwrap().is_empty(), "{who}");
        assert!(broken.grants(&stranger, at(1)).await.unwrap().is_empty(), "{who}");
        let export: Vec<_> = broken.export(&stranger).await.unwrap().try_collect().await.unwrap();
        assert!(export.is_empty(), "{who}");
        not_found(broken.get(&stranger, pending.id, at(1)).await.unwrap_err().kind());
        let approve = ApprovalDecision::Approve;
        not_found(broken.decide(&stranger, pending.id, approve, at(1)).await.unwrap_err().kind());
        not_found(broken.consume(&stranger, pending.id, binding(), 0, at(1)).await.unwrap_err().kind());
        not_found(broken.revoke(&stranger, remembered.id.into()).await.unwrap_err().kind());
    }
    // Who may decide sees what they may decide, and cannot use it.
    assert_eq!(
        broken.list(&scope("ops"), at(1), loomflow_core::ApprovalPage::default()).await.unwrap().len(),
        1
    );
    let used = broken.consume(&scope("ops"), remembered.id, binding(), 0, at(1)).await.unwrap_err();
    assert_eq!(used.kind(), ErrorKind::IsolationViolation, "{used}");
}
