//! SQLite: one file, one writer that commits in groups, and readers beside it. For every store that keeps a file.

mod config;
mod database;
mod file;
mod migrate;
mod writer;

pub use config::defaults;
pub use database::Database;
pub use file::{Durability, SqliteFile};
pub use migrate::Schema;

use loomflow_core::Error;

/// What messages call the server.
pub const SERVER: &str = "SQLite";

/// What a job of [`Database::write`] turns an error of the database into.
pub fn failed(operation: &'static str) -> impl Fn(sqlx::Error) -> Error + Copy {
    move |error| crate::store_error(error, SERVER, operation)
}
