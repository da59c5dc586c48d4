//! What the suite cannot ask of every ledger: row-level security, schemas, faults of the server, two processes' pools.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod concurrency;
mod damage;
mod fairness;
mod faults;
mod keeping;
mod schema;
mod walls;
mod windows;
