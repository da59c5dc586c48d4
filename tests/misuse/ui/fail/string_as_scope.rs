//! Passing a user's name where a scope is due.

use loomflow_core::{MemoryBlock, MemoryStore, Owned, Result, Scope};

pub async fn blocks(store: &dyn MemoryStore, _scope: &Scope) -> Result<Vec<Owned<MemoryBlock>>> {
    store.blocks("alice").await
}

fn main() {}
