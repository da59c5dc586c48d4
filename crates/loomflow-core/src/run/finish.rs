//! The finisher: exactly one terminal record per run, also when its future is dropped or unwinds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::audit::{Action, Actor};
use crate::closer::{Handoff, Slot};
use crate::door::guarded;
use crate::error::{ErrorKind, Result};
use crate::ids::HoldId;
use crate::ledger::{Charge, HearsWarnings as _, close};
use crate::result::RunStatus;
use crate::run::{Latch, RunState};

/// How a run ended.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) status: RunStatus,
    pub(crate) reason: Option<String>,
}

impl Ending {
    pub(crate) fn new(status: RunStatus, reason: Option<String>) -> Self {
        Self { status, reason }
    }

    fn action(&self) -> Option<Action> {
        Some(match self.status {
            RunStatus::Completed => Action::RunCompleted,
            RunStatus::Interrupted => Action::RunInterrupted,
            RunStatus::Failed => Action::RunFailed,
            RunStatus::Cancelled => Action::RunCancelled,
            RunStatus::TimedOut => Action::RunTimedOut,
            // A parked run is not over: whoever decides about it writes its end.
            RunStatus::OutcomeUnknown | RunStatus::Running | RunStatus::WaitingApproval => return None,
        })
    }
}

/// Owns the end of a run. Held by the run's outermost future, so that it is dropped after everything that owns a hold:
/// the closer then settles first and writes the record last.
pub(crate) struct Finisher {
    armed: Option<Armed>,
}

struct Armed {
    run: Arc<RunState>,
    slot: Slot,
    latch: Arc<Latch>,
}

impl Finisher {
    pub(crate) fn arm(run: Arc<RunState>, slot: Slot, latch: Arc<Latch>) -> Self {
        Self { armed: Some(Armed { run, slot, latch }) }
    }

    /// Writes the terminal record, once, whatever becomes of the future.
    pub(crate) fn finish(mut self, ending: Ending) -> Handoff<Result<()>> {
        let Armed { run, slot, latch } =
            self.armed.take().expect("a finisher is armed until it finishes, and finishing consumes it");
        let end = async move {
            // Whatever is around this run does not end before the record is written.
            let _latch = latch;
            end_run(&run, ending).await
        };
        Handoff::new(slot, Box::pin(end))
    }
}

impl Armed {
    /// How a run ends whose future is dropped.
    fn cut_off(&self) -> Ending {
        if std::thread::panicking() {
            Ending::new(RunStatus::Failed, Some("panic".into()))
        } else if self.run.origin.is_some() && self.run.clock.remaining().is_zero() {
            // It was not given up: the deadline of the call or the run around passed, and so did its own.
            Ending::new(RunStatus::TimedOut, None)
        } else {
            Ending::new(RunStatus::Cancelled, None)
        }
    }
}

impl Drop for Finisher {
    fn drop(&mut self) {
        if let Some(armed) = self.armed.take() {
            let ending = armed.cut_off();
            let Armed { run, slot, latch } = armed;
            latch.leave(Handoff::new(slot, Box::pin(async move { end_run(&run, ending).await })));
        }
    }
}

/// The longest one part of an ending may take, so that a store that hangs cannot keep a run from its record.
const PART_LIMIT: Duration = Duration::from_secs(5);

/// Gives the session back, settles the wall clock, writes the record. Every part is tried, whatever the others do.
///
/// The runtime comes first, because it knows whose run this is: a holder whose lease was taken over writes no record, since
/// the one who took it over will.
async fn end_run(run: &Arc<RunState>, ending: Ending) -> Result<()> {
    let ctx = &run.ctx;
    let ran = run.clock.running();
    let is_root = run.origin.is_none();
    // First of all, because also a run that somebody took over gives back what it set aside for itself.
    if let Some(hold) = run.wall_clock_hold() {
        // A ledger that is down for longer keeps no run from its record: the closer goes on with it.
        let closing = Handoff::new(run.slot(), Box::pin(close_wall_clock(run.clone(), hold, ran)));
        count_failure(run, "ledger", guarded("the ledger", PART_LIMIT, closing).await.err());
    }
    if let Some(runtime) = &run.agent.runtime {
        let closed =
            guarded("the runtime", PART_LIMIT, runtime.close(ctx.scope(), &run.lease, ending.status)).await;
        // Nobody takes over what no journal knows: there its end is told here, or nowhere.
        let superseded = closed.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict);
        if superseded && runtime.journals() {
            ctx.count("loom.run.superseded", 1, &[]);
            return Ok(());
        }
        count_failure(run, "runtime", closed.err());
    }
    let ledger = &run.agent.ledger;
    if is_root && ledger.limits().per_run {
        let ended = guarded("the ledger", PART_LIMIT, ledger.end_run(ctx.scope(), ctx.run_id())).await;
        count_failure(run, "ledger", ended.err());
    }
    if !run.began.load(Ordering::Acquire) {
        // The log has no beginning of this run: it was given up before, or could not be written. Nor has it an end then.
        return Ok(());
    }
    let telemetry = &ctx.services().telemetry;
    telemetry.duration(ctx.scope(), "loom.run.duration", ran, &[("status", ending.status.as_str())]);
    match ending.action() {
        Some(action) => {
            let recorded = guarded("the audit log", PART_LIMIT, record(run, action, &ending)).await;
            if recorded.is_err() {
                ctx.count("loom.audit.lost", 1, &[("action", action.as_str())]);
            }
            recorded
        }
        None => Ok(()),
    }
}

async fn close_wall_clock(run: Arc<RunState>, hold: HoldId, ran: Duration) -> Result<()> {
    let (ledger, scope) = (run.agent.ledger.clone(), run.ctx.scope().dup());
    let settled = close(ledger, scope, hold, Charge::WallClock(ran)).await?;
    run.hear(settled.warnings).await
}

async fn record(run: &RunState, action: Action, ending: &Ending) -> Result<()> {
    let totals = *run.totals();
    let mut payload = run.ctx.redactor().object();
    if let Some(reason) = &ending.reason {
        payload = payload.str("reason", reason);
    }
    let payload = payload
        .num("turns", totals.turns.into())
        .num("input_tokens", totals.usage.input_tokens)
        .num("output_tokens", totals.usage.output_tokens)
        .num("cost_nano_usd", totals.usage.cost_usd.0)
        .finish();
    run.audit(Actor::System, action, payload).await
}

fn count_failure(run: &RunState, store: &'static str, error: Option<crate::Error>) {
    // Closing what an expired lease closed already is not a failure.
    if error.is_some_and(|e| e.kind() != ErrorKind::NotFound) {
        run.ctx.count("loom.finish.errors", 1, &[("store", store)]);
    }
}
