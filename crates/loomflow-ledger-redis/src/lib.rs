//! LoomFlow's quota ledger on Redis.
#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod rate_limit;

pub use rate_limit::{RedisRateLimiter, RedisRateLimiterConfig};
