//! The embedder: texts in batches, vectors back in their order.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{AdmittedEmbed, Embedded, Embedder, Error, ErrorKind, Price, Result, RunContext};
use loomflow_support_model::{ApiKey, Auth, ClientConfig, EmbedBatches, EstimateTokens, HttpClient, Post};
use serde::Serialize;

use crate::config::{OPENAI_BASE_URL, check_header_name};
use crate::errors::read_error;
use crate::model::authenticate;
use crate::price::{listed, price_in};
use crate::vectors::{self, MAX_TEXTS};

/// The most texts of one request, unless configured otherwise.
const BATCH: usize = 256;
/// The most tokens of one request, by estimate. OpenAI's own limit is 300,000.
const BATCH_TOKENS: u64 = 250_000;
/// The most bytes of an answer for each component in digits, for each vector's frame, and for the frame around all.
const COMPONENT_BYTES: usize = 24;
const VECTOR_BYTES: usize = 512;
const ANSWER_BYTES: usize = 64 << 10;

/// An embedder's configuration. Every setting but the model's name, its size and the key has a default.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenAiEmbedderConfig {
    /// The model's name.
    pub name: String,
    /// How many components its vectors have.
    pub dimensions: usize,
    /// Whose key the calls are made with.
    pub api_key: ApiKey,
    /// Where the server is and how long it may take.
    pub client: ClientConfig,
    /// The name of a header that takes the key alone; `None` sends it as a bearer token.
    pub key_header: Option<&'static str>,
    /// Asks the provider to shorten its vectors to `dimensions`; only some models can.
    pub shorten: bool,
    /// Asks for vectors in base64, a third of their size in digits. Answers in digits are read, too.
    pub base64: bool,
    /// The most texts of one request.
    pub batch: usize,
    /// The price, instead of the table's.
    pub price: Option<Price>,
    /// The vendor in the price table; `None` takes the one whose list prices hold at the server's address, if any.
    pub vendor: Option<String>,
}

impl OpenAiEmbedderConfig {
    loomflow_support_model::client_settings!();

    /// The model `name` at OpenAI, whose vectors have `dimensions` components.
    #[must_use]
    pub fn new(name: impl Into<String>, dimensions: usize, api_key: impl Into<ApiKey>) -> Self {
        Self {
            name: name.into(),
            dimensions,
            api_key: api_key.into(),
            client: ClientConfig::new(OPENAI_BASE_URL),
            key_header: None,
            shorten: false,
            base64: true,
            batch: BATCH,
            price: None,
            vendor: None,
        }
    }

    /// Sends the key alone in a header of this name, in lower case.
    #[must_use]
    pub fn with_key_header(mut self, name: &'static str) -> Self {
        self.key_header = Some(name);
        self
    }

    /// Asks the provider to shorten its vectors to the configured dimensions.
    #[must_use]
    pub fn with_shortening(mut self, yes: bool) -> Self {
        self.shorten = yes;
        self
    }

    /// Sets whether vectors are asked for in base64; some servers know only digits.
    #[must_use]
    pub fn with_base64(mut self, yes: bool) -> Self {
        self.base64 = yes;
        self
    }

    /// Sets the most texts of one request.
    #[must_use]
    pub fn with_batch(mut self, texts: usize) -> Self {
        self.batch = texts;
        self
    }

    /// Sets the price, instead of the table's. [`Price::default`] is free.
    #[must_use]
    pub fn with_price(mut self, price: Price) -> Self {
        self.price = Some(price);
        self
    }

    /// Sets the vendor under which the price table knows this model.
    #[must_use]
    pub fn with_vendor(mut self, vendor: impl Into<String>) -> Self {
        self.vendor = Some(vendor.into());
        self
    }

    /// The embedder.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for an empty name, no dimensions, an empty batch, and an unusable base URL, certificate, proxy or
    /// header.
    pub fn build(self) -> Result<OpenAiEmbedder> {
        if self.name.trim().is_empty() || self.dimensions == 0 || !(1..=MAX_TEXTS).contains(&self.batch) {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "an embedder needs a model's name, at least one dimension, and 1 to {MAX_TEXTS} texts a batch"
                ),
            ));
        }
        if let Some(name) = self.key_header {
            check_header_name(name)?;
        }
        let client = HttpClient::new("openai", &self.client)?;
        let listed = listed(self.vendor.as_deref().or(client.list_vendor()), &self.name);
        let price = self.price.or_else(|| price_in(listed, None));
        // A shortened vector is another model's as far as comparing goes.
        let label =
            if self.shorten { format!("{}@{}", self.name, self.dimensions) } else { self.name.clone() };
        Ok(OpenAiEmbedder { client, label, price, config: self })
    }
}

/// Embeds with OpenAI's `/embeddings`, or with any server's that speaks the same. It keeps nothing of any tenant.
///
/// More texts than one request takes are sent in several, one after the other.
pub struct OpenAiEmbedder {
    client: HttpClient,
    label: String,
    price: Option<Price>,
    config: OpenAiEmbedderConfig,
}

#[derive(Serialize)]
struct Body<'t> {
    model: &'t str,
    input: Vec<&'t str>,
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
}

impl OpenAiEmbedder {
    /// A configuration, to be changed and built.
    #[must_use]
    pub fn builder(
        name: impl Into<String>,
        dimensions: usize,
        api_key: impl Into<ApiKey>,
    ) -> OpenAiEmbedderConfig {
        OpenAiEmbedderConfig::new(name, dimensions, api_key)
    }

    /// The largest answer to a request with so many texts.
    fn max_bytes(&self, texts: usize) -> usize {
        let vector = self.config.dimensions.saturating_mul(COMPONENT_BYTES).saturating_add(VECTOR_BYTES);
        texts.saturating_mul(vector).saturating_add(ANSWER_BYTES)
    }

    async fn part(&self, ctx: &RunContext, auth: Auth, texts: &[Arc<str>]) -> Result<Embedded> {
        let config = &self.config;
        let body = Body {
            model: &config.name,
            input: texts.iter().map(|text| &**text).collect(),
            encoding_format: if config.base64 { "base64" } else { "float" },
            dimensions: config.shorten.then_some(config.dimensions),
        };
        let body = serde_json::to_vec(&body).map_err(|e| {
            Error::new(ErrorKind::Internal, "the texts could not be written as JSON").with_source(e)
        })?;
        let post = Post::new("/embeddings", auth, body).with_header("accept", "application/json");
        let mut response = self.client.post(ctx, post).await?.success(read_error).await?;
        let answer = response.read_all(self.max_bytes(texts.len())).await?;
        let part = vectors::read(&answer, texts.len(), config.dimensions);
        part.map_err(|error| response.tell(error))
    }

    async fn all(&self, ctx: &RunContext, call: &AdmittedEmbed) -> Result<Embedded> {
        let auth = authenticate(self.config.key_header, self.config.api_key.resolve(ctx).await?);
        let mut batches = EmbedBatches::new(call.texts(), self.config.batch, BATCH_TOKENS);
        while let Some(batch) = batches.next_batch() {
            batches.add(self.part(ctx, auth.clone(), batch).await)?;
        }
        Ok(batches.finish())
    }
}

#[async_trait]
impl Embedder for OpenAiEmbedder {
    fn name(&self) -> &str {
        &self.label
    }

    fn dimensions(&self) -> usize {
        self.config.dimensions
    }

    fn price(&self) -> Option<Price> {
        self.price
    }

    fn count_tokens(&self, text: &str) -> u64 {
        EstimateTokens::text(text).saturating_add(2)
    }

    async fn embed(&self, ctx: &RunContext, call: AdmittedEmbed) -> Result<Embedded> {
        self.all(ctx, &call).await.map_err(|error| error.with_operation("openai.embed"))
    }
}

impl fmt::Debug for OpenAiEmbedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenAiEmbedder({} at {:?})", self.label, self.client)
    }
}
