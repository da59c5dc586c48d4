//! Sentence embeddings in this process, for LoomFlow.
//!
#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod config;
mod embedder;
mod files;
mod network;
mod places;

pub use config::LocalEmbedderConfig;
pub use embedder::LocalEmbedder;
