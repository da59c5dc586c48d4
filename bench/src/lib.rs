//! The tenant load driver: many tenants on one shared agent, measured, and watched for leaks while they run.
//!
//! [`system`] assembles what is measured and, with [`backends`], is the only room that knows concrete backends. [`provider`] is the model at
//! the other end, which keeps an invoice of its own. [`fixed`] does the work that other frameworks are measured on;
//! [`full`] does everything at once and probes isolation while it does. The binary `tenants` is the door.

#![forbid(unsafe_code)]

pub mod backends;
pub mod baseline;
pub mod canary;
pub mod config;
pub mod draw;
#[cfg(feature = "fault-injection")]
mod fault;
pub mod fixed;
pub mod full;
pub mod html;
pub mod machine;
pub mod meter;
pub mod plan;
pub mod population;
pub mod progress;
pub mod provider;
pub mod quality;
pub mod report;
pub mod stats;
pub mod stores;
pub mod system;
pub mod table;
pub mod watch;
pub mod witness;
