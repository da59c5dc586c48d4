//! What backends on Redis share, so that none of it is written twice: the connection, the form of keys, and what a server's
//! errors mean.
//!
//! - [`Link`]: one multiplexed connection behind a time limit, one retry where it is safe, and a circuit breaker.
//! - [`Keys`]: where a partition becomes the name of a key; nothing that a user chose is part of one.
//! - [`Script`]: a Lua script, sent once and named by its digest from then on.

#![forbid(unsafe_code)]

mod config;
mod error;
mod keys;
mod link;

pub use config::defaults;
pub use error::store_error;
pub use keys::{Keys, TenantKeys};
pub use link::{Link, LinkOptions};
pub use redis::Script;
