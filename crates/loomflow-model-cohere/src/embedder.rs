//! The embedder: texts in batches, vectors back in their order.

use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{AdmittedEmbed, EmbedPurpose, Embedded, Embedder, Price, Result, RunContext};
use loomflow_support_model::prices::{CacheTtl, PriceTable, ServiceTier};
use loomflow_support_model::{ApiKey, Auth, EmbedBatches, EstimateTokens, HttpClient, Post};

use crate::config::CohereConfig;
use crate::wire::{MAX_TEXTS, encode, read, read_error};

const PATH: &str = "/v2/embed";
/// The most tokens of one request, by estimate. The provider's own limit is 128,000.
const MAX_TOKENS: u64 = 100_000;
/// The largest answer: 96 vectors of 1,536 numbers in decimal digits are a quarter of it.
const MAX_BYTES: usize = 16 << 20;
/// What the provider adds to each text.
const AROUND: u64 = 4;

/// Embeds with Cohere's embed API, version 2. It keeps nothing of any tenant.
///
/// More texts than one request takes are sent in several, one after the other.
#[derive(Debug)]
pub struct CohereEmbedder(Parts);

/// What an embedder is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) client: HttpClient,
    pub(crate) api_key: ApiKey,
    pub(crate) model: String,
    /// The model's name, and the size that was asked for.
    pub(crate) label: String,
    pub(crate) dimensions: usize,
    pub(crate) output_dimension: Option<usize>,
    pub(crate) price: Option<Price>,
}

impl CohereEmbedder {
    /// The model of that name at Cohere.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](loomflow_core::ErrorKind::Config) for a model whose vectors are of a size that this version does
    /// not know; [`CohereConfig::with_dimensions`] says it.
    pub fn new(name: impl Into<String>, api_key: impl Into<ApiKey>) -> Result<Self> {
        Self::builder(name, api_key).build()
    }

    /// Sets up the model of that name.
    pub fn builder(name: impl Into<String>, api_key: impl Into<ApiKey>) -> CohereConfig {
        CohereConfig::new(name, api_key)
    }

    pub(crate) fn from_parts(parts: Parts) -> Self {
        Self(parts)
    }

    async fn part(
        &self,
        ctx: &RunContext,
        auth: Auth,
        texts: &[Arc<str>],
        purpose: EmbedPurpose,
    ) -> Result<Embedded> {
        let Parts { client, model, dimensions, output_dimension, .. } = &self.0;
        let body = encode(model, texts, purpose, *output_dimension)?;
        let mut response = client.post(ctx, Post::new(PATH, auth, body)).await?.success(read_error).await?;
        let answer = response.read_all(MAX_BYTES).await?;
        read(&answer, texts.len(), *dimensions).map_err(|error| response.tell(error))
    }

    async fn all(&self, ctx: &RunContext, call: &AdmittedEmbed) -> Result<Embedded> {
        let auth = Auth::bearer(self.0.api_key.resolve(ctx).await?);
        let mut batches = EmbedBatches::new(call.texts(), MAX_TEXTS, MAX_TOKENS);
        while let Some(batch) = batches.next_batch() {
            batches.add(self.part(ctx, auth.clone(), batch, call.purpose()).await)?;
        }
        Ok(batches.finish())
    }
}

#[async_trait]
impl Embedder for CohereEmbedder {
    fn name(&self) -> &str {
        &self.0.label
    }

    fn dimensions(&self) -> usize {
        self.0.dimensions
    }

    fn price(&self) -> Option<Price> {
        self.0.price
    }

    fn count_tokens(&self, text: &str) -> u64 {
        EstimateTokens::text(text).saturating_add(AROUND)
    }

    async fn embed(&self, ctx: &RunContext, call: AdmittedEmbed) -> Result<Embedded> {
        self.all(ctx, &call).await.map_err(|error| error.with_operation("cohere.embed"))
    }
}

/// The list price of a vendor's model, where it is known.
pub(crate) fn price_for(vendor: Option<&str>, model: &str) -> Option<Price> {
    PriceTable::embedded().price(vendor?, model, ServiceTier::Default, CacheTtl::FiveMinutes)
}
