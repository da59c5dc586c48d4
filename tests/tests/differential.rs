//! Every store answers random histories as a naive oracle does. `cargo run -p loomflow-tests --bin differential` asks
//! for longer, and sees a failure again by its seed and case.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use loomflow::resolve;
use loomflow_tests::differential::{Options, check};
use loomflow_tests::services;

/// How long each store is asked.
const TIME: Duration = Duration::from_secs(15);
/// Fewer operations than this in that time are no test.
const AT_LEAST: u64 = 200;

fn compare(url: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = runtime.block_on(resolve::memory(url)).unwrap();
    let report = check(&runtime, &store, &Options::for_time(rand::random(), TIME), |_| {});
    let report = report.unwrap_or_else(|failure| panic!("{}: {failure:?}", store.store_name()));
    assert!(report.operations >= AT_LEAST, "{report:?}");
}

#[test]
fn postgres_answers_as_the_oracle() {
    compare(&services::url("postgres"));
}

#[test]
fn qdrant_answers_as_the_oracle() {
    compare(&format!("qdrant:{}", services::url("qdrant")));
}

#[test]
fn redis_answers_as_the_oracle() {
    compare(&services::url("redis"));
}

#[test]
fn redis_without_search_answers_as_the_oracle() {
    compare(&services::url("redis-plain"));
}

#[test]
fn sqlite_answers_as_the_oracle() {
    let dir = std::env::temp_dir().join(format!("loomflow-differential-{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(&dir).unwrap();
    compare(&format!("sqlite:{}", dir.join("memory.db").display()));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn the_memory_in_process_answers_as_the_oracle() {
    compare("inmemory");
}
