//! Encodes a request as a body of the Messages API.
//!
//! What the API insists on, and a request need not have: roles take turns, and the user begins; the results of tools stand
//! directly behind the message that asked for them, all of them and no others, before anything else the user says; ids of
//! calls are unique and of few characters; no text is empty. The same request always gives the same bytes, and what is added
//! to a conversation changes nothing before it, so that the provider's cache holds.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use loomflow_core::{Error, Image, ImageSource, Message, ModelRequest, Result, Role, ToolCall, wire_name};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::blocks::{Place, Reasoning, State, is_object};
use crate::schema::is_native;
use crate::settings::{MIN_BUDGET, Settings, Thinking};

/// Said for the user where a conversation would begin with the model, which the API refuses.
const BEFORE: &str = "(What was said before is not shown.)";
/// Answered to a call whose outcome is not there, because the run ended before it was.
const NO_OUTCOME: &str = "There is no outcome of this call: the run ended before it was known.";

/// The body of a request.
///
/// - System messages go to the top, in their order, wherever they stand.
/// - A call without an outcome gets an error for one; an outcome that no call asked for is left out.
/// - Arguments that are not one JSON object travel as `{}`: the model was told what was wrong with them.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`](loomflow_core::ErrorKind::InvalidInput) when nothing is left to say to the model.
pub fn encode(request: &ModelRequest, settings: &Settings) -> Result<Vec<u8>> {
    let instruction = request.output_schema.as_deref().filter(|schema| !goes_native(settings, schema));
    let instruction = instruction.map(schema_instruction);
    let mut conversation = Conversation::default();
    let mut system = Vec::new();
    for message in request.messages.iter() {
        match message.role {
            Role::System => system.extend(text_block(&message.text)),
            Role::Assistant => conversation.assistant(message),
            Role::Tool => conversation.outcome(message),
            _ => conversation.user(message),
        }
    }
    system.extend(instruction.as_deref().and_then(text_block));
    let mut turns = conversation.finish();
    if turns.is_empty() {
        return Err(Error::invalid_input(
            "the request says nothing to the model: it has neither text nor image nor outcome of a tool",
        ));
    }
    let thinking = sent_thinking(request, settings, &turns);
    let reasons = matches!(thinking, Some(ThinkingMember::Enabled { .. } | ThinkingMember::Adaptive));
    if !reasons && settings.asked_thinking() != Thinking::ModelDefault {
        // Reasoning that is handed back to a call without reasoning would be refused.
        turns.iter_mut().for_each(|turn| turn.content.retain(|block| !block.is_reasoning()));
    }
    let mut tools: Vec<_> = request.tools.iter().map(|tool| ToolMember::of(tool)).collect();
    mark_for_cache(settings, &mut tools, &mut system, &mut turns);
    let output_config = OutputConfig {
        effort: settings.sent_effort().map(|effort| effort.as_str()),
        format: request
            .output_schema
            .as_deref()
            .filter(|schema| goes_native(settings, schema))
            .map(Format::of),
    };
    let body = Body {
        model: &settings.model,
        max_tokens: request.max_output_tokens,
        stream: settings.stream,
        temperature: settings.temperature.filter(|_| !reasons),
        service_tier: settings.service_tier.map(|tier| tier.as_str()),
        thinking,
        output_config: Some(output_config)
            .filter(|config| config.effort.is_some() || config.format.is_some()),
        tools,
        system,
        messages: turns,
        extra: &settings.extra,
    };
    serde_json::to_vec(&body).map_err(|e| {
        Error::new(loomflow_core::ErrorKind::Internal, format!("the request cannot be written: {e}"))
    })
}

fn goes_native(settings: &Settings, schema: &Value) -> bool {
    settings.takes_schemas() && is_native(schema)
}

fn schema_instruction(schema: &Value) -> String {
    format!(
        "When you give your final answer, answer with one JSON value that is valid under the following JSON Schema, and \
         with nothing else: no explanation and no code fence.\n\n{}",
        loomflow_core::canonical_json(schema)
    )
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u64,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<ThinkingMember>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<ToolMember<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<Marked<'a>>,
    messages: Vec<Turn<'a>>,
    #[serde(flatten)]
    extra: &'a BTreeMap<String, Value>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ThinkingMember {
    Enabled { budget_tokens: u64 },
    Adaptive,
    Disabled,
}

#[derive(Serialize)]
struct OutputConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    effort: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Format<'a>>,
}

#[derive(Serialize)]
struct Format<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    schema: &'a Value,
}

impl<'a> Format<'a> {
    fn of(schema: &'a Value) -> Self {
        Self { kind: "json_schema", schema }
    }
}

#[derive(Serialize)]
struct ToolMember<'a> {
    name: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    input_schema: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<CacheControl>,
}

impl<'a> ToolMember<'a> {
    fn of(tool: &'a loomflow_core::ToolSpec) -> Self {
        Self {
            name: wire_name(&tool.name),
            description: &tool.description,
            input_schema: &tool.parameters,
            cache_control: None,
        }
    }
}

#[derive(Clone, Copy, Serialize)]
struct CacheControl {
    #[serde(rename = "type")]
    kind: &'static str,
    ttl: &'static str,
}

#[derive(Serialize)]
struct Turn<'a> {
    role: Speaker,
    content: Vec<Marked<'a>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Speaker {
    User,
    Assistant,
}

/// A block that may end a part of the prompt which the provider caches.
#[derive(Serialize)]
struct Marked<'a> {
    #[serde(flatten)]
    block: Block<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<CacheControl>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block<'a> {
    Text {
        text: &'a str,
    },
    Image {
        source: Source<'a>,
    },
    ToolUse {
        id: String,
        name: Cow<'a, str>,
        input: &'a RawValue,
    },
    ToolResult {
        tool_use_id: String,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        content: Vec<Marked<'a>>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        is_error: bool,
    },
    #[serde(untagged)]
    Reasoning(Reasoning),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Source<'a> {
    Base64 { media_type: &'static str, data: String },
    Url { url: &'a str },
}

impl Marked<'_> {
    fn is_reasoning(&self) -> bool {
        matches!(self.block, Block::Reasoning(_))
    }

    fn is_call(&self) -> bool {
        matches!(self.block, Block::ToolUse { .. })
    }

    fn is_outcome(&self) -> bool {
        matches!(self.block, Block::ToolResult { .. })
    }
}

impl<'a> From<Block<'a>> for Marked<'a> {
    fn from(block: Block<'a>) -> Self {
        Self { block, cache_control: None }
    }
}

/// A block of text. The API refuses one in which nothing can be read.
fn text_block(text: &str) -> Option<Marked<'_>> {
    (!text.trim().is_empty()).then(|| Block::Text { text }.into())
}

fn image_block(image: &Image) -> Option<Marked<'_>> {
    let source = match image.source() {
        ImageSource::Bytes(bytes) => {
            Source::Base64 { media_type: image.media_type(), data: BASE64.encode(bytes) }
        }
        ImageSource::Url(url) => Source::Url { url },
        // A source to come cannot be shown; the message's text says that there is an image.
        _ => return None,
    };
    Some(Block::Image { source }.into())
}

/// The conversation as the API wants it, in the making.
#[derive(Default)]
struct Conversation<'a> {
    turns: Vec<Turn<'a>>,
    /// Every id that a call has on the wire.
    ids: HashSet<String>,
    /// The calls of the last assistant turn that are not answered yet: the id that core knows, and the one on the wire.
    unanswered: Vec<(&'a str, String)>,
}

impl<'a> Conversation<'a> {
    fn user(&mut self, message: &'a Message) {
        self.answer_the_rest();
        let images = message.images().iter().filter_map(image_block);
        let content: Vec<_> = images.chain(text_block(&message.text)).collect();
        self.say(Speaker::User, content);
    }

    fn assistant(&mut self, message: &'a Message) {
        self.answer_the_rest();
        // Reasoning begins a turn. Behind what the model said before, it is not where it was signed.
        let goes_on = self.turns.last().is_some_and(|turn| turn.role == Speaker::Assistant);
        let state = message.provider_state.as_deref().filter(|_| !goes_on).and_then(State::read);
        let (text, calls) = (&*message.text, message.calls());
        let reasoning = state.map(|state| state.placed(text, calls.len())).unwrap_or_default();
        let (mut content, mut said) = (Vec::new(), Place::default());
        for (place, block) in reasoning {
            self.said_between(text, calls, said, place, &mut content);
            content.push(Block::Reasoning(block).into());
            said = place;
        }
        self.said_between(text, calls, said, Place(text.len(), calls.len()), &mut content);
        // Reasoning by itself is nothing that was said.
        if content.iter().all(Marked::is_reasoning) {
            return;
        }
        if self.turns.is_empty() {
            self.say(Speaker::User, vec![Block::Text { text: BEFORE }.into()]);
        }
        self.say(Speaker::Assistant, content);
    }

    /// The text and the calls of a message between two places.
    fn said_between(
        &mut self,
        text: &'a str,
        calls: &'a [ToolCall],
        from: Place,
        to: Place,
        content: &mut Vec<Marked<'a>>,
    ) {
        content.extend(text_block(&text[from.0..to.0]));
        for call in &calls[from.1..to.1] {
            let id = self.new_id(&call.id);
            self.unanswered.push((&call.id, id.clone()));
            let input = object(&call.arguments);
            content.push(Block::ToolUse { id, name: called_name(&call.name), input }.into());
        }
    }

    fn outcome(&mut self, message: &'a Message) {
        let answers = |(id, _): &(&str, String)| Some(*id) == message.tool_call_id.as_deref();
        let Some(at) = self.unanswered.iter().position(answers) else { return };
        let (_, tool_use_id) = self.unanswered.remove(at);
        let images = message.images().iter().filter_map(image_block);
        let content = text_block(&message.text).into_iter().chain(images).collect();
        self.say(Speaker::User, vec![Block::ToolResult { tool_use_id, content, is_error: false }.into()]);
    }

    /// Says of every call that is still unanswered that there is no outcome.
    fn answer_the_rest(&mut self) {
        for (_, tool_use_id) in std::mem::take(&mut self.unanswered) {
            let content = vec![Block::Text { text: NO_OUTCOME }.into()];
            self.say(Speaker::User, vec![Block::ToolResult { tool_use_id, content, is_error: true }.into()]);
        }
    }

    /// Adds to the last turn when it is the same speaker's, and begins a new one otherwise.
    fn say(&mut self, role: Speaker, content: Vec<Marked<'a>>) {
        if content.is_empty() {
            return;
        }
        match self.turns.last_mut() {
            Some(turn) if turn.role == role => turn.content.extend(content),
            _ => self.turns.push(Turn { role, content }),
        }
    }

    /// The id on the wire: of the characters the API takes, and one that no earlier call has.
    fn new_id(&mut self, id: &str) -> String {
        let plain = if id.is_empty() { "call".to_owned() } else { plain(id) };
        let mut unique = plain.clone();
        let mut number = 2;
        while !self.ids.insert(unique.clone()) {
            unique = format!("{plain}_{number}");
            number += 1;
        }
        unique
    }

    fn finish(mut self) -> Vec<Turn<'a>> {
        self.answer_the_rest();
        self.turns
    }
}

/// The characters that the API takes in ids and names; a line for every other.
fn plain(text: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    text.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
}

/// The name of a tool that was called. A model may have made one up that the API would not take back.
fn called_name(name: &str) -> Cow<'_, str> {
    let name = wire_name(name);
    let fits = |name: &str| !name.is_empty() && name.len() <= 64 && plain(name) == name;
    if fits(&name) {
        name
    } else {
        Cow::Owned(format!("_{}", plain(&name).chars().take(63).collect::<String>()))
    }
}

/// The arguments as they were written, so that no digit of theirs is lost, when they are one object that core could read,
/// too: half a surrogate pair, or a number beyond all bounds, would have the API refuse this and every later request.
fn object(arguments: &str) -> &RawValue {
    let reads = is_object(arguments) && serde_json::from_str::<Value>(arguments).is_ok();
    let arguments = if reads { arguments } else { "{}" };
    serde_json::from_str(arguments).expect("what is an object is valid JSON")
}

/// The reasoning that this request may ask for.
fn sent_thinking(request: &ModelRequest, settings: &Settings, turns: &[Turn<'_>]) -> Option<ThinkingMember> {
    match settings.asked_thinking() {
        Thinking::ModelDefault => None,
        Thinking::Off => Some(ThinkingMember::Disabled),
        Thinking::Adaptive => Some(ThinkingMember::Adaptive),
        // A budget needs room for an answer behind it, and a turn in the middle of its calls must have begun with reasoning.
        Thinking::Budget(budget_tokens) => (budget_tokens >= MIN_BUDGET
            && budget_tokens < request.max_output_tokens
            && !goes_on_without_reasoning(turns))
        .then_some(ThinkingMember::Enabled { budget_tokens }),
    }
}

/// Whether the model's last turn called tools without having reasoned, as one of another provider or of an earlier run.
fn goes_on_without_reasoning(turns: &[Turn<'_>]) -> bool {
    let answers = turns.last().is_some_and(|turn| turn.content.iter().any(Marked::is_outcome));
    let last = turns.iter().rev().find(|turn| turn.role == Speaker::Assistant);
    let silent = |turn: &Turn<'_>| {
        turn.content.iter().any(Marked::is_call) && !turn.content.first().is_some_and(Marked::is_reasoning)
    };
    answers && last.is_some_and(silent)
}

/// Marks where the cached parts of the prompt end: the tools, the instructions and the conversation so far. Three of the
/// four marks that the API takes.
fn mark_for_cache(
    settings: &Settings,
    tools: &mut [ToolMember<'_>],
    system: &mut [Marked<'_>],
    turns: &mut [Turn<'_>],
) {
    let Some(ttl) = settings.cache else { return };
    let mark = Some(CacheControl { kind: "ephemeral", ttl: ttl.as_str() });
    if let Some(tool) = tools.last_mut() {
        tool.cache_control = mark;
    }
    if let Some(block) = system.last_mut() {
        block.cache_control = mark;
    }
    // Reasoning takes no mark.
    let said = turns.last_mut().and_then(|turn| turn.content.iter_mut().rfind(|block| !block.is_reasoning()));
    if let Some(block) = said {
        block.cache_control = mark;
    }
}
