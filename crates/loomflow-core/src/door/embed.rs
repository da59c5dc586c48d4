//! Embeddings, through the same gate as every other model call.

use std::sync::Arc;
use std::time::Duration;

use crate::door::guarded;
use crate::door::model::{reserve, took_no_order};
use crate::error::Result;
use crate::memory::Embedding;
use crate::model::{AdmittedEmbed, EmbedPurpose, Embedder, embeddings};
use crate::run::RunState;

/// The longest a vector may take: recall by words needs none.
const EMBED_LIMIT: Duration = Duration::from_secs(10);

/// The vector of `text`, or `None` without an embedder.
///
/// Comfort fails open, visibly: a refused, failed or slow embedding leaves recall to words alone, and is counted.
pub(crate) async fn embed(run: &RunState, text: &Arc<str>, purpose: EmbedPurpose) -> Option<Embedding> {
    let embedder = run.agent.embedder.as_ref()?;
    if text.trim().is_empty() {
        return None;
    }
    let asking = admitted(run, &**embedder, vec![text.clone()], purpose);
    match Box::pin(guarded("the embedder", EMBED_LIMIT, asking)).await {
        Ok(mut vectors) => vectors.pop(),
        Err(error) => {
            run.ctx.count("loom.embedding.errors", 1, &[("error", error.kind().as_str())]);
            None
        }
    }
}

/// The vectors of texts, in their order: counted, reserved, made in one call, and settled.
async fn admitted(
    run: &RunState,
    embedder: &dyn Embedder,
    texts: Vec<Arc<str>>,
    purpose: EmbedPurpose,
) -> Result<Vec<Embedding>> {
    let (asked, input) = (texts.len(), texts.iter().map(|text| embedder.count_tokens(text)).sum());
    let reservation = reserve(run, input, 0, 0, embedder.price()).await?;
    let reservation = reservation.sent().await?;
    match embedder.embed(&run.ctx, AdmittedEmbed::seal(texts, purpose)).await {
        Ok(done) => {
            let (usage, closing) = reservation.settle_and_tell(done.usage);
            run.totals().usage += usage;
            closing.await?;
            embeddings(embedder, asked, done)
        }
        Err(error) => {
            let unknown = !took_no_order(&error);
            let closing = if unknown {
                let (usage, closing) = reservation.settle_and_tell(None);
                run.totals().usage += usage;
                closing
            } else {
                reservation.refund()
            };
            closing.await?;
            Err(error)
        }
    }
}
