//! Embeddings, through the same gate as every other model call.

use std::sync::Arc;
use std::time::Duration;

use crate::door::guarded;
use crate::door::model::reserve;
use crate::memory::Embedding;
use crate::model::{AdmittedEmbed, one_embedding};
use crate::run::RunState;

/// The longest a vector may take: recall by words needs none.
const EMBED_LIMIT: Duration = Duration::from_secs(10);

/// The vector of `text`, or `None` without an embedder.
///
/// Comfort fails open, visibly: a refused, failed or slow embedding leaves recall to words alone, and is counted.
pub(crate) async fn embed(run: &RunState, text: &Arc<str>) -> Option<Embedding> {
    let embedder = run.agent.embedder.as_ref()?;
    if text.trim().is_empty() {
        return None;
    }
    match Box::pin(guarded("the embedder", EMBED_LIMIT, embed_one(run, &**embedder, text))).await {
        Ok(embedding) => Some(embedding),
        Err(error) => {
            run.ctx.count("loom.embedding.errors", 1, &[("error", error.kind().as_str())]);
            None
        }
    }
}

async fn embed_one(
    run: &RunState,
    embedder: &dyn crate::model::Embedder,
    text: &Arc<str>,
) -> crate::error::Result<Embedding> {
    let input = embedder.count_tokens(text);
    let reservation = reserve(run, input, 0, 0, embedder.price()).await?;
    let reservation = reservation.sent().await?;
    match embedder.embed(&run.ctx, AdmittedEmbed::seal(vec![text.clone()])).await {
        Ok(done) => {
            let (usage, closing) = reservation.settle_and_tell(done.usage);
            run.totals().usage += usage;
            closing.await?;
            one_embedding(embedder, done)
        }
        Err(error) => {
            let (usage, closing) = reservation.settle_and_tell(None);
            run.totals().usage += usage;
            closing.await?;
            Err(error)
        }
    }
}
