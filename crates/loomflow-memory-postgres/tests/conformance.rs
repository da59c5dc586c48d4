//! The memory suite, on a real PostgreSQL, as the application's role.

mod support;

use loomflow_conformance::memory::Harness;
use loomflow_memory_postgres::{PostgresMemory, PostgresMemoryConfig};

/// One schema for all cases: their partitions are drawn at random.
async fn fresh() -> Harness {
    let url = loomflow_tests::services::url("postgres");
    let memory = PostgresMemory::connect(PostgresMemoryConfig::new(url.as_str())).await.unwrap();
    support::harness(memory, url)
}

loomflow_conformance::memory!(fresh);
