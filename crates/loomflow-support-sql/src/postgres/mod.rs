//! PostgreSQL: a pool whose connections act as the application's role, transactions that row-level security binds to one
//! partition, and migrations that build it so.
//!
//! The role owns nothing, is no superuser and cannot bypass row-level security; every table enforces it even on its owner.
//! [`Pool::connect`] refuses a database where any of that does not hold.

mod check;
mod component;
mod migrate;
mod pool;
mod settings;
mod transaction;

pub use component::{Component, Policy, Table};
pub use migrate::migrate;
pub use pool::{Pool, connect_as_owner};
pub use settings::PgSettings;
pub use transaction::{Access, Transaction};

/// What errors call the server.
pub const SERVER: &str = "PostgreSQL";

/// What an error of a statement means, as [`store_error`](crate::store_error) says.
pub fn failed(operation: &'static str) -> impl Fn(sqlx::Error) -> loomflow_core::Error {
    move |error| crate::store_error(error, SERVER, operation)
}
