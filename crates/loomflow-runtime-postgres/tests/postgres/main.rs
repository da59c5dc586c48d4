//! What the suite cannot ask of every store: row-level security, schemas, what another process does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod behaviour;
mod walls;
