//! LoomFlow's memory in one SQLite file.

#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod blocks;
mod compact;
mod config;
mod episodes;
mod erase;
mod export;
mod facts;
mod profile;
mod scan;
mod schema;
mod store;

#[cfg(feature = "testing")]
pub use config::Fault;
pub use config::SqliteMemoryConfig;
pub use loomflow_support_sql::sqlite::Durability;
pub use store::SqliteMemory;
