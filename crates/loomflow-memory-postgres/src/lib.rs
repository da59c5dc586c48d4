#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod blocks;
mod config;
mod episodes;
mod erase;
mod export;
mod facts;
mod maintain;
mod query;
mod recall;
mod rows;
mod schema;
mod store;

#[cfg(feature = "testing")]
#[doc(hidden)]
pub use config::Fault;
pub use config::PostgresMemoryConfig;
pub use store::PostgresMemory;
