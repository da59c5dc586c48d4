//! A call that waits for a person: the run says so, the wait is measured, and a run that goes away takes its request back.

use std::sync::Arc;

use tokio::time::Instant;

use crate::approval::record::Record;
use crate::approval::{Approval, ApprovalDecision, ApprovalRequest, ApprovalState, ApprovalStore};
use crate::closer::{Handoff, Slot};
use crate::context::open_owned;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::UserId;
use crate::ids::{ApprovalId, GrantId};
use crate::result::RunStatus;
use crate::run::RunState;

/// How a wait ended, as its metric says.
pub(super) const ANSWERED: &str = "answered";
pub(super) const UNANSWERED: &str = "unanswered";
const ABANDONED: &str = "abandoned";

/// How often a request is looked at that somebody decides while it is taken back: it is decided once, and then over.
const LOOKS: u32 = 3;

/// One call that asks, from before its request is stored until what was decided is used. Dropped in between, it belongs to a
/// run that went away: nobody is asked any more, and the closer takes the request back.
pub(super) struct Waiting {
    open: Option<(Arc<dyn ApprovalStore>, ApprovalId, Slot)>,
    since: Option<Instant>,
    run: Arc<RunState>,
}

impl Waiting {
    /// From here on what is stored under `id` is taken back if the run goes away. There need not be anything yet.
    pub(super) fn arm(
        run: &Arc<RunState>,
        store: Arc<dyn ApprovalStore>,
        id: ApprovalId,
        slot: Slot,
    ) -> Self {
        Self { open: Some((store, id, slot)), since: None, run: run.clone() }
    }

    /// Begins to wait, and tells the runtime so.
    pub(super) async fn begin(&mut self) -> Result<()> {
        self.run.root().waits_for_one_more();
        self.since = Some(Instant::now());
        say(&self.run).await
    }

    /// Ends the wait: the run goes on, unless it waits for another call. The request is still to be used, or taken off.
    pub(super) async fn end(&mut self, outcome: &'static str) -> Result<()> {
        self.measure(outcome);
        say(&self.run).await
    }

    /// Nothing is left that would have to be taken back.
    pub(super) fn settled(mut self) {
        self.open = None;
    }

    fn measure(&mut self, outcome: &'static str) {
        let Some(since) = self.since.take() else { return };
        self.run.root().waits_for_one_less();
        let telemetry = &self.run.ctx.services().telemetry;
        let labels = [("outcome", outcome)];
        telemetry.duration(self.run.ctx.scope(), "loom.approval.waited", since.elapsed(), &labels);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.measure(ABANDONED);
        let Some((store, id, slot)) = self.open.take() else { return };
        let run = self.run.clone();
        let work = Box::pin(async move {
            if is_still_ours(&run).await && take_back(&run, &*store, id).await.is_err() {
                run.ctx.count("loom.approval.errors", 1, &[("error", "not_withdrawn")]);
            }
        });
        // Dropping a handoff that was never polled gives it to the closer.
        drop(Handoff::new(slot, work));
    }
}

/// Does something whole: a caller who goes away in the middle leaves the rest of it to the closer.
pub(super) async fn whole<T, F>(run: &Arc<RunState>, work: impl FnOnce(Arc<RunState>) -> F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    Handoff::new(run.slot(), Box::pin(work(run.clone()))).await
}

/// Stores a request: it is there, or never will be, when it is taken back.
pub(super) async fn create(
    run: &Arc<RunState>,
    store: &Arc<dyn ApprovalStore>,
    request: ApprovalRequest,
) -> Result<()> {
    let store = store.clone();
    whole(run, |run| async move { store.create(run.ctx.scope(), request).await }).await
}

/// Tells of the requests of the run's user whose time ran out: what the store hands out once is on record then.
pub(super) async fn lapse(run: &Arc<RunState>, store: &Arc<dyn ApprovalStore>) -> Result<()> {
    let store = store.clone();
    whole(run, |run| async move { Record::of_run(&run).lapsed(&*store).await }).await
}

/// Whether nobody else goes on with this run: whoever took it over waits for the same request. A child is gone on with by
/// nobody.
async fn is_still_ours(run: &RunState) -> bool {
    match &run.agent.runtime {
        Some(runtime) if runtime.journals() => {
            runtime.set_status(run.ctx.scope(), &run.lease, RunStatus::Running).await.is_ok()
        }
        _ => true,
    }
}

/// A request of the run's own as it stands now; `None` where there is none.
pub(super) async fn look(
    run: &RunState,
    store: &dyn ApprovalStore,
    id: ApprovalId,
) -> Result<Option<Approval>> {
    match store.get(run.ctx.scope(), id, run.ctx.now()).await {
        Ok(found) => open_owned(run.ctx.services(), run.ctx.scope(), "approvals", found).await.map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes back what nobody waits for any more, so that no approver is shown it and no decision on it counts; what was decided
/// and not used is void, together with what was remembered with it. The log says so. What is not taken back ends by itself
/// when it expires.
async fn take_back(run: &RunState, store: &dyn ApprovalStore, id: ApprovalId) -> Result<()> {
    for _ in 0..LOOKS {
        let Some(found) = look(run, store, id).await? else { return Ok(()) };
        match found.state {
            ApprovalState::Pending => match decline(run, store, &found.request).await {
                Ok(()) => return over(run, &found.request, None, "the run went away").await,
                // Somebody decided meanwhile, or its time ran out.
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) => return Err(error),
            },
            ApprovalState::Decided { decision, by } => {
                return make_void(run, store, &found.request, &decision, by.as_ref()).await;
            }
            ApprovalState::Expired => return Record::of_run(run).lapsed(store).await,
            ApprovalState::Consumed { .. } | ApprovalState::Void { .. } => return Ok(()),
        }
    }
    Err(Error::new(ErrorKind::Conflict, "the request changes faster than it is taken back"))
}

async fn make_void(
    run: &RunState,
    store: &dyn ApprovalStore,
    request: &ApprovalRequest,
    decision: &ApprovalDecision,
    by: Option<&UserId>,
) -> Result<()> {
    let scope = run.ctx.scope();
    if matches!(decision, ApprovalDecision::ApproveAndRemember { .. }) {
        match store.revoke(scope, GrantId::from(request.id)).await {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _revoked => {}
        }
    }
    take_off(run, store, request).await?;
    if matches!(decision, ApprovalDecision::Deny { .. }) {
        return Ok(());
    }
    over(run, request, by, "the run went away before it was used: it is void, and nothing is remembered")
        .await
}

async fn over(run: &RunState, request: &ApprovalRequest, by: Option<&UserId>, why: &str) -> Result<()> {
    Record::of_run(run).over(request, by, why).await
}

/// Ends a request that nobody decided: [`ErrorKind::Conflict`] where somebody did.
pub(super) async fn decline(
    run: &RunState,
    store: &dyn ApprovalStore,
    request: &ApprovalRequest,
) -> Result<()> {
    let decision = ApprovalDecision::Deny { reason: "the run does not wait for it any more".to_owned() };
    store.decide_by_handler(run.ctx.scope(), request.id, decision, None, run.ctx.now()).await?;
    take_off(run, store, request).await
}

/// Lets nobody do anything any more on what was decided. What is used or over already is left as it is.
pub(super) async fn take_off(
    run: &RunState,
    store: &dyn ApprovalStore,
    request: &ApprovalRequest,
) -> Result<()> {
    match store.void(run.ctx.scope(), request.id, run.ctx.now()).await {
        Err(error) if error.kind() != ErrorKind::Conflict => Err(error),
        _void => Ok(()),
    }
}

/// Tells the runtime whether the run waits; that of a whole tree of runs is its root's. Calls that begin and end to wait at once
/// may tell it in any order, so each looks again whether what it told is still so.
async fn say(run: &RunState) -> Result<()> {
    let run = run.root();
    let Some(runtime) = &run.agent.runtime else { return Ok(()) };
    let status = || if run.is_waiting() { RunStatus::WaitingApproval } else { RunStatus::Running };
    loop {
        let told = status();
        runtime.set_status(run.ctx.scope(), &run.lease, told).await?;
        if status() == told {
            return Ok(());
        }
    }
}
