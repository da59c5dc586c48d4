#![doc = include_str!("docs.md")]
#![forbid(unsafe_code)]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

mod calls;
mod encode;
mod errors;
mod fold;
mod plain;
mod stream;
mod strict;
mod usage;
mod wire;

pub mod codec {
    //! The half without I/O: requests as bodies, and bodies as replies.

    pub use crate::encode::{EncodeOptions, MaxTokensField, ServiceTier, StructuredOutput, encode};
    pub use crate::errors::read_error;
    pub use crate::plain::PlainDecoder;
    pub use crate::stream::StreamDecoder;
}
