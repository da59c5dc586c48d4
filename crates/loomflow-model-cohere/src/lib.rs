//! Cohere's embeddings, for LoomFlow.
//!
#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

#[cfg(feature = "client")]
mod config;
#[cfg(feature = "client")]
mod embedder;
mod wire;

#[cfg(feature = "client")]
pub use config::CohereConfig;
#[cfg(feature = "client")]
pub use embedder::CohereEmbedder;
#[cfg(feature = "client")]
pub use loomflow_support_model::{ApiKey, Timeouts};

/// The wire format by itself: plain data in and out, no I/O.
pub mod codec {
    pub use crate::wire::{encode, read, read_error};
}
