//! An embedder that bills: hashed vectors at a price in words, on the same invoice as the model.

use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{AdmittedEmbed, Embedded, Embedder, Error, ErrorKind, Price, Result, RunContext, Usage};

use crate::population::Population;
use crate::provider::Invoice;
use crate::provider::metered::words;
use crate::watch::{Channel, Watch};

/// Bills what it is sent and lets another embedder do the work.
#[derive(Debug)]
pub struct MeteredEmbedder<E> {
    inner: E,
    people: Arc<Population>,
    watch: Arc<Watch>,
    invoice: Arc<Invoice>,
}

impl<E: Embedder> MeteredEmbedder<E> {
    /// Bills to `invoice` what `inner` embeds.
    #[must_use]
    pub fn new(inner: E, people: Arc<Population>, watch: Arc<Watch>, invoice: Arc<Invoice>) -> Self {
        Self { inner, people, watch, invoice }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<E: Embedder> Embedder for MeteredEmbedder<E> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn dimensions(&self) -> usize {
        self.inner.dimensions()
    }

    fn price(&self) -> Option<Price> {
        self.inner.price()
    }

    // What core is told; the invoice counts with code of its own.
    fn count_tokens(&self, text: &str) -> u64 {
        text.split_ascii_whitespace().count() as u64
    }

    async fn embed(&self, ctx: &RunContext, call: AdmittedEmbed) -> Result<Embedded> {
        let tenant = self
            .people
            .place(ctx.user_id())
            .ok_or_else(|| Error::new(ErrorKind::Internal, "an embedding for a tenant nobody knows"))?;
        let mut received = 0;
        for text in call.texts() {
            received += words(text.as_bytes());
            self.watch.look(tenant, Channel::Embedding, text.as_bytes());
        }
        self.invoice.embedding_arrived();
        self.invoice.received(tenant, received);
        tokio::task::yield_now().await;
        let done = self.inner.embed(ctx, call).await?;
        Ok(Embedded::new(done.vectors, Some(Usage::new(received, 0))))
    }
}
