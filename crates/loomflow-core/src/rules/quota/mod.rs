//! The arithmetic of a ledger, as pure functions: what a cap leaves, what a hold keeps aside, what a window forgets.
//!
//! A ledger brings counters and holds in and writes back what changed; nothing here does I/O or reads a clock, so every
//! ledger that can call it judges alike. One that must compute on its server (a script in Redis) takes the numbers from
//! [`Ask`] and [`Bounds`] and is held to the rest by the same suite.

mod account;
mod amounts;
mod books;
mod bounds;
mod cell;
mod ids;
mod period;
#[cfg(test)]
mod tests;

pub use account::{Account, HoldRecord, HoldState, RunCell};
pub use amounts::{Amounts, Totals, micros};
pub use books::Books;
pub use bounds::{Ask, Bounds, CAPS};
pub use cell::Cell;
pub use ids::HoldIds;
pub use period::Periods;
