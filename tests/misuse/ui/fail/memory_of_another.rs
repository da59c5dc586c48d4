//! Asking a tenant's own memory about another tenant.

use loomflow_core::{MemoryProfile, Result, ScopedMemory, UserId};

pub async fn ask(mine: &ScopedMemory, _bob: &UserId) -> Result<MemoryProfile> {
    mine.profile(_bob).await
}

fn main() {}
