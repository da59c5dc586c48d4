//! Every ledger answers random sequences as a naive oracle does. `cargo run -p loomflow-tests --bin ledger-oracle` asks for
//! more, and sees a failure again by its seed.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "ledger_oracle/in_process.rs"]
mod in_process;
#[path = "ledger_oracle/postgres.rs"]
mod postgres;
#[path = "ledger_oracle/redis.rs"]
mod redis;
#[path = "ledger_oracle/sqlite.rs"]
mod sqlite;

use std::time::Duration;

use loomflow_tests::ledger_oracle::{Options, check};

/// How long each ledger is asked.
const TIME: Duration = Duration::from_secs(12);
/// Fewer operations than this in that time are no test.
const AT_LEAST: u64 = 200;

fn compare(url: &str, hot_users: Option<usize>) {
    let mut options = Options::for_time(rand::random(), TIME);
    options.hot_users = hot_users;
    let report = check(url, &options, |_| {}).unwrap_or_else(|why| panic!("{why}"));
    assert!(report.operations >= AT_LEAST, "{report:?}");
}
