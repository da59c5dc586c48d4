//! What the cross-crate tests in `tests/` share: a model double that keeps its own invoice, where the real servers
//! are, servers to kill, and small helpers.

#![forbid(unsafe_code)]

#[cfg(feature = "stores")]
pub mod chaos;
pub mod differential;
mod docs;
pub mod double;
pub mod fixture;
#[cfg(feature = "stores")]
pub mod killing;
pub mod ledger_oracle;
pub mod own;
#[cfg(feature = "stores")]
pub mod place;
pub mod provider;
#[cfg(feature = "stores")]
pub mod schedules;
pub mod services;
pub mod worker;
