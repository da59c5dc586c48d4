//! LoomFlow's quota ledger on Redis.
#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod codec;
mod config;
mod disk;
mod ledger;
mod outage;
mod rate_limit;
mod schema;
mod scripts;

pub use config::{Allowance, OnOutage, RedisLedgerConfig};
pub use ledger::RedisLedger;
pub use rate_limit::{RedisRateLimiter, RedisRateLimiterConfig};
