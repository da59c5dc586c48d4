//! How many tokens a prompt has for one of OpenAI's models, counted with its own vocabulary.

use std::collections::HashSet;
use std::fmt;

use loomflow_core::ModelRequest;
use loomflow_support_model::{CountTokens, EstimateTokens};
use tiktoken_rs::CoreBPE;
use tiktoken_rs::tokenizer::{Tokenizer, get_tokenizer};

/// What OpenAI documents around each message: two markers, a line break, and the role.
const AROUND_MESSAGE: u64 = 4;
/// What it documents before the reply.
const BEFORE_REPLY: u64 = 3;
/// What nobody documents exactly, leaning high: around a call, a tool, a schema and whatever else has a name.
const AROUND: u64 = 16;

/// Counts with the vocabulary of an OpenAI model.
///
/// Texts are exact, and so is what OpenAI documents around messages. Calls, tools and schemas are counted as the JSON they are sent
/// as, which is longer than what the model is shown; images as [`EstimateTokens`] counts them. So a prompt is never counted
/// lower than it is billed, and plain messages are counted exactly.
///
/// **A vocabulary is large and slow to build**: a second or so of one core and tens of MiB, once for each encoding and process. It is
/// built by [`for_model`](Self::for_model), never during a call: make the model when the program starts, or on a thread that may
/// block. Counting is a few MiB of text a second, on the task that makes the call.
#[derive(Clone, Copy)]
pub struct TiktokenTokens {
    tokenizer: Tokenizer,
    vocabulary: &'static CoreBPE,
    image_tokens: u64,
}

impl TiktokenTokens {
    /// The counter for the model `name`, with or without a vendor before it (`openai/gpt-4o`); `None` where nobody knows its
    /// vocabulary. Builds the vocabulary, which blocks.
    #[must_use]
    pub fn for_model(name: &str) -> Option<Self> {
        let tokenizer = get_tokenizer(name.rsplit('/').next().unwrap_or(name))?;
        let vocabulary = tiktoken_rs::bpe_for_tokenizer(tokenizer).ok()?;
        Some(Self { tokenizer, vocabulary, image_tokens: 0 })
    }

    /// Counts each image as `tokens`.
    #[must_use]
    pub fn with_image_tokens(mut self, tokens: u64) -> Self {
        self.image_tokens = tokens;
        self
    }

    /// A text alone.
    #[must_use]
    pub fn text(&self, text: &str) -> u64 {
        match self.vocabulary.encode(text, &HashSet::new()) {
            Ok((tokens, _)) => tokens.len() as u64,
            // The splitting gave up on a text that is made to exhaust it. No token is shorter than a byte.
            Err(_) => text.len() as u64,
        }
    }
}

impl CountTokens for TiktokenTokens {
    fn prompt(&self, request: &ModelRequest) -> u64 {
        let mut tokens = BEFORE_REPLY;
        for message in request.messages.iter() {
            tokens += AROUND_MESSAGE + self.text(&message.text);
            tokens += self.image_tokens.saturating_mul(message.images().len() as u64);
            for named in
                [message.tool_call_id.as_deref(), message.provider_state.as_deref()].into_iter().flatten()
            {
                tokens += AROUND + self.text(named);
            }
            for call in message.calls() {
                tokens += AROUND + self.text(&call.id) + self.text(&call.name) + self.text(&call.arguments);
            }
        }
        for tool in request.tools.iter() {
            let schema = self.text(&tool.parameters.to_string());
            tokens += AROUND + self.text(&tool.name) + self.text(&tool.description) + schema;
        }
        if let Some(schema) = &request.output_schema {
            tokens += AROUND + self.text(&schema.to_string());
        }
        if !request.tools.is_empty() {
            tokens += AROUND;
        }
        tokens
    }

    fn output(&self, text: &str) -> u64 {
        self.text(text)
    }
}

impl fmt::Debug for TiktokenTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TiktokenTokens({:?})", self.tokenizer)
    }
}

/// The counter for a model, or the estimate where its vocabulary is not known.
pub(crate) fn counter(name: &str, image_tokens: u64) -> std::sync::Arc<dyn CountTokens> {
    match TiktokenTokens::for_model(name) {
        Some(exact) => std::sync::Arc::new(exact.with_image_tokens(image_tokens)),
        None => std::sync::Arc::new(EstimateTokens::new(image_tokens)),
    }
}
