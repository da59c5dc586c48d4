//! One run from the door to its terminal record.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{Either, select};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::agent::AgentInner;
use crate::audit::{Action, Actor};
use crate::clock::Timestamp;
use crate::closer::{Handoff, Slot, Work};
use crate::context::{ContextParts, RunContext};
use crate::door::{admit_run, embed, refused, set_aside};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, EventKind};
use crate::identity::SessionId;
use crate::ids::RunId;
use crate::image::Image;
use crate::ledger::{Hold, Reserve};
use crate::r#loop::{Outcome, Task, drive};
use crate::memory::NewEpisode;
use crate::model::EmbedPurpose;
use crate::redact::Redacted;
use crate::result::{RunResult, RunStatus};
use crate::run::{Ending, Finisher, Latch, RunClock, RunState};
use crate::runtime::{RunLease, RunOpening, Runtime};
use crate::schema::OutputSchema;
use crate::scope::{Owner, Scope};

/// How long writing the finished turn into memory may take: its answer is there already, and is not given up for it.
const COMMIT_LIMIT: Duration = Duration::from_secs(10);
/// The most images of one run's input.
const MAX_IMAGES: usize = 20;
/// The most bytes of them together. On the wire they are a third more, and providers take requests of some 32 MB.
const MAX_IMAGE_BYTES: usize = 20 << 20;

/// What was asked.
pub(crate) struct Asked {
    pub(crate) input: Arc<str>,
    pub(crate) images: Vec<Image>,
    pub(crate) session: Option<SessionId>,
    pub(crate) session_error: Option<Error>,
    pub(crate) schema: Option<Arc<dyn OutputSchema>>,
    pub(crate) output_retries: u32,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) resume: Option<RunId>,
}

/// Runs what was asked, for the tenant who asked.
///
/// Before the run has begun (bad input, a busy session, a store that is down) an error is just an error. From
/// `run_started` on there is exactly one terminal record, whatever happens to this future.
pub(crate) async fn execute(
    agent: Arc<AgentInner>,
    owner: Owner,
    asked: Asked,
    events: Option<mpsc::Sender<Event>>,
) -> Result<RunResult> {
    check(&agent, &asked)?;
    if asked.resume.is_none() {
        // A run that goes on after a crash was let in when it began.
        admit_run(&agent, &owner).await?;
    }
    let began = agent.services.clock.now();
    let beginning = begin(&agent, &owner, &asked, events, began);
    let Ok(begun) = tokio::time::timeout(agent.settings.run_timeout, beginning).await else {
        return Err(Error::new(ErrorKind::Timeout, "the stores did not let the run begin in time")
            .with_operation("begin"));
    };
    let (run, finisher) = begun?;
    finish(run, finisher, asked, began).await
}

/// What comes after a run was let in, for one that was asked for and for one that was delegated to.
pub(super) async fn finish(
    run: Arc<RunState>,
    finisher: Finisher,
    asked: Asked,
    began: Timestamp,
) -> Result<RunResult> {
    let task = Task {
        input: asked.input,
        images: asked.images,
        schema: asked.schema,
        output_retries: asked.output_retries,
    };
    let ended = guarded_by_deadline(&run, &task, asked.resume.is_some()).await;
    conclude(&run, finisher, began, ended).await
}

pub(super) fn check(agent: &AgentInner, asked: &Asked) -> Result<()> {
    if agent.closed.load(Ordering::Acquire) {
        return Err(Error::new(ErrorKind::Conflict, "the agent is shutting down and takes no new runs"));
    }
    if let Some(error) = &asked.session_error {
        return Err(Error::invalid_input(error.message()));
    }
    let limit = agent.settings.max_input_bytes;
    if asked.input.len() > limit {
        let message = format!("the input is {} bytes long; at most {limit} are allowed", asked.input.len());
        return Err(Error::invalid_input(message));
    }
    if asked.images.len() > MAX_IMAGES {
        let message = format!("{} images are shown; at most {MAX_IMAGES} are allowed", asked.images.len());
        return Err(Error::invalid_input(message));
    }
    let bytes: usize = asked.images.iter().map(Image::bytes).sum();
    if bytes > MAX_IMAGE_BYTES {
        let message =
            format!("the images are {bytes} bytes large together; at most {MAX_IMAGE_BYTES} are allowed");
        return Err(Error::invalid_input(message));
    }
    Ok(())
}

/// Mints the scope, takes the session's lease and arms the finisher.
async fn begin(
    agent: &Arc<AgentInner>,
    owner: &Owner,
    asked: &Asked,
    events: Option<mpsc::Sender<Event>>,
    now: Timestamp,
) -> Result<(Arc<RunState>, Finisher)> {
    let mut scope = agent.mint(owner).await?;
    let id = asked.resume.unwrap_or_else(|| RunId::fresh(now));
    let mut slot = agent.closer.enter(id.as_u128())?;
    let session = asked.session.clone().unwrap_or_else(SessionId::fresh);
    let lease = match &agent.runtime {
        None => RunLease::new(id, 0),
        Some(runtime) => {
            let input = if runtime.journals() {
                written_down(agent, asked)
            } else {
                agent.services.redactor.text("")
            };
            let lasting = agent.settings.run_timeout + agent.settings.session_lease;
            let opening = RunOpening::new(id, session.clone(), input, lasting, now);
            let opened = open(runtime.clone(), scope, opening, slot).await;
            (scope, slot) = (opened.scope, opened.slot);
            opened.lease?
        }
    };
    let clock = Arc::new(RunClock::new(agent.settings.run_timeout));
    let ctx = RunContext::new(ContextParts {
        services: agent.services.clone(),
        scope,
        run: id,
        session,
        clock: clock.clone(),
        metadata: Arc::new(asked.metadata.clone()),
    });
    let latch = Latch::new(None);
    let run = Arc::new(RunState::new(agent.clone(), ctx, clock, lease, events, &latch, None));
    // From here on the run exists: whatever happens to this future, the finisher ends it.
    let finisher = Finisher::arm(run.clone(), slot, latch);
    Ok((run, finisher))
}

/// What a runtime answered, with what went into asking it.
struct Opened {
    scope: Scope,
    slot: Slot,
    lease: Result<RunLease>,
}

/// Opens the run. A caller who goes away before the answer is there leaves no session locked: the closer waits for the answer
/// and gives the lease back.
async fn open(runtime: Arc<dyn Runtime>, scope: Scope, opening: RunOpening, slot: Slot) -> Opened {
    let asking: Work<(Arc<dyn Runtime>, Scope, Result<RunLease>)> = Box::pin(async move {
        let lease = runtime.open(&scope, opening).await;
        (runtime, scope, lease)
    });
    let asking = Handoff::new(slot, asking).or_undo(|(runtime, scope, lease)| {
        Box::pin(async move {
            if let Ok(lease) = lease {
                // What cannot be given back is given back by the end of its lease.
                drop(runtime.close(&scope, &lease, RunStatus::Cancelled).await);
            }
        })
    });
    let ((_, scope, lease), slot) = asking.keeping_its_place().await;
    Opened { scope, slot, lease }
}

fn written_down(agent: &AgentInner, asked: &Asked) -> Redacted<String> {
    agent.services.redactor.object().str("input", &asked.input).finish()
}

async fn guarded_by_deadline(run: &Arc<RunState>, task: &Task, resumed: bool) -> Result<Outcome> {
    // The loop is boxed once, here, so that a caller's future stays small.
    let work = Box::pin(async {
        start(run, task, resumed).await?;
        drive(run, task).await
    });
    let timer = pin!(run.clock.expired());
    match select(work, timer).await {
        Either::Left((ended, _)) => {
            if ended.is_err() {
                // What it left behind is taken back while the run is still its own.
                run.settled(COMMIT_LIMIT).await;
            }
            ended
        }
        Either::Right(((), work)) => {
            // Whatever the loop holds is settled before the terminal record: its drop comes first.
            drop(work);
            run.settled(COMMIT_LIMIT).await;
            Err(Error::new(
                ErrorKind::Timeout,
                format!("the run took longer than {:?}", run.agent.settings.run_timeout),
            )
            .with_operation("run"))
        }
    }
}

async fn start(run: &Arc<RunState>, task: &Task, resumed: bool) -> Result<()> {
    let ctx = &run.ctx;
    let payload =
        ctx.redactor().object().name("agent", &run.agent.name).name("model", run.agent.model.name());
    let mut payload = payload.num("input_bytes", task.input.len() as u64);
    if let Some(origin) = &run.origin {
        payload = payload.show("parent_run_id", origin.parent.ctx.run_id());
        payload = payload.str("parent_call_id", &origin.call.id);
    }
    if resumed {
        payload = payload.bool("resumed", true);
    }
    record_start(run, payload.finish()).await?;
    let session_id = ctx.session_id().clone();
    run.emit(|| EventKind::Started { session_id }).await;
    // A child's time passes within the root's.
    let holds = run.origin.is_none() && run.agent.ledger.limits().wall_clock;
    if holds { Box::pin(hold_wall_clock(run)).await } else { Ok(()) }
}

/// Writes the record that begins a run. A caller who goes away in the middle leaves it to the closer, which then writes the
/// one that ends it, too: a log has both or neither.
async fn record_start(run: &Arc<RunState>, payload: Redacted<String>) -> Result<()> {
    let (slot, recording) = (run.slot(), run.clone());
    let actor = if run.origin.is_none() { Actor::User } else { Actor::Model };
    let record = async move {
        recording.audit(actor, Action::RunStarted, payload).await?;
        recording.began.store(true, Ordering::Release);
        Ok(())
    };
    Handoff::new(slot, Box::pin(record)).await
}

/// Sets the run's time aside. What is granted is the run's deadline.
async fn hold_wall_clock(run: &Arc<RunState>) -> Result<()> {
    let wanted = run.clock.remaining();
    let hold = Hold::wall_clock(run.next_hold(), wanted).with_lease(wanted + Duration::from_secs(60));
    match set_aside(run, hold).await?.answer? {
        Reserve::Held(granted) => {
            run.holds_wall_clock(granted.id);
            run.clock.shorten(granted.wall_clock);
            run.warn(granted.warnings).await
        }
        Reserve::Refused(refusal) => Err(refused(run, *refusal).await),
    }
}

/// Remembers the turn, writes the terminal record, and says what the run came to.
async fn conclude(
    run: &Arc<RunState>,
    finisher: Finisher,
    began: Timestamp,
    ended: Result<Outcome>,
) -> Result<RunResult> {
    let mut degraded = Vec::new();
    let (outcome, error) = match ended {
        Ok(mut outcome) => {
            if let Some(episode) = outcome.episode.take().filter(|_| run.agent.remembers) {
                degraded.extend(commit(run, episode).await);
            }
            let error = outcome.error.take();
            (outcome, error)
        }
        Err(error) => failed(error),
    };
    let reason = outcome.reason.clone().or_else(|| error.as_ref().map(|e| e.kind().as_str().to_owned()));
    let recorded = finisher.finish(Ending::new(outcome.status, reason)).await;
    let (mut outcome, mut error) = (outcome, error);
    if let Err(unrecorded) = recorded {
        // An agent that must not go on unrecorded does not hand out an answer whose end is not on record.
        outcome.status = RunStatus::Failed;
        error = error.or(Some(unrecorded));
    }
    let result = result(run, began, outcome, degraded);
    announce(run, &result, error.as_ref()).await;
    match error {
        Some(error) => Err(error.with_context("run_id", run.ctx.run_id())),
        None if result.status == RunStatus::OutcomeUnknown => {
            let why = result.reason.clone().unwrap_or_default();
            Err(Error::new(ErrorKind::Conflict, why).with_context("run_id", run.ctx.run_id()))
        }
        None => refused_before_anything(result),
    }
}

fn failed(error: Error) -> (Outcome, Option<Error>) {
    let mut outcome = Outcome {
        status: RunStatus::Failed,
        reason: None,
        text: Arc::from(""),
        parsed: None,
        reports: Vec::new(),
        refusal: None,
        error: None,
        episode: None,
    };
    if let Some(refusal) = error.refusal() {
        // Refused before the loop began: by the wall clock.
        outcome.status = RunStatus::Interrupted;
        outcome.reason = Some(format!("budget:{}", refusal.cap));
        outcome.refusal = Some(Box::new(refusal.clone()));
        return (outcome, None);
    }
    if error.kind() == ErrorKind::Timeout && error.operation() == "run" {
        outcome.status = RunStatus::TimedOut;
    }
    (outcome, Some(error))
}

/// Writes the turn into memory. The answer is not given up for it: what fails here is named in the result.
async fn commit(run: &Arc<RunState>, mut episode: NewEpisode) -> Option<&'static str> {
    let write = async {
        if run.agent.embedder.is_some() {
            let text: Vec<&str> =
                episode.messages.iter().filter(|m| m.role != crate::Role::Tool).map(|m| &*m.text).collect();
            episode.embedding = embed(run, &text.join("\n").into(), EmbedPurpose::Document).await;
        }
        run.ctx.memory().remember(episode).await
    };
    match tokio::time::timeout(COMMIT_LIMIT, write).await {
        Ok(Ok(episode)) => {
            run.emit(|| EventKind::MemoryWrite { episode }).await;
            None
        }
        Ok(Err(error)) => {
            run.ctx.count("loom.memory.write_errors", 1, &[("error", error.kind().as_str())]);
            Some("memory_write")
        }
        Err(_) => {
            run.ctx.count("loom.memory.write_errors", 1, &[("error", "timeout")]);
            Some("memory_write")
        }
    }
}

fn result(run: &RunState, began: Timestamp, outcome: Outcome, degraded: Vec<&'static str>) -> RunResult {
    let ctx = &run.ctx;
    let totals = *run.totals();
    RunResult {
        run_id: ctx.run_id(),
        session_id: ctx.session_id().clone(),
        user_id: ctx.user_id().cloned(),
        status: outcome.status,
        reason: outcome.reason,
        output: outcome.text,
        parsed: outcome.parsed,
        turns: totals.turns,
        usage: totals.usage,
        started_at: began,
        finished_at: ctx.now(),
        tool_calls: outcome.reports,
        refusal: outcome.refusal,
        degraded,
    }
}

async fn announce(run: &RunState, result: &RunResult, error: Option<&Error>) {
    run.emit(|| match result.status {
        RunStatus::Completed => EventKind::Completed(Box::new(result.clone())),
        RunStatus::Interrupted => EventKind::Interrupted(Box::new(result.clone())),
        RunStatus::TimedOut => EventKind::TimedOut {},
        RunStatus::Cancelled => EventKind::Cancelled {},
        _ => EventKind::Failed { error: error.map_or("outcome_unknown", |e| e.kind().as_str()) },
    })
    .await;
}

/// A run that was refused before its first model call is an error: an empty answer must not pass for an answer.
fn refused_before_anything(mut result: RunResult) -> Result<RunResult> {
    match result.refusal.take() {
        Some(refusal) if result.turns == 0 => {
            Err(Error::refused(*refusal).with_context("run_id", result.run_id))
        }
        refusal => {
            result.refusal = refusal;
            Ok(result)
        }
    }
}

/// What a journal wrote down of a run's input.
pub(crate) fn input_of(record: &str) -> Result<Arc<str>> {
    let value: Value = serde_json::from_str(record).map_err(|e| {
        Error::new(ErrorKind::Internal, format!("the run's recorded input cannot be read: {e}"))
    })?;
    match value.get("input").and_then(Value::as_str) {
        Some(input) => Ok(input.into()),
        None => Err(Error::new(
            ErrorKind::Unsupported,
            "the runtime kept no input of this run, so it cannot be resumed",
        )),
    }
}
