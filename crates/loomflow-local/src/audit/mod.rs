//! In-process audit: a chained, tamper-evident log in memory.

mod log;

pub use log::InMemoryAuditLog;
