//! LoomFlow's quota ledger on Redis.
#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod config;

pub use config::{Allowance, OnOutage, RedisLedgerConfig};
