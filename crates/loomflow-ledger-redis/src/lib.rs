//! LoomFlow's quota ledger on Redis.
#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod codec;
mod config;
mod ledger;
mod outage;
mod schema;
mod scripts;

pub use config::{Allowance, OnOutage, RedisLedgerConfig};
pub use ledger::RedisLedger;
