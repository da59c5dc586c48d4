//! Embedding texts that no ledger has counted.

use std::sync::Arc;

use loomflow_core::{AdmittedEmbed, Embedded, Embedder, Result, RunContext};

pub async fn embed(
    embedder: &dyn Embedder,
    ctx: &RunContext,
    _texts: Vec<Arc<str>>,
    _admitted: AdmittedEmbed,
) -> Result<Embedded> {
    embedder.embed(ctx, _texts).await
}

fn main() {}
