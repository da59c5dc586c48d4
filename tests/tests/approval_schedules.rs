//! Random schedules of approvals against a real agent. `cargo run -p loomflow-tests --bin approval-schedules` plays more of them,
//! and sees a failure again by its seed and number.

#![forbid(unsafe_code)]

use std::sync::Arc;

use loomflow_core::{ApprovalStore, Clock};
use loomflow_local::InMemoryApprovalStore;
use loomflow_tests::schedules::{Options, check};

fn in_memory(clock: Arc<dyn Clock>) -> Arc<dyn ApprovalStore> {
    Arc::new(InMemoryApprovalStore::new().with_clock(clock))
}

fn play(seed: u64) {
    let report = check(Options::new(seed, 1_500), &in_memory, |_| {});
    let report = report.unwrap_or_else(|failure| panic!("seed {seed}, {failure:?}"));
    // A schedule in which nothing happens shows nothing.
    let tally = report.tally;
    assert!(tally.live_grants > 300 && tally.executions > 300, "{report:?}");
    assert!(tally.executed_after_a_crash > 3 && tally.parked > 3, "{report:?}");
}

#[test]
fn nothing_runs_without_its_approval_or_twice_and_none_is_lost() {
    play(1);
}

#[test]
fn nor_in_schedules_that_nobody_has_seen() {
    play(rand::random());
}
