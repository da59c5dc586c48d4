//! The client half against servers of bytes.

#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod calls;
mod common;
mod tls;
