//! In-process memory: a partition a tenant, hybrid recall, bi-temporal facts, bounded, erasable.

mod config;
mod episodes;
mod export;
mod facts;
mod partition;
mod registry;
mod store;
#[cfg(test)]
mod tests;

pub use config::{MemoryConfig, MemoryStats};
pub use store::{InMemoryFactStore, InMemoryMemory, PlantedRecord};
