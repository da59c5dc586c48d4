//! What the suite cannot ask of every memory: row-level security, schemas, faults of the server, two processes' pools.

#[path = "../support.rs"]
mod support;

mod concurrency;
mod faults;
mod nearest;
mod oracle;
mod schema;
#[cfg(feature = "testing")]
mod walls;
