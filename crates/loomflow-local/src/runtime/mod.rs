//! In-process runtime: session leases, and a journal where one is wanted.

mod inproc;
mod table;

pub use inproc::{InMemoryJournalStore, InProcRuntime};
