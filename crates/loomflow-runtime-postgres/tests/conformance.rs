//! The suite of approval stores, on a real PostgreSQL, as the application's role.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use loomflow_conformance::approvals::Harness;
use loomflow_runtime_postgres::{PostgresApprovals, PostgresApprovalsConfig};

/// One schema for all cases: their partitions are drawn at random.
async fn fresh() -> Harness {
    let url = loomflow_tests::services::url("postgres");
    let store = PostgresApprovals::connect(PostgresApprovalsConfig::new(url.as_str())).await.unwrap();
    support::harness(store, url)
}

loomflow_conformance::approvals!(fresh);
