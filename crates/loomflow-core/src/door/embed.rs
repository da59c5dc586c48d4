//! Embeddings, through the same gate as every other model call.

use std::sync::Arc;
use std::time::Duration;

use crate::door::guarded;
use crate::door::model::{Called, Outcome, RecordPromise, request_id, reserve, took_no_order};
use crate::door::rate::admit_call;
use crate::error::Result;
use crate::memory::Embedding;
use crate::model::{AdmittedEmbed, EmbedPurpose, Embedder, embeddings};
use crate::run::RunState;
use crate::usage::Usage;

/// The longest a vector may take: recall by words needs none.
const EMBED_LIMIT: Duration = Duration::from_secs(10);

/// The vector of `text`, or `None` without an embedder.
///
/// Comfort fails open, visibly: a refused, failed or slow embedding leaves recall to words alone, and is counted.
pub(crate) async fn embed(run: &Arc<RunState>, text: &Arc<str>, purpose: EmbedPurpose) -> Option<Embedding> {
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

/// The vectors of texts, in their order: counted, reserved, made in one call, settled and recorded.
async fn admitted(
    run: &Arc<RunState>,
    embedder: &dyn Embedder,
    texts: Vec<Arc<str>>,
    purpose: EmbedPurpose,
) -> Result<Vec<Embedding>> {
    let (asked, input) = (texts.len(), texts.iter().map(|text| embedder.count_tokens(text)).sum());
    let pass = admit_call(run, input).await?;
    let reservation = match reserve(run, input, 0, 0, embedder.price()).await {
        Ok(reservation) => reservation,
        Err(error) => {
            pass.unused(run).await;
            return Err(error);
        }
    };
    let slot = run.slot();
    let reservation = reservation.sent().await?;
    let promise = RecordPromise::new(run.clone(), slot, Called::Embedding, input, embedder.price());
    let made = embedder.embed(&run.ctx, AdmittedEmbed::seal(texts, purpose)).await;
    let mut outcome = Outcome { status: "ok", ..Outcome::default() };
    let (usage, closing) = match &made {
        Ok(done) => {
            outcome.estimated = done.usage.is_none();
            reservation.settle_and_tell(done.usage)
        }
        Err(error) => {
            outcome.status = error.kind().as_str();
            outcome.request_id = request_id(error);
            outcome.estimated = !took_no_order(error);
            if outcome.estimated {
                reservation.settle_and_tell(None)
            } else {
                (Usage::default(), reservation.refund())
            }
        }
    };
    run.used(usage);
    let settled = promise.keep(closing, usage, outcome).await;
    pass.used(run, &usage).await;
    settled?;
    embeddings(embedder, asked, made?)
}
