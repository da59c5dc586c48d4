//! The model: one call at a time, as whoever asks.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{
    AdmittedCall, Digest, Model, ModelCapabilities, ModelRequest, ModelStream, Price, Result, RunContext,
    Scope,
};
use loomflow_support_model::{ApiKey, Asked, Auth, CountTokens, HttpClient, Post, reply_stream};

use crate::config::OpenAiConfig;
use crate::encode::{EncodeOptions, encode};
use crate::errors::read_error;
use crate::plain::PlainDecoder;
use crate::stream::StreamDecoder;

/// A chat completions model: OpenAI's, or any server's that speaks the same.
///
/// It keeps nothing between calls and nothing of any tenant. The key is resolved for each call with the run's own context.
pub struct OpenAiModel {
    pub(crate) client: HttpClient,
    pub(crate) api_key: ApiKey,
    pub(crate) key_header: Option<&'static str>,
    pub(crate) options: EncodeOptions,
    pub(crate) prompt_cache_label: Option<String>,
    pub(crate) price: Option<Price>,
    pub(crate) capabilities: ModelCapabilities,
    pub(crate) tokens: Arc<dyn CountTokens>,
}

impl OpenAiModel {
    /// The model `name` at OpenAI, with everything else at its default; see [`OpenAiConfig`].
    #[must_use]
    pub fn new(name: impl Into<String>, api_key: impl Into<ApiKey>) -> Self {
        OpenAiConfig::new(name, api_key)
            .assemble()
            .expect("the default address is valid, and there is nothing else")
    }

    /// A configuration of the model `name` at OpenAI, to be changed and built.
    #[must_use]
    pub fn builder(name: impl Into<String>, api_key: impl Into<ApiKey>) -> OpenAiConfig {
        OpenAiConfig::new(name, api_key)
    }

    fn post(&self, auth: Auth, body: Vec<u8>) -> Post {
        let accept = if self.options.stream { "text/event-stream" } else { "application/json" };
        Post::new("/chat/completions", auth, body).with_header("accept", accept)
    }

    async fn send(&self, ctx: &RunContext, call: AdmittedCall) -> Result<ModelStream> {
        let key = self.api_key.resolve(ctx).await?;
        let auth = authenticate(self.key_header, key);
        let request = call.request();
        let body = encode(&self.options, request, self.prompt_cache_key(ctx.scope()).as_deref())?;
        let (streamed, plain) = (StreamDecoder::new(&request.tools), PlainDecoder::new(&request.tools));
        // What was encoded is needed no more: a large prompt is not held for as long as its reply lasts.
        drop(call);
        let response = self.client.post(ctx, self.post(auth, body)).await?.success(read_error).await?;
        let asked = if self.options.stream { Asked::Streamed } else { Asked::Plain };
        reply_stream(response, asked, streamed, plain).await
    }

    /// What the provider's cache finds this tenant's prompts under.
    fn prompt_cache_key(&self, scope: &Scope) -> Option<String> {
        let label = self.prompt_cache_label.as_deref()?;
        let parts = [&b"loomflow.prompt_cache_key"[..], label.as_bytes(), &scope.owner().encode()];
        let mut key = Digest::of(&parts).to_string();
        key.truncate(32);
        Some(key)
    }
}

#[async_trait]
impl Model for OpenAiModel {
    fn name(&self) -> &str {
        &self.options.model
    }

    fn capabilities(&self) -> ModelCapabilities {
        self.capabilities
    }

    fn price(&self) -> Option<Price> {
        self.price
    }

    fn count_tokens(&self, request: &ModelRequest) -> u64 {
        self.tokens.prompt(request)
    }

    fn count_output(&self, text: &str) -> u64 {
        self.tokens.output(text)
    }

    async fn stream(&self, ctx: &RunContext, call: AdmittedCall) -> Result<ModelStream> {
        self.send(ctx, call).await.map_err(|error| error.with_operation("openai.chat"))
    }
}

pub(crate) fn authenticate(
    header: Option<&'static str>,
    key: Option<Arc<loomflow_core::Secret<String>>>,
) -> Auth {
    match header {
        Some(name) => Auth::named(name, key),
        None => Auth::bearer(key),
    }
}

impl fmt::Debug for OpenAiModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiModel")
            .field("name", &self.options.model)
            .field("client", &self.client)
            .field("api_key", &self.api_key)
            .finish_non_exhaustive()
    }
}
