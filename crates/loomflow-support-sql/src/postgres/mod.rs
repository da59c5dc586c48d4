//! PostgreSQL: a pool whose connections act as the application's role, transactions that row-level security binds to one
//! partition, and migrations that build it so.
//!
//! The role owns nothing, is no superuser and cannot bypass row-level security; every table enforces it even on its owner.
//! [`Pool::connect`] refuses a database where any of that does not hold.

mod check;
mod component;
mod config;
mod migrate;
mod pool;
mod settings;
mod several;
mod transaction;

pub use component::{Component, Policy, Table};
pub use config::defaults;
pub use migrate::migrate;
pub use pool::{Pool, connect_as_owner};
pub use settings::PgSettings;
pub use several::{LISTED, NAMESPACE, PAST, Several};
pub use transaction::{Access, Transaction};

use loomflow_core::Error;

/// What errors call the server.
pub const SERVER: &str = "PostgreSQL";

/// What an error of a statement means, as [`store_error`](crate::store_error) says.
pub fn failed(operation: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |error| crate::store_error(error, SERVER, operation)
}

/// Whether the server undid a transaction because of others (a deadlock, a failure to serialise): done again, it can work.
#[must_use]
pub fn is_undone(error: &Error) -> bool {
    use std::error::Error as _;
    let code =
        error.source().and_then(|e| e.downcast_ref::<crate::error::Refused>()).map(|refused| &*refused.code);
    matches!(code, Some("40001" | "40P01"))
}
