//! The floor: what the same disk or the same server does with the same rows, when nobody asks what they mean. Measured in
//! the same run, right after the store, with as many writers and for as long.

#[cfg(feature = "memory-postgres")]
mod postgres;
#[cfg(feature = "memory-redis")]
mod redis;
#[cfg(feature = "memory-sqlite")]
mod sqlite;

use std::fmt::Display;

use loomflow_core::{Error, ErrorKind, Result};

use super::Args;
use super::report::Floor;

/// The floor of the store, where it can be had. The rows are like those that were just written.
pub(super) async fn measure(args: &Args) -> Result<Option<Floor>> {
    let scheme = args.memory.split(':').next().unwrap_or_default();
    match scheme {
        #[cfg(feature = "memory-sqlite")]
        "sqlite" => sqlite::measure(args).await.map(Some),
        #[cfg(feature = "memory-postgres")]
        "postgres" | "postgresql" => postgres::measure(args).await.map(Some),
        #[cfg(feature = "memory-redis")]
        "redis" => redis::measure(args).await.map(Some),
        _ => Ok(None),
    }
}

/// What failed, in words that hold no URL.
#[cfg_attr(not(feature = "_floor"), allow(dead_code, reason = "a build without stores has no floors"))]
fn failed(what: impl Display) -> Error {
    Error::new(ErrorKind::Internal, format!("the floor cannot be measured: {what}"))
}
