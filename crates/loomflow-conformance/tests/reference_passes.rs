//! Correct backends pass every suite, through the macros that a backend author uses, and leave no case unsupported.

#![allow(clippy::unwrap_used, reason = "a test")]

mod reference;

use loomflow_conformance::ledger::Instance;
use loomflow_conformance::{
    Verdict, approvals, audit, ledger, memory, models, rate_limit, runtime, tool_cache,
};
use loomflow_core::{BudgetConfig, RateLimitConfig};
use reference::Bug;

async fn memory() -> memory::Harness {
    reference::memory::harness(Bug::Clean)
}

async fn ledger(config: BudgetConfig) -> Instance {
    reference::ledger::open(Bug::Clean, config)
}

async fn approvals() -> approvals::Harness {
    reference::approvals::harness(Bug::Clean)
}

async fn audit() -> audit::Harness {
    reference::others::log(Bug::Clean)
}

async fn runtime() -> runtime::Harness {
    reference::others::journal(Bug::Clean)
}

async fn tool_cache() -> tool_cache::Harness {
    reference::others::cache(Bug::Clean)
}

async fn rate_limit(config: RateLimitConfig) -> rate_limit::Instance {
    reference::rate_limit::open(Bug::Clean, config)
}

async fn models() -> models::Harness {
    reference::model_wire::harness(Bug::Clean)
}

loomflow_conformance::memory!(memory);
loomflow_conformance::ledger!(ledger);
loomflow_conformance::approvals!(approvals);
loomflow_conformance::audit!(audit);
loomflow_conformance::runtime!(runtime);
loomflow_conformance::tool_cache!(tool_cache);
loomflow_conformance::rate_limit!(rate_limit);
loomflow_conformance::models!(models);

macro_rules! names {
    ($suite:ident) => {
        $suite::cases().iter().map(|case| case.name()).collect::<Vec<_>>()
    };
}

#[test]
fn the_tests_are_the_list() {
    assert_eq!(memory_cases::NAMES, names!(memory));
    assert_eq!(ledger_cases::NAMES, names!(ledger));
    assert_eq!(approvals_cases::NAMES, names!(approvals));
    assert_eq!(audit_cases::NAMES, names!(audit));
    assert_eq!(runtime_cases::NAMES, names!(runtime));
    assert_eq!(tool_cache_cases::NAMES, names!(tool_cache));
    assert_eq!(rate_limit_cases::NAMES, names!(rate_limit));
    assert_eq!(models_cases::NAMES, names!(models));
}

#[test]
fn every_suite_has_isolation_cases_and_names_no_case_twice() {
    let mut all = Vec::new();
    macro_rules! check {
        ($($suite:ident)*) => {$(
            assert!($suite::cases().iter().any(|case| case.is_isolation()));
            assert!($suite::cases().iter().all(|case| case.suite() == stringify!($suite)));
            all.extend($suite::cases().iter().map(|case| (case.suite(), case.name())));
        )*};
    }
    check!(memory ledger approvals audit runtime tool_cache rate_limit models);
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
}

#[tokio::test]
async fn no_case_is_unsupported_by_a_complete_backend() {
    let case = ledger::cases().iter().find(|c| c.name() == "a_lifetime_never_resets").unwrap();
    assert_eq!(case.verdict(&reference::ledger::harness(Bug::Clean)).await, Verdict::Passed);
}

#[tokio::test]
async fn a_harness_without_its_plant_hook_fails() {
    std::panic::set_hook(Box::new(|_| {}));
    let store: std::sync::Arc<loomflow_core::NoMemory> = Default::default();
    let harness = memory::Harness::new(store);
    let case = memory::cases().iter().find(|c| c.name() == "a_foreign_block_trips_blocks").unwrap();
    let Verdict::Failed(why) = case.verdict(&harness).await else { panic!("it passed") };
    assert!(!why.is_empty(), "{why}");
}
