//! Every store answers random histories as a naive oracle does. `cargo run -p loomflow-tests --bin differential` asks
//! for longer, and sees a failure again by its seed and case.

#![forbid(unsafe_code)]

use std::time::Duration;

use loomflow::resolve;
use loomflow_tests::differential::{Options, check};

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
fn the_memory_in_process_answers_as_the_oracle() {
    compare("inmemory");
}
