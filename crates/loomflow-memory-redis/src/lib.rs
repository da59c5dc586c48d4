#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod codec;
mod config;
mod episodes;
mod erasure;
mod export;
mod facts;
mod schema;
mod scripts;
mod search;
mod store;
mod tenant;

#[cfg(feature = "testing")]
#[doc(hidden)]
pub use config::Fault;
pub use config::RedisMemoryConfig;
pub use store::{RedisFactStore, RedisMemory};
