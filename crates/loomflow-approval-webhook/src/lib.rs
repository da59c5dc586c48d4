//! Requests for approval go to a webhook, and may be answered there.
//!
#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod config;
mod handler;
mod signature;

pub use config::WebhookConfig;
pub use handler::WebhookApprovals;
pub use signature::{IDEMPOTENCY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, sign, verify};
