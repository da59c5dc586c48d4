//! The memory suite, on Qdrant's engine behind its gRPC service.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::Arc;

use loomflow_conformance::memory::Harness;

async fn harness() -> Harness {
    let config = common::shared();
    let store = common::connect(&config).await;
    Harness::new(Arc::new(store)).with_plant(move |order| {
        let collection = config.collection.clone();
        async move {
            common::plant(&collection, order.scope.owner(), &order.foreign, order.record).await;
            Ok(())
        }
    })
}

loomflow_conformance::memory!(harness);
