//! A call that waits for a person: the run says so, the wait is measured, and a run that goes away takes its request back.

use std::sync::Arc;

use tokio::time::Instant;

use crate::approval::{ApprovalDecision, ApprovalRequest, ApprovalStore};
use crate::closer::{Handoff, Slot};
use crate::error::Result;
use crate::result::RunStatus;
use crate::run::RunState;

/// How a wait ended, as its metric says.
pub(super) const ANSWERED: &str = "answered";
pub(super) const UNANSWERED: &str = "unanswered";
const ABANDONED: &str = "abandoned";

/// One call's wait, from asking to the answer. Dropped before its end, it belongs to a run that went away: nobody is asked
/// any more, and the closer takes the request back.
pub(super) struct Waiting {
    open: Option<Open>,
    since: Instant,
    run: Arc<RunState>,
}

struct Open {
    store: Arc<dyn ApprovalStore>,
    request: ApprovalRequest,
    slot: Slot,
}

impl Waiting {
    /// Begins to wait for what becomes of `request`, which is stored. `slot` was taken before it was.
    pub(super) fn begin(
        run: &Arc<RunState>,
        store: Arc<dyn ApprovalStore>,
        request: ApprovalRequest,
        slot: Slot,
    ) -> Self {
        run.root().waits_for_one_more();
        let open = Some(Open { store, request, slot });
        Self { open, since: Instant::now(), run: run.clone() }
    }

    /// Tells the runtime that the run waits.
    pub(super) async fn say(&self) -> Result<()> {
        say(&self.run).await
    }

    /// Where the request is.
    pub(super) fn store(&self) -> Arc<dyn ApprovalStore> {
        self.open.as_ref().expect("a wait is open until it ends, and ending consumes it").store.clone()
    }

    /// Ends the wait: the run goes on, unless it waits for another call.
    pub(super) async fn end(mut self, outcome: &'static str) -> Result<()> {
        let run = self.run.clone();
        self.close(outcome);
        drop(self);
        say(&run).await
    }

    fn close(&mut self, outcome: &'static str) -> Option<Open> {
        let open = self.open.take()?;
        self.run.root().waits_for_one_less();
        let telemetry = &self.run.ctx.services().telemetry;
        let labels = [("outcome", outcome)];
        telemetry.duration(self.run.ctx.scope(), "loom.approval.waited", self.since.elapsed(), &labels);
        Some(open)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(Open { store, request, slot }) = self.close(ABANDONED) else { return };
        self.run.ctx.count("loom.approvals", 1, &[("outcome", ABANDONED)]);
        let run = self.run.clone();
        let work = Box::pin(async move {
            if is_still_ours(&run).await {
                withdraw(&run, &*store, &request).await;
            }
        });
        // Dropping a handoff that was never polled gives it to the closer.
        drop(Handoff::new(slot, work));
    }
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

/// Takes a request back that nobody waits for any more, so that no approver is shown it and no decision on it counts. What
/// is not taken back ends by itself when it expires.
pub(super) async fn withdraw(run: &RunState, store: &dyn ApprovalStore, request: &ApprovalRequest) {
    let (scope, now) = (run.ctx.scope(), run.ctx.now());
    let decision = ApprovalDecision::Deny { reason: "the run does not wait for it any more".to_owned() };
    // Somebody may have decided meanwhile; then theirs is the decision that is used up.
    let decided = store.decide_by_handler(scope, request.id, decision, None, now).await;
    let used = store.consume(scope, request.id, request.digest, request.policy_version, now).await;
    if decided.is_err() && used.is_err() {
        run.ctx.count("loom.approval.errors", 1, &[("error", "not_withdrawn")]);
    }
}

/// Tells the runtime whether the run waits; that of a whole tree of runs is its root's. Calls that begin and end to wait at once may tell it in any order, so each looks
/// again whether what it told is still so.
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
