//! The one fold of both decoders: events, or the one body, into a reply.

use std::sync::Arc;

use loomflow_core::{Delta, Done, Error, ErrorKind, Result, StopReason, ToolSpec};
use loomflow_support_model::provider_text;
use serde_json::json;
use serde_json::value::RawValue;

use crate::calls::Calls;
use crate::errors::within_reply;
use crate::usage::Reported;
use crate::wire::{Choice, Chunk, Said};

/// The most reasoning that is kept to be given back.
const MAX_KEPT_REASONING: usize = 256 << 10;

/// What a reply has said so far.
#[derive(Debug)]
pub(crate) struct Fold {
    calls: Calls,
    usage: Reported,
    finish: Option<String>,
    refused: bool,
    /// It has said anything at all.
    said: bool,
    thought: Option<Thought>,
}

/// Reasoning, under the name that the server gave it.
#[derive(Debug)]
struct Thought {
    member: &'static str,
    text: String,
}

impl Fold {
    pub(crate) fn new(tools: &[Arc<ToolSpec>]) -> Self {
        Self {
            calls: Calls::new(tools),
            usage: Reported::default(),
            finish: None,
            refused: false,
            said: false,
            thought: None,
        }
    }

    /// Whether a reason to stop was given.
    pub(crate) fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// Takes an event or a body; gives back whether it had a choice.
    pub(crate) fn take(&mut self, chunk: Chunk, out: &mut Vec<Delta>) -> Result<bool> {
        if let Some(error) = &chunk.error {
            return Err(within_reply(error));
        }
        if let Some(report) = &chunk.usage {
            self.usage.take(report);
        }
        if let Some(groq) = &chunk.x_groq {
            self.take_groq(groq);
        }
        // One reply was asked for; what else is numbered is not it.
        let choice = chunk.choices.0.into_iter().find(|choice| choice.index.0.unwrap_or(0) == 0);
        let has_choice = choice.is_some();
        if let Some(choice) = choice {
            self.take_choice(choice, out)?;
        }
        Ok(has_choice)
    }

    /// The calls, what is to be given back, and the end.
    pub(crate) fn finish(&mut self, out: &mut Vec<Delta>) -> Result<()> {
        if let Some(reason @ ("error" | "abort" | "insufficient_system_resource")) = self.finish.as_deref() {
            // Half an answer, with half a call perhaps, must not pass for one.
            let message = format!("the provider gave the reply up (finish_reason {reason:?})");
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        if self.was_cut_off() {
            self.calls.keep_whole();
        }
        let calls = !self.calls.is_empty();
        self.calls.finish(out);
        if let Some(thought) = self.thought.take().filter(|thought| calls && thought.fits()) {
            let mut state = serde_json::Map::new();
            state.insert(thought.member.to_owned(), json!(thought.text));
            out.push(Delta::ProviderState(serde_json::Value::Object(state).to_string().into()));
        }
        let stop = self.stop(calls);
        out.push(Delta::Done(match self.usage.usage(self.said) {
            Some(usage) => Done::new(usage, stop),
            None => Done::without_usage(stop),
        }));
        Ok(())
    }

    fn take_groq(&mut self, groq: &RawValue) {
        #[derive(serde::Deserialize)]
        struct Groq {
            usage: Option<Box<RawValue>>,
        }
        if let Ok(Groq { usage: Some(usage) }) = serde_json::from_str(groq.get()) {
            self.usage.take(&usage);
        }
    }

    fn take_choice(&mut self, choice: Choice, out: &mut Vec<Delta>) -> Result<()> {
        if let Some(said) = choice.delta.or(choice.message) {
            self.take_said(said, out)?;
        }
        if !choice.finish_reason.0.is_empty() {
            self.finish = Some(choice.finish_reason.0);
        }
        Ok(())
    }

    fn take_said(&mut self, said: Said, out: &mut Vec<Delta>) -> Result<()> {
        // Some servers send their reasoning under both names.
        let reasoning = match said.reasoning_content.0 {
            text if text.is_empty() => ("reasoning", said.reasoning.0),
            text => ("reasoning_content", text),
        };
        self.take_reasoning(reasoning, out);
        for text in [said.content.0, said.refusal.0.clone()] {
            if !text.is_empty() {
                self.said = true;
                out.push(Delta::Text(text.into()));
            }
        }
        self.refused |= !said.refusal.0.is_empty();
        for piece in said.tool_calls.0 {
            self.said = true;
            self.calls.take(piece, out)?;
        }
        Ok(())
    }

    fn take_reasoning(&mut self, (member, text): (&'static str, String), out: &mut Vec<Delta>) {
        if text.is_empty() {
            return;
        }
        self.said = true;
        let thought = self.thought.get_or_insert_with(|| Thought { member, text: String::new() });
        // One that is too long is not kept in part: its length says so.
        if thought.fits() {
            thought.text.push_str(&text);
        }
        out.push(Delta::Reasoning(text.into()));
    }

    /// Whether the model was stopped before it was done: what it said last may be half of it.
    fn was_cut_off(&self) -> bool {
        matches!(self.finish.as_deref(), Some("length" | "max_tokens" | "model_length" | "content_filter"))
    }

    fn stop(&self, calls: bool) -> StopReason {
        if self.refused {
            return StopReason::Refusal;
        }
        match self.finish.as_deref() {
            Some("length" | "max_tokens" | "model_length") => StopReason::MaxTokens,
            Some("content_filter") => StopReason::Refusal,
            // Many servers say "stop" whatever it was.
            Some("tool_calls" | "function_call" | "stop") | None if calls => StopReason::ToolUse,
            Some("tool_calls" | "function_call") => StopReason::ToolUse,
            Some("stop") | None => StopReason::End,
            Some(other) => StopReason::Other(provider_text(other)),
        }
    }
}

impl Thought {
    fn fits(&self) -> bool {
        self.text.len() <= MAX_KEPT_REASONING
    }
}
