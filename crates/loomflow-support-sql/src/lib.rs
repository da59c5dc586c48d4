//! What backends on SQL databases share, so that none of it is written twice: migrations, errors, and for each database
//! its way of connecting and of writing.

#![forbid(unsafe_code)]

mod damage;
mod error;
mod migration;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "sqlite")]
pub mod sqlite;
mod wakes;
mod window;

pub use damage::{Damage, hex};
pub use error::store_error;
pub use migration::{Migration, pending};
pub use wakes::Wakes;
pub use window::window_of;
