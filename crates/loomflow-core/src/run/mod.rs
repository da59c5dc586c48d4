//! What one run carries with it: its settings, its clock, its totals, its event sink and its journal.

mod clock;
mod finish;
mod journal;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

pub(crate) use clock::RunClock;
pub(crate) use finish::{Ending, Finisher};
pub(crate) use journal::{Journaled, Step};

use crate::agent::AgentInner;
use crate::audit::{Action, Actor};
use crate::closer::Slot;
use crate::context::RunContext;
use crate::error::Result;
use crate::event::{Event, EventKind};
use crate::ids::HoldId;
use crate::ledger::{HoldKey, Warning};
use crate::redact::Redacted;
use crate::runtime::RunLease;
use crate::usage::Usage;

/// What an agent's runs are bounded by. See the builder for what each means.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) max_turns: u32,
    pub(crate) max_input_bytes: usize,
    pub(crate) run_timeout: Duration,
    pub(crate) tool_timeout: Duration,
    pub(crate) hook_timeout: Duration,
    pub(crate) max_parallel_tools: usize,
    pub(crate) max_tool_result_bytes: usize,
    pub(crate) max_output_tokens: u64,
    pub(crate) session_history: usize,
    pub(crate) recall_episodes: usize,
    pub(crate) recall_facts: usize,
    pub(crate) cleanup_above: u64,
    pub(crate) cleanup_to: u64,
    pub(crate) min_messages_to_keep: usize,
    pub(crate) retry: crate::door::RetryPolicy,
    pub(crate) audit_continues: bool,
    pub(crate) session_lease: Duration,
}

/// What a run has used and done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) usage: Usage,
    pub(crate) turns: u32,
}

/// One run in flight. Everything here is reached by `&self`, so that parallel tool calls can share it.
pub(crate) struct RunState {
    pub(crate) agent: Arc<AgentInner>,
    pub(crate) ctx: RunContext,
    pub(crate) clock: Arc<RunClock>,
    pub(crate) lease: RunLease,
    /// What the ledger set aside of the wall clock; settled with the run.
    wall_clock: OnceLock<HoldId>,
    totals: Mutex<Totals>,
    holds: AtomicU32,
    steps: AtomicU32,
    /// How many calls wait for somebody's approval.
    waits: AtomicU32,
    events: Option<mpsc::Sender<Event>>,
    event_seq: AtomicU64,
}

impl RunState {
    pub(crate) fn new(
        agent: Arc<AgentInner>,
        ctx: RunContext,
        clock: Arc<RunClock>,
        lease: RunLease,
        events: Option<mpsc::Sender<Event>>,
    ) -> Self {
        Self {
            agent,
            ctx,
            clock,
            lease,
            wall_clock: OnceLock::new(),
            totals: Mutex::default(),
            holds: AtomicU32::new(0),
            steps: AtomicU32::new(0),
            waits: AtomicU32::new(0),
            events,
            event_seq: AtomicU64::new(0),
        }
    }

    /// Says something on the event stream, waiting while its reader is behind. The event is made only if somebody reads.
    pub(crate) async fn emit(&self, kind: impl FnOnce() -> EventKind + Send) {
        let Some(events) = &self.events else { return };
        // The place is taken before the number is drawn, so that numbers are in the order of the stream.
        if let Ok(place) = events.reserve().await {
            let seq = self.event_seq.fetch_add(1, Ordering::Relaxed) + 1;
            place.send(Event { run_id: self.ctx.run_id(), seq, at: self.ctx.now(), kind: kind() });
        }
    }

    /// Records something in the audit log, or, where the agent is told to go on without, counts that it could not.
    pub(crate) async fn audit(&self, actor: Actor, action: Action, payload: Redacted<String>) -> Result<()> {
        match self.ctx.audit(actor, action, payload).await {
            Err(_) if self.agent.settings.audit_continues => {
                self.ctx.count("loom.audit.lost", 1, &[("action", action.as_str())]);
                Ok(())
            }
            other => other,
        }
    }

    /// A place in the closer's queue, in this run's lane.
    pub(crate) async fn slot(&self) -> Result<Slot> {
        self.agent.closer.slot(self.ctx.run_id().as_u128()).await
    }

    /// The wall clock this hold set aside is settled with the run. A run holds it once.
    pub(crate) fn holds_wall_clock(&self, hold: HoldId) {
        self.wall_clock.get_or_init(|| hold);
    }

    pub(crate) fn wall_clock_hold(&self) -> Option<HoldId> {
        self.wall_clock.get().copied()
    }

    /// A key no other hold of the run has, those of its earlier lives included: a hold that a crash left open is not this
    /// one. Twelve bits of the fence and twenty of a counter.
    pub(crate) fn next_hold(&self) -> HoldKey {
        let number = self.holds.fetch_add(1, Ordering::Relaxed) & 0xf_ffff;
        let life = (self.lease.fence & 0xfff) as u32;
        HoldKey::new(self.ctx.run_id(), (life << 20) | number)
    }

    /// Whether the run's steps are written down.
    pub(crate) fn is_journaled(&self) -> bool {
        self.agent.runtime.as_ref().is_some_and(|runtime| runtime.journals())
    }

    /// Draws the numbers of the next `n` journaled steps; returns the first.
    pub(crate) fn next_steps(&self, n: u32) -> u32 {
        self.steps.fetch_add(n, Ordering::Relaxed)
    }

    /// Says that one more call waits for somebody's approval.
    pub(crate) fn waits_for_one_more(&self) {
        self.waits.fetch_add(1, Ordering::SeqCst);
    }

    /// Says that a call does not wait any more.
    pub(crate) fn waits_for_one_less(&self) {
        self.waits.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether a call waits for somebody's approval.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waits.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn totals(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of caps that reached their warning line: event, audit and metric.
    pub(crate) async fn warn(&self, warnings: Vec<Warning>) -> Result<()> {
        if warnings.is_empty() { Ok(()) } else { Box::pin(self.warn_of(warnings)).await }
    }

    async fn warn_of(&self, warnings: Vec<Warning>) -> Result<()> {
        for warning in warnings {
            self.ctx.count("loom.budget.warnings", 1, &[("cap", warning.cap)]);
            let payload = self.ctx.redactor().object().name("entity", warning.entity.as_str());
            let payload = payload.name("cap", warning.cap);
            let payload = payload.num("limit", warning.limit).num("used", warning.used).finish();
            self.audit(Actor::System, Action::BudgetWarning, payload).await?;
            self.emit(|| EventKind::BudgetWarning(warning)).await;
        }
        Ok(())
    }
}

impl std::fmt::Debug for RunState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RunState({:?})", self.ctx)
    }
}
