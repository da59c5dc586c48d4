//! Recalling without saying whose memory it is.

use loomflow_core::{EpisodeMatch, MemoryStore, Owned, RecallQuery, Result, Scope};

pub async fn search(
    store: &dyn MemoryStore,
    _scope: &Scope,
    query: &RecallQuery,
) -> Result<Vec<Owned<EpisodeMatch>>> {
    store.recall(query).await
}

fn main() {}
