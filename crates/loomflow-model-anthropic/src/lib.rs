//! Claude models, for LoomFlow.
//!
#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

mod blocks;
#[cfg(feature = "client")]
mod config;
mod encode;
mod errors;
mod families;
#[cfg(feature = "client")]
mod model;
mod plain;
#[cfg(feature = "client")]
mod price;
mod schema;
mod settings;
mod stream;
#[cfg(feature = "client")]
mod tokens;
mod usage;

#[cfg(feature = "client")]
pub use config::{AnthropicConfig, AuthStyle};
#[cfg(feature = "client")]
pub use loomflow_support_model::{ApiKey, CountTokens, EstimateTokens, Timeouts};
#[cfg(feature = "client")]
pub use model::AnthropicModel;
pub use settings::{CacheTtl, Effort, ServiceTier, Thinking};

/// The wire format by itself: plain data in and out, no I/O.
pub mod codec {
    pub use crate::encode::encode;
    pub use crate::errors::{error_of_body, read_error};
    pub use crate::plain::{MAX_PLAIN_BYTES, PlainDecoder};
    pub use crate::settings::Settings;
    pub use crate::stream::StreamDecoder;
}
