//! What an adapter's author tells the suite: how the provider's wire looks, and how the adapter is built.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::{Model, SecretRef, StopReason, Usage};
use serde_json::Value;

use crate::doubles::Recorded;

/// How an adapter is to be built for a case.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Setup {
    /// The root of the server, such as `http://127.0.0.1:4711`, without a slash at the end. Put the API's path behind it.
    pub base_url: String,
    /// The name under which the key of a call is found, by [`RunContext::secret`](loomflow_core::RunContext::secret).
    pub key: SecretRef,
    /// How long a connection, and then the head of a reply, may take.
    pub headers_timeout: Duration,
    /// How long the body may say nothing.
    pub idle_timeout: Duration,
    /// Whether to ask for the reply in one piece; only where [`Wire::plain`] answers.
    pub plain: bool,
}

/// A reply, in words that every provider has.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct WireReply {
    /// Its text, in the pieces it is streamed in.
    pub text: Vec<String>,
    /// The calls it asks for.
    pub calls: Vec<WireCall>,
    /// What the provider says it used; `None` when it does not say.
    pub usage: Option<Usage>,
    /// Why it stops.
    pub stop: StopReason,
}

impl WireReply {
    /// A reply of text that was streamed in these pieces, with a usage of 21 prompt tokens and 9 generated ones.
    #[must_use]
    pub fn saying<S: Into<String>>(pieces: impl IntoIterator<Item = S>) -> Self {
        Self {
            text: pieces.into_iter().map(Into::into).collect(),
            calls: Vec::new(),
            usage: Some(Usage::new(21, 9)),
            stop: StopReason::End,
        }
    }

    /// Adds a call.
    #[must_use]
    pub fn with_call(mut self, call: WireCall) -> Self {
        self.calls.push(call);
        self.stop = StopReason::ToolUse;
        self
    }

    /// Sets what the provider says it used.
    #[must_use]
    pub fn with_usage(mut self, usage: Option<Usage>) -> Self {
        self.usage = usage;
        self
    }

    /// Sets why it stops.
    #[must_use]
    pub fn with_stop(mut self, stop: StopReason) -> Self {
        self.stop = stop;
        self
    }
}

/// A call that a reply asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WireCall {
    /// Its id.
    pub id: String,
    /// The tool's name, as it travels.
    pub name: String,
    /// Its arguments, in the pieces they are streamed in. Not always JSON.
    pub arguments: Vec<String>,
}

impl WireCall {
    /// A call of the tool that travels under `name`.
    #[must_use]
    pub fn new<S: Into<String>>(id: &str, name: &str, pieces: impl IntoIterator<Item = S>) -> Self {
        let arguments = pieces.into_iter().map(Into::into).collect();
        Self { id: id.to_owned(), name: name.to_owned(), arguments }
    }
}

/// A piece of a streamed body that means something on its own, such as one event with the blank line behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WireEvent {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What the model generated and this delivers: one piece of the text, or of a call's arguments.
    pub says: Option<String>,
    /// Whether the reply may count as whole from here on: what follows, if anything, changes nothing.
    pub ends: bool,
}

impl WireEvent {
    /// An event that delivers nothing generated.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), says: None, ends: false }
    }

    /// Says which piece of the reply this delivers.
    #[must_use]
    pub fn saying(mut self, piece: impl Into<String>) -> Self {
        self.says = Some(piece.into());
        self
    }

    /// Says that the reply may count as whole from here on.
    #[must_use]
    pub fn ending(mut self) -> Self {
        self.ends = true;
        self
    }
}

/// What the suite has to know about a provider's wire and about the adapter under test.
///
/// The bodies are written by the adapter's author *in code of their own*, not with the adapter's codec: two halves of
/// one mistake agree with each other.
pub trait Wire: fmt::Debug + Send + Sync + 'static {
    /// The adapter, built as `setup` says. Without a retry of its own: the agent retries.
    fn model(&self, setup: &Setup) -> Arc<dyn Model>;

    /// The reply as a streamed body, in order. Each piece of text and of arguments has its own event, which says so.
    fn streamed(&self, reply: &WireReply) -> Vec<WireEvent>;

    /// The reply as one body; `None` when the adapter only streams.
    fn plain(&self, reply: &WireReply) -> Option<Vec<u8>> {
        let _ = reply;
        None
    }

    /// The body that the provider sends with an error status.
    fn error_body(&self, status: u16, message: &str) -> Vec<u8>;

    /// How the provider says, within a stream that has begun, that it failed; `None` when it never does.
    fn error_event(&self, message: &str) -> Option<Vec<u8>> {
        let _ = message;
        None
    }

    /// What a stream may carry that says nothing: by default a long comment of an event stream.
    fn noise(&self) -> Vec<u8> {
        format!(": still here{}\n\n", ".".repeat(2_000)).into_bytes()
    }

    /// The beginning of an event whose end never comes, to be followed by as many `x` as one likes.
    fn endless_event(&self) -> Vec<u8> {
        b"data: ".to_vec()
    }

    /// Whether lines of a streamed body may also end in CR LF.
    fn allows_crlf(&self) -> bool {
        true
    }

    /// The media type of a streamed body.
    fn streamed_type(&self) -> &str {
        "text/event-stream"
    }

    /// The media type of a body in one piece.
    fn plain_type(&self) -> &str {
        "application/json"
    }

    /// The header in which the provider names a request.
    fn request_id_header(&self) -> &str {
        "x-request-id"
    }

    /// The key that a request carries: by default a bearer token, or `x-api-key`.
    fn key(&self, request: &Recorded) -> Option<String> {
        let bearer = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        bearer.or_else(|| request.header("x-api-key")).map(str::to_owned)
    }

    /// The most tokens that a request allows: by default the member of that meaning in its JSON.
    fn max_output_tokens(&self, request: &Recorded) -> Option<u64> {
        let body = request.json()?;
        ["max_completion_tokens", "max_tokens", "max_output_tokens"]
            .iter()
            .find_map(|name| body.get(name).and_then(Value::as_u64))
    }
}
