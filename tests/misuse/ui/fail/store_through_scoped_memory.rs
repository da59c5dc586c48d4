//! Reaching the unscoped store through a tenant's own memory.

use loomflow_core::{MemoryProfile, Result, ScopedMemory};

pub async fn reach(mine: &ScopedMemory) -> Result<MemoryProfile> {
    mine.services.memory.profile().await
}

fn main() {}
