//! The one place that awaits: it does what the loop asks for, through the doors, and answers with what happened.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::Value;

use crate::door::{Answer, Executed, STEPS_OF_A_CALL, call_model, embed, run_tool};
use crate::error::{Error, ErrorKind, Result};
use crate::event::EventKind;
use crate::image::Image;
use crate::ledger::Refusal;
use crate::r#loop::assemble::{Question, assemble};
use crate::r#loop::step::{Action, CallOutcome, Event, Finish, LoopConfig, State, step};
use crate::memory::NewEpisode;
use crate::message::{Digest, Message, Role, ToolCall};
use crate::model::{EmbedPurpose, ModelRequest};
use crate::result::{RunStatus, ToolCallReport};
use crate::run::{Journaled, RunState, Step};
use crate::schema::OutputSchema;

/// What the loop came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: RunStatus,
    pub(crate) reason: Option<String>,
    pub(crate) text: Arc<str>,
    pub(crate) parsed: Option<Value>,
    pub(crate) reports: Vec<ToolCallReport>,
    pub(crate) refusal: Option<Box<Refusal>>,
    pub(crate) error: Option<Error>,
    /// What a completed run is remembered by.
    pub(crate) episode: Option<NewEpisode>,
}

/// What is asked of a run.
pub(crate) struct Task {
    pub(crate) input: Arc<str>,
    pub(crate) images: Vec<Image>,
    pub(crate) schema: Option<Arc<dyn OutputSchema>>,
    pub(crate) output_retries: u32,
}

/// Drives a run from its input to its outcome. Does not write what it came to into memory: that is not the deadline's.
pub(crate) async fn drive(run: &Arc<RunState>, task: &Task) -> Result<Outcome> {
    let agent = &run.agent;
    let prompt = prompt(run, task).await?;
    let said_from = prompt.iter().rposition(|m| m.role == Role::User).unwrap_or(0);
    let config =
        LoopConfig::new(agent.settings.max_turns).with_schema(task.schema.clone(), task.output_retries);
    let schema = task.schema.as_ref().map(|schema| schema.schema().clone());
    let (mut state, mut action) = step(State::new(config, prompt), Event::Begin);
    let mut refusal = None;
    // Whether the calls at hand come from a journal that had to take a secret out of them.
    let mut altered = false;
    let finish = loop {
        let event = match action {
            Action::Model { messages } => {
                let request = ModelRequest {
                    messages,
                    tools: agent.tool_specs.clone(),
                    output_schema: schema.clone(),
                    max_output_tokens: agent.settings.max_output_tokens,
                };
                match turn(run, request).await {
                    Ok((answer, replayed_altered)) => {
                        altered = replayed_altered;
                        Event::Reply(answer.reply)
                    }
                    Err(error) => match (error.refusal().cloned(), error.limited()) {
                        (Some(refused), _) => {
                            refusal = Some(Box::new(refused.clone()));
                            Event::Refused(Box::new(refused))
                        }
                        // What was reached so far is not given up for it. Before the first turn there is nothing to keep.
                        (None, Some(limited)) if state.turns > 0 => Event::Limited(limited.limit),
                        _ => return Err(error),
                    },
                }
            }
            Action::Tools(calls) => match tools(run, &calls, altered).await? {
                Some(outcomes) => Event::Outcomes(outcomes),
                None => return Ok(parked(&state)),
            },
            Action::Finish(finish) => break finish,
        };
        (state, action) = step(state, event);
        run.totals().turns = state.turns;
    };
    Ok(conclude(run, state, finish, refusal, said_from))
}

/// The assembled prompt: journaled, so that a run that is resumed goes on from the same one.
async fn prompt(run: &Arc<RunState>, task: &Task) -> Result<Vec<Message>> {
    let agent = &run.agent;
    let native = agent.model.capabilities().structured_output;
    let directive = task.schema.as_ref().filter(|_| !native).map(|schema| {
        format!(
            "Answer with one JSON value that meets this JSON Schema, and nothing else:\n{}",
            schema.schema()
        )
    });
    let effect = async || {
        let embedding = embed(run, &task.input, EmbedPurpose::Query).await;
        let question = Question {
            instructions: &agent.instructions,
            directive,
            input: &task.input,
            images: &task.images,
            embedding,
        };
        assemble(run, &agent.settings, question).await
    };
    let seq = run.next_steps(1);
    match run.journaled(Step::idempotent(seq), || run.fingerprint("prompt", &task.input), effect).await? {
        Journaled::Made(prompt) | Journaled::Replayed(prompt) => Ok(prompt),
        Journaled::InDoubt => {
            Err(Error::new(ErrorKind::Internal, "assembling a prompt is idempotent and never in doubt"))
        }
    }
}

/// One model call through the door. What was recorded is replayed and not charged again; what was cut off by a crash is
/// made again, and the stream's reader is told that the text so far is void.
async fn turn(run: &Arc<RunState>, request: ModelRequest) -> Result<(Answer, bool)> {
    let seq = run.next_steps(1);
    let messages = request.messages.clone();
    let fingerprint = || run.fingerprint("model", &*messages);
    let journaled = run.is_journaled();
    let calling = async || {
        let mut answer = call_model(run, request).await?;
        answer.calls = journaled.then(|| raw(&answer.reply.calls));
        Ok(answer)
    };
    let step = Step::idempotent(seq).saying_when_repeated(EventKind::TextReset {});
    let made = run.journaled(step, fingerprint, calling).await?;
    drop(messages);
    match made {
        Journaled::Made(answer) => Ok((answer, false)),
        Journaled::Replayed(answer) => {
            run.used(answer.usage);
            if !answer.reply.text.is_empty() {
                let text = answer.reply.text.clone();
                run.emit(|| EventKind::TextReset {}).await;
                run.emit(|| EventKind::TextDelta { text }).await;
            }
            let altered = answer.calls.as_ref().is_some_and(|made| *made != raw(&answer.reply.calls));
            Ok((answer, altered))
        }
        Journaled::InDoubt => {
            Err(Error::new(ErrorKind::Internal, "a model call is idempotent and never in doubt"))
        }
    }
}

/// A digest of calls as they are, to see whether a journal altered them.
fn raw(calls: &[ToolCall]) -> String {
    let parts: Vec<&[u8]> =
        calls.iter().flat_map(|c| [c.id.as_bytes(), c.name.as_bytes(), c.arguments.as_bytes()]).collect();
    Digest::of(&parts).to_string()
}

/// All calls of a turn: in parallel up to the limit, outcomes in call order. `None` when one of them is in doubt.
async fn tools(
    run: &Arc<RunState>,
    calls: &Arc<[ToolCall]>,
    altered: bool,
) -> Result<Option<Vec<CallOutcome>>> {
    let count = u32::try_from(calls.len()).unwrap_or(u32::MAX);
    let first = run.next_steps(STEPS_OF_A_CALL.saturating_mul(count));
    if let [call] = &**calls {
        return Ok(match Box::pin(run_tool(run, call.clone(), first, altered)).await? {
            Executed::Ended(outcome) => Some(vec![outcome]),
            Executed::InDoubt => None,
        });
    }
    let limit = run.agent.settings.max_parallel_tools.max(1);
    let running = calls
        .iter()
        .cloned()
        .zip((first..).step_by(STEPS_OF_A_CALL as usize))
        .map(|(call, seq)| Box::pin(run_tool(run, call, seq, altered)));
    let ended: Vec<Result<Executed>> = stream::iter(running).buffered(limit).collect().await;
    let mut outcomes = Vec::with_capacity(ended.len());
    for executed in ended {
        match executed? {
            Executed::Ended(outcome) => outcomes.push(outcome),
            Executed::InDoubt => return Ok(None),
        }
    }
    Ok(Some(outcomes))
}

fn parked(state: &State) -> Outcome {
    Outcome {
        status: RunStatus::OutcomeUnknown,
        reason: Some("a tool was begun before and nobody knows how it ended".into()),
        text: state.text.clone(),
        parsed: None,
        reports: state.reports.clone(),
        refusal: None,
        error: None,
        episode: None,
    }
}

fn conclude(
    run: &RunState,
    state: State,
    finish: Finish,
    refusal: Option<Box<Refusal>>,
    said_from: usize,
) -> Outcome {
    let State { messages, text, reports, .. } = state;
    let mut outcome = Outcome {
        status: RunStatus::Completed,
        reason: None,
        text,
        parsed: None,
        reports,
        refusal,
        error: None,
        episode: None,
    };
    match finish {
        Finish::Completed { parsed } => {
            outcome.parsed = parsed;
            let ctx = &run.ctx;
            let said: Arc<[Message]> =
                messages[said_from..].iter().cloned().map(Message::remembered).collect();
            outcome.episode = Some(NewEpisode::new(ctx.run_id(), ctx.session_id().clone(), ctx.now(), said));
        }
        Finish::Interrupted { reason } => {
            outcome.status = RunStatus::Interrupted;
            outcome.reason = Some(reason);
        }
        Finish::OutputInvalid { problems } => {
            outcome.status = RunStatus::Failed;
            let message = format!("the answer does not meet its schema: {}", problems.join("; "));
            outcome.error = Some(Error::new(ErrorKind::OutputInvalid, message));
        }
    }
    outcome
}
