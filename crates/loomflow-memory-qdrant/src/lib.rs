//! Memory on a Qdrant server.

#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod cells;
mod config;
mod erase;
mod error;
mod facts;
mod head;
mod keys;
mod record;
mod schema;
mod server;
mod store;

#[cfg(feature = "testing")]
#[doc(hidden)]
pub use config::Fault;
pub use config::QdrantMemoryConfig;
pub use store::QdrantMemory;
