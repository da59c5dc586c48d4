//! What the suite does not ask: equal answers with the rules in core, several processes, crashes, networks that fail, and what lies in
//! the server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "ledger/equal.rs"]
mod equal;
#[path = "ledger/faults.rs"]
mod faults;
#[path = "ledger/keys.rs"]
mod keys;
#[path = "ledger/leases.rs"]
mod leases;
#[path = "ledger/outage.rs"]
mod outage;
#[path = "ledger/processes.rs"]
mod processes;
