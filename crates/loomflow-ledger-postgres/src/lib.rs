//! LoomFlow's quota ledger on PostgreSQL.
//!
#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod accounts;
mod batch;
mod config;
mod kind;
mod lane;
mod ledger;
mod query;
mod rate_limit;
mod rows;
mod schema;
mod store;
mod sweep;
mod turns;
mod user;
mod write;

#[cfg(feature = "testing")]
#[doc(hidden)]
pub use config::Fault;
pub use config::PostgresLedgerConfig;
pub use ledger::PostgresLedger;
pub use rate_limit::{PostgresRateLimiter, PostgresRateLimiterConfig};
