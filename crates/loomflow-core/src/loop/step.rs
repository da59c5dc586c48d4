//! The loop as a pure function: plain data in, plain data out. No await, no I/O, no clock: it can be replayed,
//! benchmarked and tested exhaustively.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ledger::Refusal;
use crate::message::{Message, ToolCall};
use crate::model::StopReason;
use crate::result::{ToolCallReport, ToolStatus};
use crate::schema::{OutputSchema, parse_output};
use crate::usage::Usage;

/// What bounds a run's loop.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoopConfig {
    /// The most model calls (structured-output retries included).
    pub max_turns: u32,
    /// How often an answer that misses the schema may be asked for again.
    pub output_retries: u32,
    /// The schema the final answer must meet.
    pub schema: Option<Arc<dyn OutputSchema>>,
}

impl LoopConfig {
    /// At most `max_turns` model calls; one retry of an answer that misses its schema.
    #[must_use]
    pub fn new(max_turns: u32) -> Self {
        Self { max_turns, output_retries: 1, schema: None }
    }

    /// Asks for an answer that meets a schema.
    #[must_use]
    pub fn with_schema(mut self, schema: Option<Arc<dyn OutputSchema>>, retries: u32) -> Self {
        self.schema = schema;
        self.output_retries = retries;
        self
    }
}

/// Where a run stands. Plain data: the same events always lead to the same state.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct State {
    /// The prompt of the next model call: what was assembled, then everything said since.
    pub messages: Arc<Vec<Message>>,
    /// Model calls that were answered.
    pub turns: u32,
    /// The last text the model said.
    pub text: Arc<str>,
    /// The tool calls so far, in order, and how they ended.
    pub reports: Vec<ToolCallReport>,
    retries_left: u32,
    config: LoopConfig,
}

impl State {
    /// The state of a run whose prompt is assembled.
    #[must_use]
    pub fn new(config: LoopConfig, messages: Vec<Message>) -> Self {
        Self {
            messages: Arc::new(messages),
            turns: 0,
            text: Arc::from(""),
            reports: Vec::new(),
            retries_left: config.output_retries,
            config,
        }
    }

    fn say(&mut self, message: Message) {
        // The driver holds the prompt only while a call is made, so this almost never copies.
        Arc::make_mut(&mut self.messages).push(message);
    }

    fn ask(self) -> (Self, Action) {
        if self.turns >= self.config.max_turns {
            return (self, Action::Finish(Finish::Interrupted { reason: "max_turns".into() }));
        }
        let messages = self.messages.clone();
        (self, Action::Model { messages })
    }
}

/// A model's whole reply: the fold of its stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Reply {
    /// What it said.
    pub text: Arc<str>,
    /// The tools it wants called, in order.
    pub calls: Vec<ToolCall>,
    /// Why it stopped.
    pub stop: StopReason,
    /// What the provider wants back with this reply. Not journaled.
    #[serde(skip)]
    pub provider_state: Option<Arc<str>>,
}

impl Reply {
    /// A reply.
    #[must_use]
    pub fn new(text: impl Into<Arc<str>>, calls: Vec<ToolCall>, stop: StopReason) -> Self {
        Self { text: text.into(), calls, stop, provider_state: None }
    }
}

/// How one tool call ended, and what the model is told about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CallOutcome {
    /// How it ended.
    pub status: ToolStatus,
    /// What the model is told.
    pub text: Arc<str>,
    /// What runs that the tool delegated to used; counted already where the call was made.
    #[serde(default)]
    pub usage: Usage,
}

impl CallOutcome {
    /// An outcome.
    #[must_use]
    pub fn new(status: ToolStatus, text: impl Into<Arc<str>>) -> Self {
        Self { status, text: text.into(), usage: Usage::default() }
    }
}

/// What happened since the last action.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The prompt is assembled.
    Begin,
    /// The model replied.
    Reply(Reply),
    /// All tool calls of the reply ended; outcomes in call order.
    Outcomes(Vec<CallOutcome>),
    /// The ledger refused the next call.
    Refused(Box<Refusal>),
    /// A rate limit did not let the next call through; its configuration key.
    Limited(&'static str),
}

/// What the driver is to do next.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Action {
    /// Call the model with these messages.
    Model {
        /// The prompt.
        messages: Arc<Vec<Message>>,
    },
    /// Run these tool calls, and answer with their outcomes in the same order.
    Tools(Arc<[ToolCall]>),
    /// The run is over.
    Finish(Finish),
}

/// How a run's loop ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Finish {
    /// With an answer.
    Completed {
        /// The answer as JSON, when a schema was asked for.
        parsed: Option<Value>,
    },
    /// By a limit.
    Interrupted {
        /// Which, such as `max_turns` or `budget:per_user_max_tokens`.
        reason: String,
    },
    /// The answer missed its schema and the retries are used up.
    OutputInvalid {
        /// What was wrong with the last answer.
        problems: Vec<String>,
    },
}

/// One step of the loop.
///
/// An interrupted run never enters the validation of its output, so a refused user cannot get an answer by asking for
/// structured output.
#[must_use]
pub fn step(mut state: State, event: Event) -> (State, Action) {
    match event {
        Event::Begin => state.ask(),
        Event::Reply(reply) => on_reply(state, reply),
        Event::Outcomes(outcomes) => {
            let calls =
                state.messages.last().and_then(|m| m.tool_calls.clone()).unwrap_or_else(|| Arc::from([]));
            for (call, outcome) in calls.iter().zip(outcomes) {
                state.say(Message::tool(call.id.clone(), outcome.text));
                let (id, name) = (call.id.clone(), call.name.clone());
                state.reports.push(ToolCallReport { id, name, status: outcome.status });
            }
            state.ask()
        }
        Event::Refused(refusal) => {
            let reason = format!("budget:{}", refusal.cap);
            (state, Action::Finish(Finish::Interrupted { reason }))
        }
        Event::Limited(limit) => {
            let reason = format!("rate_limit:{limit}");
            (state, Action::Finish(Finish::Interrupted { reason }))
        }
    }
}

fn on_reply(mut state: State, reply: Reply) -> (State, Action) {
    state.turns += 1;
    let Reply { text, calls, stop, provider_state } = reply;
    state.text = text.clone();
    // What a provider refused to finish saying is not acted on.
    if !calls.is_empty() && stop != StopReason::Refusal {
        let calls: Arc<[ToolCall]> = calls.into();
        state.say(Message::assistant_calls(text, calls.clone()).with_provider_state(provider_state));
        return (state, Action::Tools(calls));
    }
    state.say(Message::assistant(text).with_provider_state(provider_state));
    match stop {
        StopReason::MaxTokens => {
            (state, Action::Finish(Finish::Interrupted { reason: "max_output_tokens".into() }))
        }
        StopReason::Refusal => {
            (state, Action::Finish(Finish::Interrupted { reason: "model_refusal".into() }))
        }
        StopReason::End | StopReason::ToolUse | StopReason::Other(_) => check_output(state),
    }
}

fn check_output(mut state: State) -> (State, Action) {
    let Some(schema) = state.config.schema.clone() else {
        return (state, Action::Finish(Finish::Completed { parsed: None }));
    };
    let checked = parse_output(&state.text).and_then(|value| schema.validate(&value).map(|()| value));
    match checked {
        Ok(value) => (state, Action::Finish(Finish::Completed { parsed: Some(value) })),
        Err(problems) if state.retries_left == 0 => {
            (state, Action::Finish(Finish::OutputInvalid { problems }))
        }
        Err(problems) => {
            state.retries_left -= 1;
            let complaint = format!(
                "The answer does not meet the required JSON Schema:\n- {}\nAnswer again with one JSON value that does, \
                 and nothing else.",
                problems.join("\n- ")
            );
            state.say(Message::user(complaint));
            state.ask()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct MustBe(i64, Arc<Value>);
    impl OutputSchema for MustBe {
        fn schema(&self) -> &Arc<Value> {
            &self.1
        }
        fn validate(&self, value: &Value) -> Result<(), Vec<String>> {
            if value.as_i64() == Some(self.0) { Ok(()) } else { Err(vec![format!("must be {}", self.0)]) }
        }
    }

    fn begun(config: LoopConfig) -> State {
        let (state, action) = step(State::new(config, vec![Message::user("hi")]), Event::Begin);
        assert!(matches!(action, Action::Model { .. }));
        state
    }

    fn said(text: &str) -> Event {
        Event::Reply(Reply::new(text, vec![], StopReason::End))
    }

    fn called(ids: &[&str]) -> Event {
        let calls = ids.iter().map(|id| ToolCall::new(*id, "t", "{}")).collect();
        Event::Reply(Reply::new("", calls, StopReason::ToolUse))
    }

    #[test]
    fn outcomes_are_appended_in_call_order() {
        let (state, action) = step(begun(LoopConfig::new(9)), called(&["a", "b"]));
        assert!(matches!(action, Action::Tools(calls) if calls.len() == 2));
        let outcomes = vec![CallOutcome::new(ToolStatus::Ok, "1"), CallOutcome::new(ToolStatus::Denied, "2")];
        let (state, action) = step(state, Event::Outcomes(outcomes));
        let Action::Model { messages } = action else { panic!("{action:?}") };
        let told: Vec<_> =
            messages.iter().filter_map(|m| m.tool_call_id.as_deref().map(|id| (id, &*m.text))).collect();
        assert_eq!(told, [("a", "1"), ("b", "2")]);
        assert_eq!(state.reports[1].status, ToolStatus::Denied);
    }

    #[test]
    fn turns_are_bounded_even_by_tool_calls_and_retries() {
        let mut state = begun(LoopConfig::new(3));
        for turn in 1..=3 {
            let (next, action) = step(state, called(&["a"]));
            assert!(matches!(action, Action::Tools(_)));
            let (next, action) = step(next, Event::Outcomes(vec![CallOutcome::new(ToolStatus::Ok, "")]));
            assert_eq!(matches!(action, Action::Model { .. }), turn < 3);
            state = next;
        }
        let schema: Arc<dyn OutputSchema> = Arc::new(MustBe(1, Arc::default()));
        let (_, action) = step(begun(LoopConfig::new(1).with_schema(Some(schema), 5)), said("2"));
        assert!(matches!(action, Action::Finish(Finish::Interrupted { reason }) if reason == "max_turns"));
    }

    #[test]
    fn an_answer_that_misses_the_schema_is_asked_for_again_a_bounded_number_of_times() {
        let schema: Arc<dyn OutputSchema> = Arc::new(MustBe(1, Arc::default()));
        let state = begun(LoopConfig::new(9).with_schema(Some(schema), 2));
        let (state, action) = step(state, said("2"));
        assert!(
            matches!(&action, Action::Model { messages } if messages.last().unwrap().text.contains("must be 1"))
        );
        let (state, _) = step(state, said("nonsense"));
        let (good, _) = (state.clone(), ());
        let (_, action) = step(state, said("3"));
        assert!(matches!(action, Action::Finish(Finish::OutputInvalid { .. })));
        let (_, action) = step(good, said("```json\n1\n```"));
        assert!(matches!(action, Action::Finish(Finish::Completed { parsed: Some(v) }) if v == 1));
    }

    #[test]
    fn an_interrupted_run_never_enters_validation() {
        let schema: Arc<dyn OutputSchema> = Arc::new(MustBe(1, Arc::default()));
        let config = LoopConfig::new(9).with_schema(Some(schema), 2);
        let cut = Event::Reply(Reply::new("2", vec![], StopReason::MaxTokens));
        let refusal = Refusal::new(
            crate::RefusalReason::Exhausted,
            crate::Entity::User,
            crate::Cap::Tokens,
            crate::Window::Day,
        );
        for (event, why) in [
            (cut, "max_output_tokens"),
            (Event::Refused(Box::new(refusal)), "budget:per_user_max_tokens"),
            (Event::Limited("per_user_tokens_per_minute"), "rate_limit:per_user_tokens_per_minute"),
        ] {
            let (_, action) = step(begun(config.clone()), event);
            assert!(matches!(action, Action::Finish(Finish::Interrupted { reason }) if reason == why));
        }
    }
}
