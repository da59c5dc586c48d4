//! What the suite cannot ask of every memory: row-level security, schemas, faults of the server, two processes' pools.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod concurrency;
mod faults;
mod nearest;
mod oracle;
mod schema;
#[cfg(feature = "testing")]
mod walls;
