//! What LoomFlow's model adapters share. Application authors do not need it; authors of an adapter do.
//!
//! An adapter is two halves. The *codec* is plain data in and out: it encodes a request and decodes a reply
//! ([`Decode`]), and does no I/O, so that it can be fuzzed and fed at any split of its bytes. The *client* (feature
//! `client`) carries bytes: one TLS provider, bounded bodies, timeouts, keys per call.

#![forbid(unsafe_code)]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

mod decode;
#[cfg(any(test, feature = "testing"))]
pub mod splits;
pub mod sse;
mod tokens;

pub use decode::{
    Decode, MAX_ARGUMENT_BYTES, MAX_BODY_BYTES, MAX_EVENT_BYTES, MAX_TOOL_SLOTS, broke_protocol,
};
pub use tokens::{CountTokens, EstimateTokens};
