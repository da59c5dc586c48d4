//! LoomFlow's quota ledger on PostgreSQL.
//!
#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod config;
mod ledger;
mod rate_limit;
mod schema;

#[cfg(feature = "testing")]
#[doc(hidden)]
pub use config::Fault;
pub use config::PostgresLedgerConfig;
pub use ledger::PostgresLedger;
pub use rate_limit::{PostgresRateLimiter, PostgresRateLimiterConfig};
