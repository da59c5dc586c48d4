//! LoomFlow's adapter to OpenAI's chat completions and embeddings, and to every server that speaks them.

#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

mod calls;
#[cfg(feature = "client")]
mod config;
#[cfg(feature = "client")]
mod embedder;
mod encode;
mod errors;
mod fold;
#[cfg(feature = "client")]
mod model;
mod plain;
#[cfg(feature = "client")]
mod price;
mod stream;
mod strict;
#[cfg(feature = "tiktoken")]
mod tiktoken;
mod usage;
#[cfg(feature = "client")]
mod vectors;
mod wire;

#[cfg(feature = "client")]
pub use config::{OPENAI_BASE_URL, OpenAiConfig};
#[cfg(feature = "client")]
pub use embedder::{OpenAiEmbedder, OpenAiEmbedderConfig};
#[cfg(feature = "client")]
pub use encode::{EncodeOptions, MaxTokensField, ServiceTier, StructuredOutput};
#[cfg(feature = "client")]
pub use loomflow_support_model::{ApiKey, ClientConfig, CountTokens, EstimateTokens, Timeouts};
#[cfg(feature = "client")]
pub use model::OpenAiModel;
#[cfg(feature = "tiktoken")]
pub use tiktoken::TiktokenTokens;

pub mod codec {
    //! The half without I/O: requests as bodies, and bodies as replies.

    pub use crate::encode::{EncodeOptions, MaxTokensField, ServiceTier, StructuredOutput, encode};
    pub use crate::errors::read_error;
    pub use crate::plain::PlainDecoder;
    pub use crate::stream::StreamDecoder;
}
