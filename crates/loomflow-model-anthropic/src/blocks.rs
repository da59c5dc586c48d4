//! A reply in the making: the content blocks of the Messages API, turned into deltas. Streams and whole bodies share it.

use std::collections::HashMap;
use std::sync::Arc;

use loomflow_core::{Delta, Done, ModelRequest, Result, StopReason, ToolCall, wire_name};
use loomflow_support_model::{MAX_ARGUMENT_BYTES, MAX_TOOL_SLOTS, broke_protocol};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::errors::not_understood;
use crate::usage::Reports;

/// The most bytes that are kept until the end of a reply: arguments of calls and signed reasoning.
const MAX_KEPT_BYTES: usize = 8 << 20;
/// What a kept block costs besides its text.
const BLOCK_BYTES: usize = 128;
/// The most bytes of a call's name and of its id: both are recorded, and the provider's own are a fraction of it.
const MAX_NAME_BYTES: usize = 256;
const MAX_ID_BYTES: usize = 1_024;
/// The most blocks that may be open at once; a correct stream has one.
const MAX_OPEN: usize = 2 * MAX_TOOL_SLOTS;

/// The names of a request's tools, found by what they are called on the wire.
#[derive(Clone, Debug, Default)]
pub(crate) struct ToolNames(HashMap<String, Arc<str>>);

impl ToolNames {
    pub(crate) fn of(request: &ModelRequest) -> Self {
        // Most names are the same on the wire; only the others need to be found.
        let renamed = request.tools.iter().filter(|tool| tool.name.contains('.'));
        Self(renamed.map(|tool| (wire_name(&tool.name).into_owned(), tool.name.clone())).collect())
    }

    fn name(&self, wire: &str) -> Arc<str> {
        self.0.get(wire).cloned().unwrap_or_else(|| Arc::from(wire))
    }
}

/// A block of signed or hidden reasoning, as the provider wants it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Reasoning {
    /// Reasoning that may be read, and the signature without which the provider refuses it.
    Thinking { thinking: String, signature: String },
    /// Reasoning that only the provider can read.
    RedactedThinking { data: String },
}

/// What a reply leaves behind for the provider, tagged so that no other adapter takes it for its own.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    provider: String,
    blocks: Vec<Reasoning>,
    /// Where each block stood; left out where all of them began the reply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    places: Vec<Place>,
}

/// What was said before a block of reasoning: so many bytes of text, and so many calls. A model may reason again between its
/// calls, and the provider refuses reasoning that does not stand where it was signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Serialize, Deserialize)]
pub(crate) struct Place(pub(crate) usize, pub(crate) usize);

const PROVIDER: &str = "anthropic";

impl State {
    fn new(blocks: Vec<Reasoning>, mut places: Vec<Place>) -> Self {
        if places.iter().all(|place| *place == Place::default()) {
            places.clear();
        }
        Self { provider: PROVIDER.to_owned(), blocks, places }
    }

    /// The blocks and their places in a message with this text and so many calls; none of them where they do not fit it.
    pub(crate) fn placed(self, text: &str, calls: usize) -> Vec<(Place, Reasoning)> {
        let Self { blocks, mut places, .. } = self;
        if places.is_empty() {
            places = vec![Place::default(); blocks.len()];
        }
        let within = |place: &Place| text.is_char_boundary(place.0) && place.1 <= calls;
        let in_order = places.is_sorted_by_key(|place| place.0) && places.is_sorted_by_key(|place| place.1);
        if places.len() != blocks.len() || !in_order || !places.iter().all(within) {
            return Vec::new();
        }
        places.into_iter().zip(blocks).collect()
    }

    /// The state of this provider; `None` for a foreign or unreadable one.
    pub(crate) fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().filter(|state: &Self| state.provider == PROVIDER)
    }
}

/// A content block as it begins, or whole.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Block<'a> {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    data: Option<String>,
    id: Option<String>,
    name: Option<String>,
    /// As it was written: a large one is not taken apart, and no digit of it is lost.
    #[serde(borrow)]
    input: Option<&'a RawValue>,
}

impl<'a> Block<'a> {
    /// Reads a block. Of a kind that is nothing to this adapter, whose members may be anything, only the kind is read.
    pub(crate) fn read(json: &'a RawValue) -> Result<Self> {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(rename = "type")]
            kind: String,
        }
        let read = serde_json::from_str::<Self>(json.get());
        read.or_else(|why| match serde_json::from_str::<Kind>(json.get()) {
            Ok(Kind { kind }) if !KNOWN.contains(&kind.as_str()) => Ok(Self { kind, ..Self::default() }),
            _ => Err(not_understood("a block of the reply", &why)),
        })
    }
}

const TEXT: &str = "text";
const THINKING: &str = "thinking";
const REDACTED: &str = "redacted_thinking";
const CALL: &str = "tool_use";
const KNOWN: [&str; 4] = [TEXT, THINKING, REDACTED, CALL];

/// What an open block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Text,
    /// Reasoning, and where it is kept.
    Reasoning(usize),
    /// A call, and where it is kept.
    Call(usize),
    /// A kind of block that is nothing to this adapter, a server's own tool, for one.
    Skipped,
}

/// A call whose arguments are still coming.
#[derive(Debug)]
struct OpenCall {
    id: String,
    name: Arc<str>,
    arguments: String,
    /// The arguments stand at the block's start. Pieces that follow replace them.
    given_whole: bool,
}

/// A reply in the making. What is kept is bounded, whatever the indices say.
#[derive(Debug)]
pub(crate) struct Blocks {
    names: ToolNames,
    open: Vec<(Option<u64>, Slot)>,
    reasoning: Vec<Reasoning>,
    /// Where each block of reasoning stands.
    places: Vec<Place>,
    calls: Vec<OpenCall>,
    /// Bytes of text that were said.
    text: usize,
    kept: usize,
    said_something: bool,
}

impl Blocks {
    pub(crate) fn new(names: ToolNames) -> Self {
        Self {
            names,
            open: Vec::new(),
            reasoning: Vec::new(),
            places: Vec::new(),
            calls: Vec::new(),
            text: 0,
            kept: 0,
            said_something: false,
        }
    }

    /// A block begins. One that is open under the same index is closed by it: a server that numbers two calls alike has
    /// still made two calls.
    pub(crate) fn start(&mut self, index: Option<u64>, block: Block<'_>, out: &mut Vec<Delta>) -> Result<()> {
        self.stop(index);
        let slot = match block.kind.as_str() {
            TEXT => {
                self.text(&block.text.unwrap_or_default(), out);
                Slot::Text
            }
            THINKING => self.start_thinking(block, out)?,
            REDACTED => {
                let data = block.data.unwrap_or_default();
                self.keep(BLOCK_BYTES + data.len())?;
                self.said_something = true;
                self.keep_reasoning(Reasoning::RedactedThinking { data })
            }
            CALL => self.start_call(block, out)?,
            _ => Slot::Skipped,
        };
        if self.open.len() >= MAX_OPEN {
            return Err(broke_protocol(format!("the reply holds more than {MAX_OPEN} blocks open")));
        }
        self.open.push((index, slot));
        Ok(())
    }

    /// A block is over.
    pub(crate) fn stop(&mut self, index: Option<u64>) {
        if index.is_some() {
            self.open.retain(|(other, _)| *other != index);
        }
    }

    pub(crate) fn stop_last(&mut self) {
        self.open.pop();
    }

    /// A piece of text. It is said wherever it stands, in whatever block: leaving it out would lose what the model said.
    pub(crate) fn text(&mut self, piece: &str, out: &mut Vec<Delta>) {
        if !piece.is_empty() {
            self.said_something = true;
            self.text += piece.len();
            out.push(Delta::Text(piece.into()));
        }
    }

    /// A piece of reasoning, likewise. Outside a block of reasoning it is unsigned, and not kept.
    pub(crate) fn thinking(&mut self, index: Option<u64>, piece: &str, out: &mut Vec<Delta>) -> Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        self.said_something = true;
        out.push(Delta::Reasoning(piece.into()));
        let Some(at) = self.open_reasoning(index) else { return Ok(()) };
        self.keep(piece.len())?;
        if let Reasoning::Thinking { thinking, .. } = &mut self.reasoning[at] {
            thinking.push_str(piece);
        }
        Ok(())
    }

    /// The signature of a block of reasoning.
    pub(crate) fn signature(&mut self, index: Option<u64>, text: &str) -> Result<()> {
        let Some(at) = self.open_reasoning(index) else { return Ok(()) };
        self.keep(text.len())?;
        if let Reasoning::Thinking { signature, .. } = &mut self.reasoning[at] {
            text.clone_into(signature);
        }
        Ok(())
    }

    /// A piece of a call's arguments. They belong to one call and to no other, so outside an open call they are refused.
    pub(crate) fn arguments(&mut self, index: Option<u64>, piece: &str, out: &mut Vec<Delta>) -> Result<()> {
        let at = match self.find(index, |slot| matches!(slot, Slot::Call(_) | Slot::Skipped)) {
            Some(Slot::Call(at)) => at,
            Some(Slot::Skipped) => return Ok(()),
            _ => return Err(broke_protocol("the reply has arguments outside a tool call")),
        };
        if piece.is_empty() {
            return Ok(());
        }
        self.keep(piece.len())?;
        let call = &mut self.calls[at];
        if std::mem::take(&mut call.given_whole) {
            call.arguments.clear();
        }
        if call.arguments.len() + piece.len() > MAX_ARGUMENT_BYTES {
            return Err(broke_protocol(format!(
                "the arguments of a tool call are longer than {MAX_ARGUMENT_BYTES} bytes"
            )));
        }
        call.arguments.push_str(piece);
        out.push(Delta::Arguments(piece.into()));
        Ok(())
    }

    /// The reply is over: its calls in the order of their blocks, what the provider wants back, and the end.
    pub(crate) fn finish(self, stop: Option<&str>, reports: &Reports, out: &mut Vec<Delta>) {
        let usage = reports.usage(self.said_something || !self.calls.is_empty());
        let calls = whole_calls(self.calls, stop);
        let stop = stop_reason(stop, !calls.is_empty());
        out.extend(calls.into_iter().map(Delta::ToolCall));
        // A state that lacks a block, or a signature, is one that the provider would refuse.
        let signed = |block: &Reasoning| match block {
            Reasoning::Thinking { signature, .. } => !signature.is_empty(),
            Reasoning::RedactedThinking { data } => !data.is_empty(),
        };
        if !self.reasoning.is_empty() && self.reasoning.iter().all(signed) {
            let state = State::new(self.reasoning, self.places);
            let state = serde_json::to_string(&state).expect("strings and numbers are valid JSON");
            out.push(Delta::ProviderState(state.into()));
        }
        let mut done = Done::without_usage(stop);
        done.usage = usage;
        out.push(Delta::Done(done));
    }

    fn start_thinking(&mut self, block: Block<'_>, out: &mut Vec<Delta>) -> Result<Slot> {
        let (thinking, signature) = (block.thinking.unwrap_or_default(), block.signature.unwrap_or_default());
        self.keep(BLOCK_BYTES + thinking.len() + signature.len())?;
        if !thinking.is_empty() {
            self.said_something = true;
            out.push(Delta::Reasoning(thinking.as_str().into()));
        }
        Ok(self.keep_reasoning(Reasoning::Thinking { thinking, signature }))
    }

    fn keep_reasoning(&mut self, block: Reasoning) -> Slot {
        self.reasoning.push(block);
        self.places.push(Place(self.text, self.calls.len()));
        Slot::Reasoning(self.reasoning.len() - 1)
    }

    fn start_call(&mut self, block: Block<'_>, out: &mut Vec<Delta>) -> Result<Slot> {
        if self.calls.len() >= MAX_TOOL_SLOTS {
            return Err(broke_protocol(format!("the reply has more than {MAX_TOOL_SLOTS} tool calls")));
        }
        let name = block.name.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| broke_protocol("the reply has a tool call without a name"))?;
        let given =
            block.input.map(RawValue::get).filter(|input| !is_empty_object(input)).unwrap_or_default();
        if given.len() > MAX_ARGUMENT_BYTES {
            return Err(broke_protocol(format!(
                "the arguments of a tool call are longer than {MAX_ARGUMENT_BYTES} bytes"
            )));
        }
        let id = block.id.unwrap_or_default();
        if name.len() > MAX_NAME_BYTES || id.len() > MAX_ID_BYTES {
            return Err(broke_protocol("the name or the id of a tool call is too long"));
        }
        self.keep(BLOCK_BYTES + id.len() + name.len() + given.len())?;
        let given_whole = !given.is_empty();
        if given_whole {
            out.push(Delta::Arguments(given.into()));
        }
        let name = self.names.name(&name);
        self.calls.push(OpenCall { id, name, arguments: given.to_owned(), given_whole });
        Ok(Slot::Call(self.calls.len() - 1))
    }

    fn open_reasoning(&self, index: Option<u64>) -> Option<usize> {
        match self.find(index, |slot| matches!(slot, Slot::Reasoning(_)))? {
            Slot::Reasoning(at) => Some(at),
            _ => None,
        }
    }

    /// The open block of that index; without one, the last open block that is `fitting`.
    fn find(&self, index: Option<u64>, fitting: impl Fn(Slot) -> bool) -> Option<Slot> {
        let mut open = self.open.iter().rev();
        let found = match index {
            Some(_) => open.find(|(other, _)| *other == index),
            None => open.find(|(_, slot)| fitting(*slot)),
        };
        found.map(|(_, slot)| *slot)
    }

    fn keep(&mut self, bytes: usize) -> Result<()> {
        self.kept += bytes;
        if self.kept > MAX_KEPT_BYTES {
            return Err(broke_protocol(format!(
                "the calls and the reasoning of the reply are longer than {MAX_KEPT_BYTES} bytes"
            )));
        }
        Ok(())
    }
}

fn is_empty_object(json: &str) -> bool {
    let inner = json.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    inner.is_some_and(|inner| inner.trim().is_empty())
}

/// The calls that were said to their end. When the tokens ran out, the last one may not have been: acting on half of its
/// arguments, or on none, would be another call than the one the model was making.
fn whole_calls(calls: Vec<OpenCall>, stop: Option<&str>) -> Vec<ToolCall> {
    let cut_off = ran_out(stop) && calls.last().is_some_and(|last| !is_object(&last.arguments));
    let whole = calls.len() - usize::from(cut_off);
    let call = |call: OpenCall| {
        let arguments = if call.arguments.is_empty() { "{}" } else { &call.arguments };
        ToolCall::new(call.id, call.name, arguments)
    };
    calls.into_iter().take(whole).map(call).collect()
}

/// Whether a text is one whole JSON object.
pub(crate) fn is_object(text: &str) -> bool {
    text.trim_start().starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

fn ran_out(stop: Option<&str>) -> bool {
    matches!(stop, Some("max_tokens" | "model_context_window_exceeded"))
}

fn stop_reason(stop: Option<&str>, called: bool) -> StopReason {
    match stop {
        _ if ran_out(stop) => StopReason::MaxTokens,
        Some("end_turn" | "stop_sequence") => StopReason::End,
        Some("tool_use") => StopReason::ToolUse,
        // The second and third are what gateways to other clouds say.
        Some("refusal" | "content_filtered" | "content_filter" | "guardrail_intervened") => {
            StopReason::Refusal
        }
        Some(other) => StopReason::Other(other.chars().filter(|c| !c.is_control()).take(64).collect()),
        None if called => StopReason::ToolUse,
        None => StopReason::Other("none".to_owned()),
    }
}
