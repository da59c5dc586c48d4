//! What the cross-crate tests in `tests/` share: a model double that keeps its own invoice, and small helpers.

#![forbid(unsafe_code)]

mod docs;
pub mod double;
pub mod fixture;
pub mod provider;
pub mod services;
