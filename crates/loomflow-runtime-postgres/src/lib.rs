//! LoomFlow's durable approvals on PostgreSQL.
//!
#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod approvals;
mod config;
mod erase;
mod grants;
mod query;
mod requests;
mod schema;

pub use approvals::PostgresApprovals;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use config::Fault;
pub use config::PostgresApprovalsConfig;
