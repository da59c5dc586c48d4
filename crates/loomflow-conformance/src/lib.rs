//! The suites that a LoomFlow backend author runs, and the doubles that an application author tests with.
//!
//! # For a backend author
//!
//! Every bullet in the documentation of a LoomFlow trait is a case here. You write one function that opens your backend,
//! and one line; the macro turns the suite's list into one `#[test]` per case. Each case brings its own tokio runtime
//! and draws its own random namespace, and none wipes anything, so the suites can run on a shared server.
//!
//! 1. In `tests/conformance.rs`, write an `async fn` that returns a fresh harness: [`memory::Harness`],
//!    [`audit::Harness`], [`approvals::Harness`], [`runtime::Harness`], [`tool_cache::Harness`], or, for a ledger, an
//!    `async fn` from a `BudgetConfig` to a [`ledger::Instance`] with counters of its own. Where a server may be missing,
//!    return `Result<_, Unavailable>`: [`Unavailable`] skips the suite, loudly.
//! 2. Give the harness its *plant hook* (below), and a ledger its [`doubles::ManualClock`] if it can take a clock.
//! 3. Call [`memory!`](crate::memory!), [`ledger!`](crate::ledger!), [`audit!`](crate::audit!),
//!    [`approvals!`](crate::approvals!), [`runtime!`](crate::runtime!) or [`tool_cache!`](crate::tool_cache!) with the
//!    path of that function. For two backends in one file, call the macro once in each of two modules.
//!
//! ```
//! use std::sync::Arc;
//!
//! use loomflow_conformance::{Unavailable, memory};
//! # mod my_backend {
//! #     pub async fn connect(_: &str) -> Result<loomflow_core::NoMemory, String> {
//! #         Ok(loomflow_core::NoMemory::default())
//! #     }
//! #     pub async fn insert_raw(
//! #         _: &loomflow_core::Owner, _: &loomflow_core::Owner, _: loomflow_conformance::memory::Planted,
//! #     ) -> loomflow_core::Result<()> { Ok(()) }
//! # }
//!
//! async fn fresh() -> Result<memory::Harness, Unavailable> {
//!     let store = my_backend::connect("127.0.0.1:5432").await.map_err(Unavailable::new)?;
//!     Ok(memory::Harness::new(Arc::new(store)).with_plant(|order| async move {
//!         // By raw means: filed under the key of `order.scope`, and saying that it belongs to `order.foreign`.
//!         my_backend::insert_raw(order.scope.owner(), &order.foreign, order.record).await
//!     }))
//! }
//!
//! loomflow_conformance::memory!(fresh);
//! # fn main() {}
//! ```
//!
//! # For an author of a model adapter
//!
//! [`models!`](crate::models!) runs an adapter that speaks HTTP against a server which does what a script says: cut at every byte,
//! split at every byte, stalled, endless, redirected, answered with a page. You write a [`models::Wire`]: how the adapter is
//! built for an address, and what the provider's replies look like as bytes. What must be charged is counted by the suite.
//! For faults of your wire alone there is [`doubles::ScriptedServer`] itself, and [`doubles::PeakMemory`].
//!
//! # Of every suite
//!
//! ## Outcomes
//!
//! A case passes, fails (it panics, with a sentence), or is *unsupported*: the backend declares, by
//! [`Capabilities`](loomflow_core::Capabilities) or by leaving out an optional part, that it does not offer this. That is
//! written to standard error, since a passing test's output would not be seen. **Isolation cases cannot be switched off**:
//! no capability skips them, and one that called itself unsupported would fail.
//!
//! ## The plant hook
//!
//! A query without its filter is the defect that matters most, and it cannot be provoked from outside a correct backend.
//! So the suite asks you to plant one: given a [`Plant`], write, by raw means, a row that is filed under the partition
//! key of `scope` and whose stored owner is `foreign`. The case then reads as `scope` and expects `isolation_violation`,
//! as core's tripwire reports it: either your backend answers with that error, or it returns the row with the owner
//! *decoded from the row*. A backend that fills the owner in from the argument fails, and so does one that drops the row
//! in silence, because an operator would never hear of it. (Approvals and runs that are looked up by id may also answer
//! `not_found`.) A memory, audit, approvals or runtime harness without the hook fails, with these instructions.
//!
//! - A server: use its client with an administrator's credentials, past row-level security.
//! - In process: a `#[doc(hidden)] pub fn plant_for_conformance(&self, filed_under: &Owner, owner: &Owner, record: ..)` on
//!   the store; share the store between harness and hook with an `Arc`.
//! - A file: append the row with the store's own encoder.
//! - Second walls that refuse the row at insertion: switch them off for the planting connection alone.
//!
//! ## A matrix
//!
//! Each suite's list is also data: [`memory::cases`] and its siblings. [`Case::verdict`] runs one without panicking.
//!
//! ## Names
//!
//! [`naughty`] has the hostile ids the suites use; use them in your own tests.
//!
//! # For an application author
//!
//! [`doubles`] has a clock to turn, a model that holds its calls until as many as you want are in flight and keeps a
//! provider's invoice, a telemetry sink, a ledger and an audit log that record, a secret store with a value per tenant, a
//! provider's server that does what a script says, and a proxy that cuts, stalls and delays what goes to a real server.

#![forbid(unsafe_code)]

pub mod approvals;
pub mod audit;
mod case;
pub mod doubles;
mod fixture;
pub mod ledger;
pub mod memory;
pub mod models;
pub mod naughty;
mod plant;
pub mod rate_limit;
pub mod runtime;
pub mod tool_cache;

#[doc(hidden)]
pub use case::run_test;
pub use case::{Case, CaseFuture, IntoHarness, Outcome, Unavailable, Verdict};
pub use plant::{Plant, PlantFn};
