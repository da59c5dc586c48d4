//! The model: encodes a request, sends it as the tenant, and hands the reply on as it comes.

use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{
    AdmittedCall, Error, ErrorKind, Model, ModelCapabilities, ModelRequest, ModelStream, Price, Result,
    RunContext,
};
use loomflow_support_model::{ApiKey, Asked, Auth, CountTokens, HttpClient, Post, reply_stream};

use crate::config::{AnthropicConfig, AuthStyle};
use crate::encode::encode;
use crate::errors::read_error;
use crate::plain::PlainDecoder;
use crate::settings::Settings;
use crate::stream::StreamDecoder;

const PATH: &str = "/v1/messages";

/// A Claude model, or another that a server offers through the Messages API.
///
/// It has no state between calls and no key: each call resolves its own, for its own tenant.
#[derive(Debug)]
pub struct AnthropicModel(Parts);

/// What a model is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) settings: Settings,
    pub(crate) client: Result<HttpClient, Unusable>,
    pub(crate) api_key: ApiKey,
    pub(crate) auth: AuthStyle,
    pub(crate) price: Option<Price>,
    pub(crate) counter: Arc<dyn CountTokens>,
    pub(crate) context_window: Option<u64>,
}

/// Why a model cannot be used, told at each call.
#[derive(Debug)]
pub(crate) struct Unusable {
    kind: ErrorKind,
    message: String,
}

impl Unusable {
    pub(crate) fn because(error: &Error) -> Self {
        Self { kind: error.kind(), message: error.message().to_owned() }
    }

    fn error(&self) -> Error {
        Error::new(self.kind, self.message.clone()).with_retryable(false)
    }
}

impl AnthropicModel {
    /// The model of that name at Anthropic, streamed, everything else as the provider has it.
    ///
    /// A name that cannot be a model's is told at the first call; [`AnthropicConfig::build`] tells it at once.
    #[must_use]
    pub fn new(name: impl Into<String>, api_key: impl Into<ApiKey>) -> Self {
        Self::builder(name, api_key).build_anyway()
    }

    /// Sets up the model of that name.
    pub fn builder(name: impl Into<String>, api_key: impl Into<ApiKey>) -> AnthropicConfig {
        AnthropicConfig::new(name, api_key)
    }

    pub(crate) fn from_parts(parts: Parts) -> Self {
        Self(parts)
    }

    async fn post(&self, ctx: &RunContext, request: &ModelRequest) -> Result<ModelStream> {
        let Parts { settings, client, api_key, auth, .. } = &self.0;
        let client = client.as_ref().map_err(Unusable::error)?;
        let body = encode(request, settings)?;
        let key = api_key.resolve(ctx).await?;
        let auth = match auth {
            AuthStyle::XApiKey => Auth::named("x-api-key", key),
            AuthStyle::Bearer => Auth::bearer(key),
        };
        let response = client.post(ctx, Post::new(PATH, auth, body)).await?.success(read_error).await?;
        let asked = if settings.stream { Asked::Streamed } else { Asked::Plain };
        reply_stream(response, asked, StreamDecoder::new(request), PlainDecoder::new(request)).await
    }
}

#[async_trait]
impl Model for AnthropicModel {
    fn name(&self) -> &str {
        &self.0.settings.model
    }

    fn capabilities(&self) -> ModelCapabilities {
        // What the API does not take goes into the instructions, which is this adapter's to do.
        let capabilities = ModelCapabilities::default()
            .with_structured_output(true)
            .with_hidden_reasoning(self.0.settings.may_reason());
        match self.0.context_window {
            Some(tokens) => capabilities.with_context_window(tokens),
            None => capabilities,
        }
    }

    fn price(&self) -> Option<Price> {
        self.0.price
    }

    fn count_tokens(&self, request: &ModelRequest) -> u64 {
        self.0.counter.prompt(request)
    }

    fn count_output(&self, text: &str) -> u64 {
        self.0.counter.output(text)
    }

    async fn stream(&self, ctx: &RunContext, call: AdmittedCall) -> Result<ModelStream> {
        self.post(ctx, call.request()).await.map_err(|error| error.with_operation("anthropic.messages"))
    }
}
