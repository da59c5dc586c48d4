//! What the cross-crate tests in `tests/` share: a model double that keeps its own invoice, where the real servers
//! are, servers to kill, and small helpers.

#![forbid(unsafe_code)]

pub mod approvals;
pub mod differential;
mod docs;
pub mod double;
pub mod fixture;
pub mod own;
pub mod provider;
pub mod services;
pub mod worker;
