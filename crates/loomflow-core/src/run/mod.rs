//! What one run carries with it: its settings, its clock, its totals, its event sink and its journal.

mod call;
mod clock;
mod finish;
mod journal;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;

pub(crate) use call::{CallFrame, Latch};
pub(crate) use clock::RunClock;
pub(crate) use finish::{Ending, Finisher};
pub(crate) use journal::{Journaled, Step};

use crate::agent::AgentInner;
use crate::audit::{Action, Actor};
use crate::closer::{Handoff, Slot, Work};
use crate::context::RunContext;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, EventKind};
use crate::ids::HoldId;
use crate::ledger::{HearsWarnings, HoldKey, Warning};
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
    pub(crate) max_depth: u32,
    pub(crate) max_children: u32,
}

/// What a run has used and done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) usage: Usage,
    pub(crate) turns: u32,
}

/// Which call of which run a child was delegated from.
pub(crate) struct Origin {
    pub(crate) parent: Arc<RunState>,
    pub(crate) call: Arc<CallFrame>,
}

/// One run in flight. Everything here is reached by `&self`, so that parallel tool calls can share it.
pub(crate) struct RunState {
    pub(crate) agent: Arc<AgentInner>,
    pub(crate) ctx: RunContext,
    pub(crate) clock: Arc<RunClock>,
    pub(crate) lease: RunLease,
    pub(crate) origin: Option<Origin>,
    /// Held by the run's finisher.
    pub(crate) latch: Weak<Latch>,
    /// Whether the log has its beginning, and so must have its end.
    pub(crate) began: AtomicBool,
    /// Whether a tool was called that does more than look.
    pub(crate) acted: AtomicBool,
    depth: u32,
    deepest: u32,
    /// How many runs were delegated to from here, by whom ever within.
    descendants: AtomicU32,
    /// What the ledger set aside of the wall clock; settled with the run.
    wall_clock: OnceLock<HoldId>,
    totals: Mutex<Totals>,
    holds: AtomicU32,
    steps: AtomicU32,
    /// How many calls wait for somebody's approval, in this run and all below it. Counted at the root.
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
        latch: &Arc<Latch>,
        origin: Option<Origin>,
    ) -> Self {
        let further = agent.settings.max_depth;
        let (depth, deepest) = origin.as_ref().map_or((0, further), |origin| {
            let depth = origin.parent.depth + 1;
            (depth, origin.parent.deepest.min(depth.saturating_add(further)))
        });
        Self {
            agent,
            ctx,
            clock,
            lease,
            origin,
            latch: Arc::downgrade(latch),
            began: AtomicBool::new(false),
            acted: AtomicBool::new(false),
            depth,
            deepest,
            descendants: AtomicU32::new(0),
            wall_clock: OnceLock::new(),
            totals: Mutex::default(),
            holds: AtomicU32::new(0),
            steps: AtomicU32::new(0),
            waits: AtomicU32::new(0),
            events,
            event_seq: AtomicU64::new(0),
        }
    }

    /// The run that a person or a program asked for: this one, or the one whose tools led to it.
    pub(crate) fn root(&self) -> &Self {
        let mut run = self;
        while let Some(origin) = &run.origin {
            run = &origin.parent;
        }
        run
    }

    /// Counts a run that is delegated from here, unless that goes too deep or there are too many.
    pub(crate) fn descend(&self) -> Result<()> {
        if self.depth < self.deepest {
            return self.count_descendant();
        }
        Err(Error::new(
            ErrorKind::Denied,
            format!("runs may be delegated {} deep here, and this one is that deep", self.deepest),
        ))
    }

    /// Counts a run below this one, here and in every run around.
    fn count_descendant(&self) -> Result<()> {
        let most = self.agent.settings.max_children;
        let more = |begun: u32| (begun < most).then_some(begun + 1);
        if self.descendants.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            return Err(Error::new(
                ErrorKind::Denied,
                format!("a run may lead to {most} delegated ones, and there were that many"),
            ));
        }
        let Some(origin) = &self.origin else { return Ok(()) };
        origin.parent.count_descendant().inspect_err(|_| {
            self.descendants.fetch_sub(1, Ordering::Relaxed);
        })
    }

    /// Says something on the event stream, waiting while its reader is behind. The event is made only if somebody reads.
    ///
    /// A child has no stream of its own. What a person has to know who watches over the whole is said on the root's.
    pub(crate) async fn emit(&self, kind: impl FnOnce() -> EventKind + Send) {
        let root = self.root();
        let Some(events) = &root.events else { return };
        let kind = kind();
        let child_run_id = self.origin.is_some().then(|| self.ctx.run_id());
        if child_run_id.is_some() && !kind.concerns_the_root() {
            return;
        }
        // The place is taken before the number is drawn, so that numbers are in the order of the stream.
        if let Ok(place) = events.reserve().await {
            let seq = root.event_seq.fetch_add(1, Ordering::Relaxed) + 1;
            place.send(Event { run_id: root.ctx.run_id(), seq, at: self.ctx.now(), child_run_id, kind });
        }
    }

    /// Adds to what was used, here and in every run around: a tree's usage is counted where it arises, and nowhere again.
    pub(crate) fn used(&self, usage: Usage) {
        self.totals().usage += usage;
        if let Some(origin) = &self.origin {
            origin.call.add(usage);
            origin.parent.used(usage);
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

    /// Says that something is about to be done that is more than looking, here and so in every run around.
    pub(crate) fn acts(&self) {
        self.acted.store(true, Ordering::Release);
        if let Some(origin) = &self.origin {
            origin.parent.acts();
        }
    }

    /// Under which key the closer has what this run leaves behind: one for a whole tree of runs, so that its records keep
    /// their order.
    pub(crate) fn closing_key(&self) -> u128 {
        self.root().ctx.run_id().as_u128()
    }

    /// A place in the closer's queue, under this run's key.
    pub(crate) fn slot(&self) -> Slot {
        self.agent.closer.slot(self.closing_key())
    }

    /// Waits, for at most `limit`, until what dropped futures of this run's tree left behind is settled and recorded, so that
    /// what is recorded next comes after it and says what was used.
    pub(crate) async fn settled(&self, limit: Duration) {
        if tokio::time::timeout(limit, self.agent.closer.barrier(self.closing_key())).await.is_err() {
            self.ctx.count("loom.finish.errors", 1, &[("store", "closer")]);
        }
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
    ///
    /// All runs of a tree hold in the root's name: what is capped per run is the whole of what was asked for.
    pub(crate) fn next_hold(&self) -> HoldKey {
        let root = self.root();
        let number = root.holds.fetch_add(1, Ordering::Relaxed) & 0xf_ffff;
        let life = (root.lease.fence & 0xfff) as u32;
        HoldKey::new(root.ctx.run_id(), (life << 20) | number)
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

    /// Tells of caps that reached their warning line: event, audit and metric. A ledger warns once, so a caller who goes away
    /// in the middle leaves the rest to the closer.
    pub(crate) async fn warn(self: &Arc<Self>, warnings: Vec<Warning>) -> Result<()> {
        if warnings.is_empty() {
            return Ok(());
        }
        Handoff::new(self.slot(), self.clone().hear(warnings)).await
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

impl HearsWarnings for RunState {
    fn hear(self: Arc<Self>, warnings: Vec<Warning>) -> Work<Result<()>> {
        Box::pin(async move { self.warn_of(warnings).await })
    }
}

impl std::fmt::Debug for RunState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RunState({:?})", self.ctx)
    }
}
