//! The in-process memory against the oracle of all stores, with bounds and an index that only this one has.

use std::sync::Arc;

use loomflow_core::MemoryStore;
use loomflow_tests::differential::{Options, check};

use crate::memory::config::MemoryConfig;
use crate::memory::partition::Limits;
use crate::memory::registry::Registry;
use crate::memory::store::InMemoryMemory;

const OPERATIONS: u64 = 1_500;

#[test]
fn it_does_what_the_oracle_does() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for max_episodes in [3, 8, 1_000] {
        for scan in [0, 4, 32] {
            let config = MemoryConfig::new().with_max_episodes_per_user(max_episodes);
            let limits = Limits { scan, ..Limits::from(&config) };
            let memory = InMemoryMemory::over(Registry::with_limits(&config, limits));
            let store: Arc<dyn MemoryStore> = Arc::new(memory.clone());
            let options = Options::for_operations(rand::random(), OPERATIONS).with_max_episodes(max_episodes);
            if let Err(failure) = check(&runtime, &store, &options, |_| {}) {
                panic!("at most {max_episodes} episodes, {scan} scanned: {failure:?}");
            }
            assert_eq!(memory.stats().episodes, 0, "every history erases its own");
        }
    }
}
