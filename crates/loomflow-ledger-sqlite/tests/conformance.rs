//! The suite of ledgers on a SQLite file.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::Arc;

use common::Folder;
use loomflow_conformance::doubles::ManualClock;
use loomflow_conformance::ledger::Instance;
use loomflow_core::{BudgetConfig, Clock, Timestamp};

/// The clock of a ledger, and the folder that is gone with it.
#[derive(Debug)]
struct InFolder(Arc<ManualClock>, #[allow(dead_code, reason = "it is kept to be dropped")] Folder);

impl Clock for InFolder {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

async fn fresh(config: BudgetConfig) -> Instance {
    let (folder, clock) = (Folder::new(), common::clock());
    let ledger = folder.open(config).await.with_clock(Arc::new(InFolder(clock.clone(), folder)));
    Instance::new(Arc::new(ledger)).with_clock(clock)
}

loomflow_conformance::ledger!(fresh);
