//! placeholder
#![forbid(unsafe_code)]

pub mod approvals;
pub mod audit;
mod case;
pub mod doubles;
mod fixture;
pub mod ledger;
pub mod memory;
pub mod naughty;
mod plant;
pub mod runtime;
pub mod tool_cache;

#[doc(hidden)]
pub use case::run_test;
pub use case::{Case, CaseFuture, IntoHarness, Outcome, Unavailable, Verdict};
pub use plant::{Plant, PlantFn};
