//! Every conformance suite on the in-process backends.

use std::sync::Arc;

use loomflow_conformance::doubles::ManualClock;
use loomflow_conformance::{approvals, audit, ledger, memory, rate_limit, tool_cache};
use loomflow_core::{BudgetConfig, Error, ErrorKind, RateLimitConfig, Result, Timestamp};
use loomflow_local::{
    InMemoryApprovalStore, InMemoryAuditLog, InMemoryMemory, MokaToolCache, PlantedRecord, StandardBudget,
    StandardRateLimiter,
};

async fn fresh_memory() -> memory::Harness {
    let store = InMemoryMemory::new();
    memory::Harness::new(Arc::new(store.clone())).with_plant(move |order| {
        let planted = planted(order.record)
            .and_then(|record| store.plant_for_conformance(order.scope.owner(), order.foreign, record));
        async { planted }
    })
}

fn planted(record: memory::Planted) -> Result<PlantedRecord> {
    match record {
        memory::Planted::Episode(episode) => Ok(PlantedRecord::Episode(episode)),
        memory::Planted::Block(block) => Ok(PlantedRecord::Block(block)),
        memory::Planted::Fact(fact) => Ok(PlantedRecord::Fact(Box::new(fact))),
        other => Err(Error::new(ErrorKind::Unsupported, format!("the hook cannot plant {other:?}"))),
    }
}

async fn fresh_ledger(config: BudgetConfig) -> ledger::Instance {
    // Noon of a day of March 2026, far from the border of any window.
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_773_576_000_000_000)));
    let budget = StandardBudget::new(config).expect("the suite's budgets are valid");
    ledger::Instance::new(Arc::new(budget.with_clock(clock.clone()))).with_clock(clock)
}

async fn fresh_audit() -> audit::Harness {
    let log = Arc::new(InMemoryAuditLog::new());
    audit::Harness::new(log.clone()).with_plant(move |order| {
        log.plant_for_conformance(order.scope.owner(), &order.foreign, &order.record);
        async { Ok(()) }
    })
}

async fn fresh_approvals() -> approvals::Harness {
    let store = Arc::new(InMemoryApprovalStore::new());
    approvals::Harness::new(store.clone()).with_plant(move |order| {
        let under = order.scope.owner();
        match order.record {
            approvals::Planted::Request(request) => {
                store.plant_for_conformance(under, order.foreign, *request)
            }
            approvals::Planted::Grant(grant) => {
                store.plant_grant_for_conformance(under, order.foreign, *grant)
            }
            other => panic!("the hook cannot plant {other:?}"),
        }
        async { Ok(()) }
    })
}

async fn fresh_limiter(config: RateLimitConfig) -> rate_limit::Instance {
    let clock = Arc::new(ManualClock::default());
    let limiter = StandardRateLimiter::new(&config).expect("the suite's limits are valid");
    rate_limit::Instance::new(Arc::new(limiter.with_clock(clock.clone()))).with_clock(clock)
}

async fn fresh_tool_cache() -> tool_cache::Harness {
    tool_cache::Harness::new(Arc::new(MokaToolCache::new()))
}

loomflow_conformance::memory!(fresh_memory);
loomflow_conformance::ledger!(fresh_ledger);
loomflow_conformance::audit!(fresh_audit);
loomflow_conformance::approvals!(fresh_approvals);
loomflow_conformance::tool_cache!(fresh_tool_cache);
loomflow_conformance::rate_limit!(fresh_limiter);

mod limits_in_real_time {
    //! The same limiter on the clock it has outside tests.

    use loomflow_conformance::rate_limit::Instance;

    async fn fresh(config: loomflow_core::RateLimitConfig) -> Instance {
        let limiter =
            loomflow_local::StandardRateLimiter::new(&config).expect("the suite's limits are valid");
        Instance::new(std::sync::Arc::new(limiter))
    }

    loomflow_conformance::rate_limit!(fresh);
}

mod limits_by_stand_in {
    //! The limiter that stands in for a shared one, in front of one that is there.

    use std::sync::Arc;

    use loomflow_conformance::rate_limit::Instance;
    use loomflow_local::StandInRateLimiter;

    async fn fresh(config: loomflow_core::RateLimitConfig) -> Instance {
        let shared = loomflow_local::StandardRateLimiter::new(&config).expect("the suite's limits are valid");
        Instance::new(Arc::new(StandInRateLimiter::new(Arc::new(shared), 3)))
    }

    loomflow_conformance::rate_limit!(fresh);
}

/// A harness of `runtime`. It is given no clock: leases end by monotonic time.
fn runtime_harness(runtime: loomflow_local::InProcRuntime) -> loomflow_conformance::runtime::Harness {
    loomflow_conformance::runtime::Harness::new(Arc::new(runtime.clone())).with_plant(move |order| {
        runtime.plant_for_conformance(order.scope.owner(), order.foreign, order.record);
        async { Ok(()) }
    })
}

mod leases {
    //! The runtime that keeps leases alone.

    async fn fresh() -> loomflow_conformance::runtime::Harness {
        super::runtime_harness(loomflow_local::InProcRuntime::new())
    }

    loomflow_conformance::runtime!(fresh);
}

mod journal {
    //! The runtime that keeps steps too.

    use loomflow_local::{InMemoryJournalStore, InProcRuntime};

    async fn fresh() -> loomflow_conformance::runtime::Harness {
        super::runtime_harness(InProcRuntime::with_journal(InMemoryJournalStore::new()))
    }

    loomflow_conformance::runtime!(fresh);
}
