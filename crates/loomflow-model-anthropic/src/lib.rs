#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

mod blocks;
mod encode;
mod errors;
mod families;
mod plain;
mod schema;
mod settings;
mod stream;
mod usage;

pub use settings::{CacheTtl, Effort, ServiceTier, Thinking};

/// The wire format by itself: plain data in and out, no I/O.
pub mod codec {
    pub use crate::encode::encode;
    pub use crate::errors::{error_of_body, read_error};
    pub use crate::plain::{MAX_PLAIN_BYTES, PlainDecoder};
    pub use crate::settings::Settings;
    pub use crate::stream::StreamDecoder;
}
