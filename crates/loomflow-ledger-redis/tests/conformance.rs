//! The suite of ledgers, on a server with modules and on one without, and by the server's own time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::Arc;

use loomflow_conformance::doubles::ManualClock;
use loomflow_conformance::ledger::Instance;
use loomflow_core::BudgetConfig;

async fn turned(service: &str, budget: BudgetConfig) -> Instance {
    let clock = Arc::new(ManualClock::default());
    let ledger = common::connect(service, budget).await.with_clock(clock.clone());
    Instance::new(Arc::new(ledger)).with_clock(clock)
}

mod with_modules {
    //! The service `redis`, by a clock that the suite turns.

    async fn fresh(budget: loomflow_core::BudgetConfig) -> loomflow_conformance::ledger::Instance {
        super::turned("redis", budget).await
    }

    loomflow_conformance::ledger!(fresh);
}

mod plain {
    //! The service `redis-plain`, by a clock that the suite turns.

    async fn fresh(budget: loomflow_core::BudgetConfig) -> loomflow_conformance::ledger::Instance {
        super::turned("redis-plain", budget).await
    }

    loomflow_conformance::ledger!(fresh);
}

mod server_time {
    //! The service `redis-plain`, by its own time.

    use std::sync::Arc;

    use loomflow_conformance::ledger::Instance;

    async fn fresh(budget: loomflow_core::BudgetConfig) -> Instance {
        Instance::new(Arc::new(super::common::connect("redis-plain", budget).await))
    }

    loomflow_conformance::ledger!(fresh);
}
