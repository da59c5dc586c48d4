//! The second half of the tool door: intent, execution under a time limit, outcome. A `PermittedCall` is made nowhere else.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::audit::{Action, Actor};
use crate::closer::{Handoff, Slot};
use crate::door::permit::{Approved, Bound, EXECUTING, Permit, permit, still_permitted};
use crate::door::{guarded, panic_text};
use crate::error::{Error, ErrorKind, Result};
use crate::event::EventKind;
use crate::r#loop::CallOutcome;
use crate::message::ToolCall;
use crate::result::ToolStatus;
use crate::run::{CallFrame, Journaled, Latch, RunClock, RunState, Step};
use crate::tool::{Effect, PermittedCall, Tool, ToolOutcome, ToolSpec, wire_name};

/// The longest name providers take.
const MAX_WIRE_NAME: usize = 64;
/// How long children that a tool left behind may take to end once they are told to.
const CHILDREN_LIMIT: Duration = Duration::from_secs(10);

/// What became of a tool call.
pub(crate) enum Executed {
    /// It ended, one way or another.
    Ended(CallOutcome),
    /// It was begun in an earlier life of the run, nobody knows how it ended, and repeating it could do it twice.
    InDoubt,
}

/// Takes one tool call through the door. An error is one of the framework's own stores; whatever the tool, the policy or
/// the approver does is an outcome.
///
/// A call has three journaled steps, from `seq` on: to be permitted, which may be repeated, to be executed, which may not, and to
/// be asked about, under one id. A crash while somebody thinks about an approval therefore loses none of them.
pub(crate) async fn run_tool(
    run: &Arc<RunState>,
    call: ToolCall,
    seq: u32,
    altered: bool,
) -> Result<Executed> {
    let (id, name) = (call.id.clone(), call.name.clone());
    run.emit(|| EventKind::ToolCall { id, name }).await;
    let began = Instant::now();
    let Some(outcome) = through(run, &call, seq, altered).await? else { return Ok(Executed::InDoubt) };
    let status = outcome.status;
    let telemetry = &run.ctx.services().telemetry;
    telemetry.duration(
        run.ctx.scope(),
        "loom.tool.duration",
        began.elapsed(),
        &[("status", status.as_str())],
    );
    run.emit(|| EventKind::ToolResult { id: call.id, name: call.name, status }).await;
    Ok(Executed::Ended(outcome))
}

/// What became of the permit, as a journal keeps it: the arguments themselves are not in it but by their digest.
#[derive(Serialize, Deserialize)]
enum Permitted {
    AsCalled { digest: String, approved: Option<Approved> },
    Edited { arguments: String, digest: String, approved: Option<Approved> },
    Ended(CallOutcome),
}

async fn through(
    run: &Arc<RunState>,
    call: &ToolCall,
    seq: u32,
    altered: bool,
) -> Result<Option<CallOutcome>> {
    let Some(tool) = run.agent.tools.get(&call.name).cloned() else {
        let known = run.agent.tools.names();
        let told = format!("there is no tool {:?}; there are: {known}", call.name);
        return refuse(run, call, ToolStatus::Error, &told).await.map(Some);
    };
    let spec = tool.spec();
    let bound = match Bound::new(run, seq, call.clone(), spec) {
        Ok(bound) => bound,
        Err(error) => return refuse(run, call, ToolStatus::Error, error.message()).await.map(Some),
    };
    let (bound, earlier) = if run.is_journaled() {
        match Box::pin(permit_once(run, spec, bound, seq)).await? {
            Ok(permitted) => permitted,
            Err(ended) => return Ok(Some(ended)),
        }
    } else {
        match permit(run, spec, bound).await? {
            Permit::Granted(bound) => (bound, false),
            Permit::Refused(why) => {
                return refuse(run, call, ToolStatus::Denied, &format!("denied: {why}")).await.map(Some);
            }
        }
    };
    let step = Step::new(seq + EXECUTING, spec.idempotent);
    let fingerprint = || run.fingerprint("tool", &(&bound.call.name, &*bound.arguments));
    let executing = || async {
        if altered {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the recorded arguments of this call had a secret taken out, so it cannot be executed after a crash",
            ));
        }
        // Nobody knows how long ago that was, and under which policy.
        if earlier && let Some(why) = Box::pin(still_permitted(run, spec, &bound)).await? {
            return refuse(run, call, ToolStatus::Denied, &format!("denied: {why}")).await;
        }
        execute(run, &*tool, spec, bound.clone()).await
    };
    Ok(match run.journaled(step, fingerprint, executing).await? {
        Journaled::Made(outcome) => Some(outcome),
        Journaled::Replayed(outcome) => {
            run.used(outcome.usage);
            Some(outcome)
        }
        Journaled::InDoubt => None,
    })
}

/// Permits a call once over all lives of the run, and says whether an earlier one did. `Err` is a call that ended without
/// running.
async fn permit_once(
    run: &Arc<RunState>,
    spec: &ToolSpec,
    bound: Bound,
    seq: u32,
) -> Result<std::result::Result<(Bound, bool), CallOutcome>> {
    let asked = bound.clone();
    let permitting = || async {
        let (call, called) = (asked.call.clone(), asked.digest);
        Ok(match permit(run, spec, asked).await? {
            Permit::Granted(granted) if granted.digest == called => {
                Permitted::AsCalled { digest: called.to_string(), approved: granted.approved }
            }
            Permit::Granted(granted) => Permitted::Edited {
                arguments: granted.arguments.to_string(),
                digest: granted.digest.to_string(),
                approved: granted.approved,
            },
            Permit::Refused(why) => {
                Permitted::Ended(refuse(run, &call, ToolStatus::Denied, &format!("denied: {why}")).await?)
            }
        })
    };
    let fingerprint = || run.fingerprint("permit", &(&bound.call.name, &*bound.arguments));
    let (permitted, earlier) = match run.journaled(Step::idempotent(seq), fingerprint, permitting).await? {
        Journaled::Made(permitted) => (permitted, false),
        Journaled::Replayed(permitted) => (permitted, true),
        Journaled::InDoubt => {
            return Err(Error::new(
                ErrorKind::Internal,
                "permitting a call is idempotent and never in doubt",
            ));
        }
    };
    match permitted {
        Permitted::AsCalled { digest, approved }
            if approved.is_some() && digest != bound.digest.to_string() =>
        {
            let told = "denied: the tool changed since this call of it was approved; call it again";
            Ok(Err(refuse(run, &bound.call, ToolStatus::Denied, told).await?))
        }
        Permitted::AsCalled { approved, .. } => Ok(Ok((Bound { approved, ..bound }, earlier))),
        Permitted::Ended(outcome) => Ok(Err(outcome)),
        Permitted::Edited { arguments, digest, approved } => {
            let edited =
                Bound::new(run, seq, ToolCall { arguments: arguments.into(), ..bound.call.clone() }, spec)?;
            if edited.digest.to_string() == digest {
                return Ok(Ok((Bound { approved, ..edited }, earlier)));
            }
            let told = "denied: the approved arguments had a secret taken out when they were recorded";
            Ok(Err(refuse(run, &bound.call, ToolStatus::Denied, told).await?))
        }
    }
}

/// A call that did not run: the model is told why, and the log too.
async fn refuse(run: &RunState, call: &ToolCall, status: ToolStatus, told: &str) -> Result<CallOutcome> {
    let payload = run.ctx.redactor().object().str("tool", &call.name).str("call_id", &call.id);
    let payload = payload.name("status", status.as_str()).str("why", told).finish();
    run.audit(Actor::System, Action::ToolResult, payload).await?;
    Ok(CallOutcome::new(status, told))
}

async fn execute(run: &Arc<RunState>, tool: &dyn Tool, spec: &ToolSpec, bound: Bound) -> Result<CallOutcome> {
    let limit = spec.timeout.unwrap_or(run.agent.settings.tool_timeout);
    let within = RunClock::within(&run.clock, limit);
    let latch = Latch::new(run.latch.upgrade());
    let frame = Arc::new(CallFrame::new(run, bound.call.id.clone(), within.clock().clone(), &latch));
    let promise = OutcomePromise::new(run.clone(), run.slot(), spec, frame.clone(), latch);
    intend(run, spec, &bound, &frame).await?;
    if spec.effect != Effect::Read {
        run.acts();
    }

    let Bound { call, arguments, digest, .. } = bound;
    let permitted = PermittedCall::seal(call.clone(), Arc::unwrap_or_clone(arguments), digest);
    let outcome = contained(tool, run, &frame, permitted, spec.effect, limit).await;
    let outcome = bounded(outcome, run.agent.settings.max_tool_result_bytes);
    frame.recall();
    if frame.delegated() {
        children_ended(run, &frame).await;
    }
    drop(within);
    promise.keep(&outcome).await?;

    for hook in &run.agent.post_hooks {
        let seen =
            guarded("a hook", run.agent.settings.hook_timeout, hook.after_tool(&run.ctx, &call, &outcome))
                .await;
        if seen.is_err() {
            run.ctx.count("loom.hook.errors", 1, &[("part", "post_tool")]);
        }
    }
    let status = status_of(&outcome);
    let text = match outcome {
        ToolOutcome::Ok(text) => text,
        ToolOutcome::Error(text) => format!("error: {text}").into(),
        ToolOutcome::Unknown(text) => {
            format!("outcome unknown, do not assume it did or did not happen: {text}").into()
        }
    };
    Ok(CallOutcome { usage: frame.used(), ..CallOutcome::new(status, text) })
}

/// Records what is about to be done. A caller who goes away in the middle leaves it to the closer, which then records that
/// nobody knows how it ended, too.
async fn intend(run: &Arc<RunState>, spec: &ToolSpec, bound: &Bound, frame: &Arc<CallFrame>) -> Result<()> {
    let payload = run.ctx.redactor().object().name("tool", &spec.name).str("call_id", &bound.call.id);
    let payload = payload.name("effect", spec.effect.as_str()).show("digest", bound.digest);
    let payload = payload.json("args", &bound.arguments).finish();
    let (slot, run, frame) = (run.slot(), run.clone(), frame.clone());
    let record = async move {
        run.audit(Actor::Model, Action::ToolIntent, payload).await?;
        frame.intended();
        Ok(())
    };
    Handoff::new(slot, Box::pin(record)).await
}

/// Waits until the runs that a call delegated to have ended and are on record. A tool that awaits its children has none left
/// by now; one that left them to a task of its own has them recalled.
async fn children_ended(run: &RunState, frame: &CallFrame) {
    if tokio::time::timeout(CHILDREN_LIMIT, frame.deserted()).await.is_err() {
        run.ctx.count("loom.finish.errors", 1, &[("store", "children")]);
    }
    run.settled(CHILDREN_LIMIT).await;
}

/// Runs the tool's own code: a panic and taking too long are outcomes, and what a tool had begun by then is unknown
/// unless it only reads.
async fn contained(
    tool: &dyn Tool,
    run: &RunState,
    frame: &Arc<CallFrame>,
    call: PermittedCall,
    effect: Effect,
    limit: Duration,
) -> ToolOutcome {
    let cut = |text: String| {
        if effect == Effect::Read { ToolOutcome::error(text) } else { ToolOutcome::Unknown(text.into()) }
    };
    let ctx = run.ctx.in_call(frame.clone());
    let work = AssertUnwindSafe(tool.call(&ctx, call)).catch_unwind();
    // Its clock and not a timer: a person whom a run within waits for may take longer than the tool.
    match select(work, pin!(frame.clock.expired())).await {
        Either::Left((Ok(outcome), _)) => outcome,
        Either::Left((Err(panic), _)) => {
            run.ctx.count("loom.tool.panics", 1, &[]);
            cut(format!("the tool panicked: {}", panic_text(&*panic)))
        }
        Either::Right(_) => cut(format!("the tool took longer than {limit:?}")),
    }
}

fn status_of(outcome: &ToolOutcome) -> ToolStatus {
    match outcome {
        ToolOutcome::Ok(_) => ToolStatus::Ok,
        ToolOutcome::Error(_) => ToolStatus::Error,
        ToolOutcome::Unknown(_) => ToolStatus::Unknown,
    }
}

/// Cuts an over-long text, on a character's border, and says so.
fn bounded(outcome: ToolOutcome, limit: usize) -> ToolOutcome {
    if outcome.text().len() <= limit {
        return outcome;
    }
    let cut = |text: Arc<str>| -> Arc<str> {
        let at = (0..=limit).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        format!("{}\n[cut: {} of {} bytes shown]", &text[..at], at, text.len()).into()
    };
    match outcome {
        ToolOutcome::Ok(text) => ToolOutcome::Ok(cut(text)),
        ToolOutcome::Error(text) => ToolOutcome::Error(cut(text)),
        ToolOutcome::Unknown(text) => ToolOutcome::Unknown(cut(text)),
    }
}

/// The promise that an intent is followed by an outcome in the log: kept by the tool's end, or, when the run goes away
/// in the middle, by the closer, which records that nobody knows.
struct OutcomePromise {
    open: Option<Open>,
    tool: Arc<str>,
    effect: Effect,
}

struct Open {
    run: Arc<RunState>,
    slot: Slot,
    frame: Arc<CallFrame>,
    latch: Arc<Latch>,
}

impl OutcomePromise {
    fn new(
        run: Arc<RunState>,
        slot: Slot,
        spec: &ToolSpec,
        frame: Arc<CallFrame>,
        latch: Arc<Latch>,
    ) -> Self {
        let open = Some(Open { run, slot, frame, latch });
        Self { open, tool: spec.name.clone(), effect: spec.effect }
    }

    fn keep(mut self, outcome: &ToolOutcome) -> Handoff<Result<()>> {
        let error = match outcome {
            ToolOutcome::Ok(_) => None,
            ToolOutcome::Error(text) | ToolOutcome::Unknown(text) => Some(text.clone()),
        };
        let Open { run, slot, frame, latch } =
            self.open.take().expect("a promise is open until it is kept, and keeping consumes it");
        let record = record(run, frame, self.tool.clone(), status_of(outcome), error);
        Handoff::new(
            slot,
            Box::pin(async move {
                // The run does not end before this is written.
                let _latch = latch;
                record.await
            }),
        )
    }
}

async fn record(
    run: Arc<RunState>,
    frame: Arc<CallFrame>,
    tool: Arc<str>,
    status: ToolStatus,
    error: Option<Arc<str>>,
) -> Result<()> {
    if !frame.was_intended() {
        return Ok(());
    }
    let payload = run.ctx.redactor().object().name("tool", &tool).str("call_id", &frame.id);
    let mut payload = payload.name("status", status.as_str());
    if let Some(error) = &error {
        payload = payload.str("error", error);
    }
    run.audit(Actor::System, Action::ToolResult, payload.finish()).await
}

impl Drop for OutcomePromise {
    fn drop(&mut self) {
        if let Some(Open { run, slot, frame, latch }) = self.open.take() {
            frame.recall();
            let status = if self.effect == Effect::Read { ToolStatus::Error } else { ToolStatus::Unknown };
            let why = Some(Arc::from("the run ended while the tool was running"));
            let record = record(run, frame, self.tool.clone(), status, why);
            latch.leave(Handoff::new(slot, Box::pin(record)));
        }
    }
}

/// The tools of an agent, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct ToolSet {
    by_name: std::collections::BTreeMap<Arc<str>, Arc<dyn Tool>>,
}

impl ToolSet {
    /// Adds a tool; two of one name are a mistake of the application, told before anything runs.
    pub(crate) fn add(&mut self, tool: Arc<dyn Tool>) -> Result<()> {
        let name = tool.spec().name.clone();
        let on_wire = wire_name(&name);
        if on_wire.len() > MAX_WIRE_NAME {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "tool {name:?} travels as {on_wire:?}, which is longer than 64 bytes; shorten its name"
                ),
            ));
        }
        let alike = |other: &&Arc<str>| **other != name && wire_name(other) == on_wire;
        if let Some(other) = self.by_name.keys().find(alike) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("tools {other:?} and {name:?} both travel to the model as {on_wire:?}; rename one"),
            ));
        }
        if self.by_name.insert(name.clone(), tool).is_some() {
            return Err(Error::new(ErrorKind::Config, format!("two tools are called {name:?}; rename one")));
        }
        Ok(())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<dyn Tool>> {
        self.by_name.get(name)
    }

    pub(crate) fn specs(&self) -> Arc<[Arc<ToolSpec>]> {
        self.by_name.values().map(|tool| Arc::new(tool.spec().clone())).collect()
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.by_name.keys().map(|name| &**name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_over_long_result_is_cut_on_a_border_and_says_so() {
        let cut = bounded(ToolOutcome::ok("aé".repeat(10)), 5);
        assert_eq!(&**cut.text(), "aéa\n[cut: 4 of 30 bytes shown]");
        assert_eq!(bounded(ToolOutcome::ok("abc"), 3), ToolOutcome::ok("abc"));
    }
}
