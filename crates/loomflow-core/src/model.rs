//! Models and embedders: what an adapter implements, and the admission without which none can be called.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use futures_core::Stream;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::context::RunContext;
use crate::error::{Error, Result};
use crate::ledger::HoldKey;
use crate::memory::Embedding;
use crate::message::{Message, ToolCall};
use crate::tool::ToolSpec;
use crate::usage::{Price, Usage};

/// What a model is asked. Plain data; it cannot be sent without being admitted.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelRequest {
    /// The prompt, in order.
    pub messages: Arc<Vec<Message>>,
    /// The tools the model may call.
    pub tools: Arc<[Arc<ToolSpec>]>,
    /// The schema its final answer must meet, if any.
    pub output_schema: Option<Arc<Value>>,
    /// The most tokens it may generate. The door lowers it to what the hold grants.
    pub max_output_tokens: u64,
}

impl ModelRequest {
    /// A request with these messages and nothing else.
    #[must_use]
    pub fn new(messages: Vec<Message>, max_output_tokens: u64) -> Self {
        Self { messages: Arc::new(messages), tools: Arc::from([]), output_schema: None, max_output_tokens }
    }

    /// Offers tools.
    #[must_use]
    pub fn with_tools(mut self, tools: Arc<[Arc<ToolSpec>]>) -> Self {
        self.tools = tools;
        self
    }

    /// Asks for an answer that meets a schema.
    #[must_use]
    pub fn with_output_schema(mut self, schema: Option<Arc<Value>>) -> Self {
        self.output_schema = schema;
        self
    }
}

/// A request that the model door has admitted: counted, reserved, and its output clamped to the hold. What
/// [`Model::stream`] takes; only the door makes one, and streaming consumes it.
pub struct AdmittedCall {
    request: ModelRequest,
    attempt: u32,
    key: HoldKey,
}

impl AdmittedCall {
    pub(crate) fn seal(request: ModelRequest, attempt: u32, key: HoldKey) -> Self {
        Self { request, attempt, key }
    }

    /// The request, its output clamped.
    #[must_use]
    pub fn request(&self) -> &ModelRequest {
        &self.request
    }

    /// The request, taken out.
    #[must_use]
    pub fn into_request(self) -> ModelRequest {
        self.request
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// What this very attempt is held under in the ledger, and what no other call has: an idempotency key for a provider that takes
    /// one, and the name by which its invoice and the ledger's [estimates](crate::Ledger::estimates) are brought together.
    #[must_use]
    pub fn key(&self) -> HoldKey {
        self.key
    }
}

impl fmt::Debug for AdmittedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdmittedCall({} messages, attempt {})", self.request.messages.len(), self.attempt)
    }
}

/// Why a model stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// It had said what it wanted to say.
    End,
    /// It waits for the outcomes of its tool calls.
    ToolUse,
    /// It reached the most tokens it may generate.
    MaxTokens,
    /// It, or its provider, refused the content.
    Refusal,
    /// Something this version does not know.
    Other(String),
}

/// The end of a model stream. A stream that ends without it was cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Done {
    /// What the provider says it used; `None` when it does not say: then it is estimated, and marked so.
    pub usage: Option<Usage>,
    /// Why it stopped.
    pub stop: StopReason,
    /// The provider's id of the request.
    #[serde(default)]
    pub request_id: Option<String>,
}

impl Done {
    /// An end with the provider's usage.
    #[must_use]
    pub fn new(usage: Usage, stop: StopReason) -> Self {
        Self { usage: Some(usage), stop, request_id: None }
    }

    /// An end without usage.
    #[must_use]
    pub fn without_usage(stop: StopReason) -> Self {
        Self { usage: None, stop, request_id: None }
    }

    /// Attaches the provider's request id.
    #[must_use]
    pub fn with_request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = Some(id.into());
        self
    }
}

/// A piece of a model's reply.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Delta {
    /// Text for the user.
    Text(Arc<str>),
    /// The model's reasoning; counted, and not shown.
    Reasoning(Arc<str>),
    /// A piece of a tool call's arguments as it arrives, so that a reply which is cut off is charged for it. The whole
    /// call still follows as [`Delta::ToolCall`] and is not counted twice.
    Arguments(Arc<str>),
    /// A whole tool call.
    ToolCall(ToolCall),
    /// What the provider wants back with this reply for as long as the run lasts; see [`Message::provider_state`].
    ProviderState(Arc<str>),
    /// The end. Nothing follows.
    Done(Done),
}

/// The pieces of a reply, ending in [`Delta::Done`].
pub type ModelStream = Pin<Box<dyn Stream<Item = Result<Delta>> + Send + 'static>>;

/// What a model can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelCapabilities {
    /// Constrains its answer to a schema while decoding.
    pub structured_output: bool,
    /// Prompt and answer together, in tokens; `None` when not known.
    pub context_window: Option<u64>,
    /// Generates, and bills, tokens that it does not show: reasoning, of which a stream tells nothing or a summary. A call whose
    /// usage never comes is then charged all the output that it was granted, because nobody can know what of it was made.
    pub hidden_reasoning: bool,
}

impl ModelCapabilities {
    /// Declares that tokens are generated and billed which are not shown.
    #[must_use]
    pub fn with_hidden_reasoning(mut self, yes: bool) -> Self {
        self.hidden_reasoning = yes;
        self
    }

    /// Declares that answers are constrained to a schema while decoding.
    #[must_use]
    pub fn with_structured_output(mut self, yes: bool) -> Self {
        self.structured_output = yes;
        self
    }

    /// Declares the context window in tokens.
    #[must_use]
    pub fn with_context_window(mut self, tokens: u64) -> Self {
        self.context_window = Some(tokens);
        self
    }
}

/// What a model adapter implements.
///
/// # Errors of `stream`
///
/// An error *before* the stream begins means the provider took no order: the hold is given back, unless the kind is
/// [`Timeout`](crate::ErrorKind::Timeout), [`Transport`](crate::ErrorKind::Transport) or
/// [`Internal`](crate::ErrorKind::Internal), where nobody knows, and the prompt is charged; what could not be connected to is
/// [`Unreachable`](crate::ErrorKind::Unreachable). An error *within* the stream charges the prompt and what was streamed.
///
/// A model with [`hidden_reasoning`](ModelCapabilities::hidden_reasoning) is charged all the output it was granted in both cases,
/// as far as the provider may have made it.
///
/// An adapter puts the provider's id of the request into the error's context as `request_id`; the audit log keeps it.
#[async_trait]
pub trait Model: fmt::Debug + Send + Sync + 'static {
    /// The model's name, as prices and reports know it.
    fn name(&self) -> &str;

    /// What it can do.
    fn capabilities(&self) -> ModelCapabilities {
        ModelCapabilities::default()
    }

    /// Its price; `None` when it is not known, which a cost cap refuses.
    fn price(&self) -> Option<Price> {
        None
    }

    /// The request's prompt in tokens, counted before it is sent. Never fewer than the provider will bill.
    fn count_tokens(&self, request: &ModelRequest) -> u64;

    /// A piece of generated text in tokens: what a stream that is cut off is charged for.
    fn count_output(&self, text: &str) -> u64 {
        estimate_tokens(text)
    }

    /// Sends an admitted request. Dropping the stream aborts the call; what it had delivered is charged.
    async fn stream(&self, ctx: &RunContext, call: AdmittedCall) -> Result<ModelStream>;
}

/// Texts that the model door has admitted for embedding. What [`Embedder::embed`] takes.
pub struct AdmittedEmbed {
    texts: Vec<Arc<str>>,
    purpose: EmbedPurpose,
}

/// What a vector is for. Some models make one for a question that differs from one for what could answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EmbedPurpose {
    /// To be stored and found.
    Document,
    /// To look for what is stored.
    Query,
}

impl AdmittedEmbed {
    pub(crate) fn seal(texts: Vec<Arc<str>>, purpose: EmbedPurpose) -> Self {
        Self { texts, purpose }
    }

    /// What the vectors are for.
    #[must_use]
    pub fn purpose(&self) -> EmbedPurpose {
        self.purpose
    }

    /// The texts.
    #[must_use]
    pub fn texts(&self) -> &[Arc<str>] {
        &self.texts
    }
}

impl fmt::Debug for AdmittedEmbed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdmittedEmbed({} texts)", self.texts.len())
    }
}

/// Vectors, one per text and in the same order, and what they used.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Embedded {
    /// The vectors.
    pub vectors: Vec<Arc<[f32]>>,
    /// What the provider says it used; `None` when it does not say: then the count is charged.
    pub usage: Option<Usage>,
}

impl Embedded {
    /// Vectors and their usage.
    #[must_use]
    pub fn new(vectors: Vec<Arc<[f32]>>, usage: Option<Usage>) -> Self {
        Self { vectors, usage }
    }
}

/// What an embedding adapter implements. Core calls it, through the model door; backends never do.
#[async_trait]
pub trait Embedder: fmt::Debug + Send + Sync + 'static {
    /// The embedder's name: vectors of another name are never compared with its own.
    fn name(&self) -> &str;

    /// How many components its vectors have.
    fn dimensions(&self) -> usize;

    /// Its price; `None` when not known. `Some(Price::default())` is free.
    fn price(&self) -> Option<Price> {
        None
    }

    /// A text in tokens. Never fewer than the provider will bill.
    fn count_tokens(&self, text: &str) -> u64 {
        estimate_tokens(text)
    }

    /// The vectors of admitted texts. What an error means for the charge is said at [`Model`].
    async fn embed(&self, ctx: &RunContext, call: AdmittedEmbed) -> Result<Embedded>;
}

/// The vectors as records want them, one for each text that was asked for.
pub(crate) fn embeddings(embedder: &dyn Embedder, asked: usize, done: Embedded) -> Result<Vec<Embedding>> {
    let fits = |vector: &Arc<[f32]>| vector.len() == embedder.dimensions();
    if done.vectors.len() != asked || !done.vectors.iter().all(fits) {
        return Err(Error::new(
            crate::ErrorKind::Internal,
            format!("embedder {} answered with the wrong number or length of vectors", embedder.name()),
        ));
    }
    Ok(done.vectors.into_iter().map(|vector| Embedding::new(embedder.name(), vector)).collect())
}

/// A rough count for models without a tokenizer: four bytes a token, rounded up.
#[must_use]
pub fn estimate_tokens(text: &str) -> u64 {
    (text.len() as u64).div_ceil(4)
}
