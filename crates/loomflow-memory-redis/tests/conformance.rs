//! The suite of memory, on a server with RediSearch and on one without.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::Arc;

use loomflow_conformance::memory::Harness;

async fn harness(service: &str) -> Harness {
    let url = common::url(service);
    Harness::new(Arc::new(common::connect(service).await)).with_plant(move |order| {
        let url = url.clone();
        async move { common::plant(&url, "lf", &order.scope, &order.foreign, order.record).await }
    })
}

mod with_search {
    //! The service `redis`.

    async fn fresh() -> loomflow_conformance::memory::Harness {
        super::harness("redis").await
    }

    loomflow_conformance::memory!(fresh);
}

mod plain {
    //! The service `redis-plain`.

    async fn fresh() -> loomflow_conformance::memory::Harness {
        super::harness("redis-plain").await
    }

    loomflow_conformance::memory!(fresh);
}
