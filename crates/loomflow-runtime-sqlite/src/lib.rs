//! LoomFlow's durable approvals in one SQLite file.

#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]

mod approvals;
mod config;
mod erase;
mod grants;
mod requests;
mod schema;

pub use approvals::SqliteApprovals;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use config::Fault;
pub use config::SqliteApprovalsConfig;
pub use loomflow_support_sql::sqlite::Durability;
