//! What the suite does not ask: two clients, crashes, networks that fail, and equal answers with and without RediSearch.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "store/clients.rs"]
mod clients;
mod common;
#[path = "store/erasure.rs"]
mod erasure;
#[path = "store/faults.rs"]
mod faults;
#[path = "store/isolation.rs"]
mod isolation;
#[path = "store/search.rs"]
mod search;
