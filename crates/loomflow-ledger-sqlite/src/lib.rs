//! LoomFlow's quota ledger in one SQLite file.

#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod config;
mod desk;
mod forget;
mod keeping;
mod ledger;
mod prune;
mod read;
mod rows;
mod schema;

#[cfg(feature = "testing")]
pub use config::Fault;
pub use config::SqliteLedgerConfig;
pub use ledger::SqliteLedger;
pub use loomflow_support_sql::sqlite::Durability;
