//! What LoomFlow's model adapters share. Application authors do not need it; authors of an adapter do.
//!
//! An adapter is two halves. The *codec* is plain data in and out: it encodes a request and decodes a reply
//! ([`Decode`]), and does no I/O, so that it can be fuzzed and fed at any split of its bytes. The *client* (feature
//! `client`) carries bytes: one TLS provider, bounded bodies, timeouts, keys per call.

#![forbid(unsafe_code)]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod config;
mod decode;
#[cfg(feature = "client")]
mod drive;
mod embed;
#[cfg(feature = "client")]
mod key;
mod list;
pub mod prices;
mod report;
#[cfg(feature = "client")]
mod response;
#[cfg(feature = "client")]
mod retry_after;
#[cfg(any(test, feature = "testing"))]
pub mod splits;
pub mod sse;
#[cfg(feature = "client")]
mod status;
#[cfg(all(test, feature = "client"))]
mod testing;
mod text;
#[cfg(feature = "client")]
mod tls;
mod tokens;

pub use decode::{
    Decode, MAX_ARGUMENT_BYTES, MAX_BODY_BYTES, MAX_EVENT_BYTES, MAX_TOOL_SLOTS, broke_protocol,
};
pub use embed::{EmbedBatches, vectors_in_order};
pub use list::BoundedList;
pub use report::Reported;
pub use text::{MAX_PROVIDER_TEXT, provider_text};
pub use tokens::{CountTokens, EstimateTokens};

#[cfg(feature = "client")]
pub use client::{Auth, HttpClient, Post};
#[cfg(feature = "client")]
pub use config::{ClientConfig, Timeouts};
#[cfg(feature = "client")]
pub use drive::{Asked, reply_stream};
#[cfg(feature = "client")]
pub use key::ApiKey;
#[cfg(feature = "client")]
pub use response::Response;
#[cfg(feature = "client")]
pub use status::ReadError;
