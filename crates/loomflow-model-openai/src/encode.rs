//! A request as the body of a chat completion.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use loomflow_core::{
    Error, ErrorKind, ImageSource, Message, ModelRequest, Result, Role, ToolCall, ToolSpec, wire_name,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::strict;

/// What a call asks for beside its request.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EncodeOptions {
    /// The model's name.
    pub model: String,
    /// Whether the reply comes in pieces.
    pub stream: bool,
    /// The member that bounds the reply.
    pub max_tokens: MaxTokensField,
    /// How an answer's schema is asked for.
    pub structured_output: StructuredOutput,
    /// How much a reasoning model thinks, in the provider's words, such as `low`.
    pub reasoning_effort: Option<String>,
    /// Whether the model may ask for several calls at once; `None` leaves it to the provider.
    pub parallel_tool_calls: Option<bool>,
    /// The tier the call is served, and billed, in.
    pub service_tier: Option<ServiceTier>,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Sampling seed.
    pub seed: Option<i64>,
    /// Further members of the body, for what a vendor knows and this crate does not.
    pub extra: Map<String, Value>,
}

/// The member of the body that bounds the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MaxTokensField {
    /// `max_completion_tokens`, which OpenAI's own models ask for.
    MaxCompletionTokens,
    /// `max_tokens`, which most compatible servers know.
    MaxTokens,
}

/// How an answer's schema is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StructuredOutput {
    /// As a JSON Schema that the provider decodes by.
    #[default]
    JsonSchema,
    /// As any JSON object; the prompt says which.
    JsonObject,
    /// Not at all; the prompt says which.
    None,
}

/// The tier a call is served, and billed, in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceTier {
    /// What the project is set to.
    Auto,
    /// The standard tier.
    Default,
    /// Cheaper and slower.
    Flex,
    /// Dearer and faster.
    Priority,
}

impl ServiceTier {
    fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Default => "default",
            Self::Flex => "flex",
            Self::Priority => "priority",
        }
    }
}

impl EncodeOptions {
    /// Streamed calls of `model`, as OpenAI's own servers want them, with everything else left to the provider.
    #[must_use]
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            stream: true,
            max_tokens: MaxTokensField::MaxCompletionTokens,
            structured_output: StructuredOutput::default(),
            reasoning_effort: None,
            parallel_tool_calls: None,
            service_tier: None,
            temperature: None,
            seed: None,
            extra: Map::new(),
        }
    }

    /// Refuses what cannot be sent.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for a further member that this crate writes itself, or that would multiply the cost, and for a
    /// temperature that is not a number.
    pub fn check(&self) -> Result<()> {
        let bad = |message: String| Err(Error::new(ErrorKind::Config, message));
        if let Some(name) = self.extra.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return bad(format!(
                "the extra body field {name:?} is not yours to set: there is an option for it, or none on purpose"
            ));
        }
        if self.temperature.is_some_and(|t| !t.is_finite()) {
            return bad("the temperature is not a finite number".to_owned());
        }
        Ok(())
    }
}

/// What `extra` may not carry: what is written here, and what asks for more than one reply.
const RESERVED: [&str; 16] = [
    "best_of",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "model",
    "n",
    "parallel_tool_calls",
    "prompt_cache_key",
    "reasoning_effort",
    "response_format",
    "seed",
    "service_tier",
    "stream",
    "stream_options",
    "temperature",
    "tools",
];

/// The most tokens that are asked for: servers keep the number in 32 bits, with a sign or without.
const MOST_TOKENS: u64 = i32::MAX as u64;

/// The body of a chat completion: equal requests give equal bytes.
///
/// `prompt_cache_key` must differ from tenant to tenant; see [`crate::OpenAiConfig`].
///
/// # Errors
///
/// [`ErrorKind::Internal`] if the request cannot be written as JSON.
pub fn encode(
    options: &EncodeOptions,
    request: &ModelRequest,
    prompt_cache_key: Option<&str>,
) -> Result<Vec<u8>> {
    let most = request.max_output_tokens.min(MOST_TOKENS);
    let (max_completion_tokens, max_tokens) = match options.max_tokens {
        MaxTokensField::MaxCompletionTokens => (Some(most), None),
        MaxTokensField::MaxTokens => (None, Some(most)),
    };
    let has_tools = !request.tools.is_empty();
    let body = Body {
        model: &options.model,
        messages: request.messages.iter().map(message).collect(),
        tools: request.tools.iter().map(|spec| tool(spec)).collect(),
        parallel_tool_calls: options.parallel_tool_calls.filter(|_| has_tools),
        response_format: request.output_schema.as_deref().and_then(|schema| format_of(options, schema)),
        max_completion_tokens,
        max_tokens,
        reasoning_effort: options.reasoning_effort.as_deref(),
        service_tier: options.service_tier.map(ServiceTier::as_str),
        temperature: options.temperature,
        seed: options.seed,
        prompt_cache_key,
        stream: options.stream,
        stream_options: options.stream.then_some(StreamOptions { include_usage: true }),
        extra: &options.extra,
    };
    serde_json::to_vec(&body).map_err(|e| {
        Error::new(ErrorKind::Internal, "the request could not be written as JSON").with_source(e)
    })
}

#[derive(Serialize)]
struct Body<'r> {
    model: &'r str,
    messages: Vec<WireMessage<'r>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<WireTool<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallel_tool_calls: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_effort: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_cache_key: Option<&'r str>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(flatten)]
    extra: &'r Map<String, Value>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
struct WireMessage<'r> {
    role: &'static str,
    /// `null` for an assistant who only calls tools.
    content: Option<Content<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'r str>,
    /// What the model thought before its calls, for servers that want it back.
    #[serde(flatten)]
    state: Map<String, Value>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'r> {
    Text(&'r str),
    Parts(Vec<Part<'r>>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part<'r> {
    Text { text: &'r str },
    ImageUrl { image_url: ImageUrl<'r> },
}

#[derive(Serialize)]
struct ImageUrl<'r> {
    url: Cow<'r, str>,
}

fn message(message: &Message) -> WireMessage<'_> {
    let role = match message.role {
        Role::System => "system",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
        _ => "user",
    };
    let calls = message.calls();
    let silent = message.text.is_empty() && !calls.is_empty();
    WireMessage {
        role,
        content: if silent { None } else { Some(content(message)) },
        tool_calls: (!calls.is_empty()).then(|| calls.iter().map(call).collect()),
        tool_call_id: message.tool_call_id.as_deref(),
        state: message.provider_state.as_deref().map(reasoning).unwrap_or_default(),
    }
}

fn content(message: &Message) -> Content<'_> {
    if message.images().is_empty() {
        return Content::Text(&message.text);
    }
    let text = (!message.text.is_empty()).then_some(Part::Text { text: &message.text });
    let images = message.images().iter().map(|image| {
        let url = match image.source() {
            ImageSource::Url(url) => Cow::Borrowed(&**url),
            ImageSource::Bytes(bytes) => {
                Cow::Owned(format!("data:{};base64,{}", image.media_type(), STANDARD.encode(bytes)))
            }
            // A source of a later version of core: better no image than a wrong one.
            _ => Cow::Borrowed(""),
        };
        Part::ImageUrl { image_url: ImageUrl { url } }
    });
    Content::Parts(text.into_iter().chain(images).collect())
}

fn call(call: &ToolCall) -> Value {
    json!({
        "id": &*call.id,
        "type": "function",
        "function": { "name": wire_name(&call.name), "arguments": arguments(call) },
    })
}

/// The arguments as an object in text. Many servers read them and fail on anything else, so what the model got wrong goes
/// back within an object, where it can see it.
fn arguments(call: &ToolCall) -> Cow<'_, str> {
    if call.arguments.trim().is_empty() {
        return Cow::Borrowed("{}");
    }
    match call.parse_arguments() {
        Ok(_) => Cow::Borrowed(&*call.arguments),
        Err(_) => Cow::Owned(json!({ "invalid_arguments": &*call.arguments }).to_string()),
    }
}

/// The members that [`crate::fold`] kept of a reply, and no others.
fn reasoning(state: &str) -> Map<String, Value> {
    let Ok(Value::Object(mut members)) = serde_json::from_str(state) else { return Map::new() };
    members.retain(|name, value| {
        matches!(name.as_str(), "reasoning_content" | "reasoning") && value.is_string()
    });
    members
}

#[derive(Serialize)]
struct WireTool<'r> {
    r#type: &'static str,
    function: Function<'r>,
}

#[derive(Serialize)]
struct Function<'r> {
    name: Cow<'r, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'r str,
    parameters: &'r Value,
}

fn tool(spec: &ToolSpec) -> WireTool<'_> {
    let function = Function {
        name: wire_name(&spec.name),
        description: &spec.description,
        parameters: &spec.parameters,
    };
    WireTool { r#type: "function", function }
}

fn format_of(options: &EncodeOptions, schema: &Value) -> Option<Value> {
    match options.structured_output {
        StructuredOutput::JsonSchema => {
            let mut schema = schema.clone();
            if let Some(members) = schema.as_object_mut() {
                members.remove("$schema");
            }
            let strict = strict::is_strict(&schema);
            Some(json!({
                "type": "json_schema",
                "json_schema": { "name": "answer", "schema": schema, "strict": strict },
            }))
        }
        StructuredOutput::JsonObject => Some(json!({ "type": "json_object" })),
        StructuredOutput::None => None,
    }
}

#[cfg(test)]
mod tests;
