//! The other parts of a schedule's agent: a model that pays by its plan, a till that remembers, a journal that suspends, a clock
//! that outlives a process.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use loomflow::local::InProcRuntime;
use loomflow_core::{
    ApprovalDecision, ApprovalHandler, ApprovalRequest, Clock, Effect, Epoch, Erase, Erased, Error,
    ErrorKind, ExportStream, Notified, Owned, Recorded, Redacted, Result, RunContext, RunId, RunLease,
    RunOpening, RunRecord, RunStatus, Runtime, Scope, StepKey, TenantData, Timestamp, ToolOutcome,
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::task::yield_now;
use tokio::time::Instant;

use super::history::{Fact, History};
use super::plan::Handler;
use super::policy::payment;
use crate::double::{ModelDouble, Step, say};
use crate::fixture::{FnTool, user};

/// A model that pays what the plan says, turn by turn. It keeps nothing: a second life asks it the same.
pub(super) fn model(turns: &[Vec<u64>]) -> Arc<ModelDouble> {
    let turns = turns.to_vec();
    ModelDouble::new(move |request, _| {
        let mut answered = request.messages.iter().filter(|m| m.tool_call_id.is_some()).count();
        let mut first = 0;
        for turn in &turns {
            if answered == 0 {
                let pay = |(at, cents): (usize, &u64)| {
                    Step::Call("pay", json!({"call": first + at, "cents": cents}).to_string())
                };
                return Ok(turn.iter().enumerate().map(pay).collect());
            }
            answered = answered.saturating_sub(turn.len());
            first += turn.len();
        }
        Ok(say("bye"))
    })
}

/// A tool that remembers what it did, with suspensions around it.
pub(super) fn till(history: &History) -> FnTool {
    let history = history.clone();
    FnTool::new("pay", Effect::External, move |_, arguments| {
        let history = history.clone();
        async move {
            yield_now().await;
            let (call, cents) = payment(&arguments);
            history.add(Fact::Executed { call, cents });
            yield_now().await;
            ToolOutcome::ok("paid")
        }
    })
}

/// A handler that does with each request what the plan says about its call.
#[derive(Debug)]
pub(super) struct Tells {
    pub(super) does: Vec<Handler>,
    pub(super) history: History,
}

#[async_trait]
impl ApprovalHandler for Tells {
    async fn notify(&self, _: &RunContext, ask: &ApprovalRequest) -> Result<Notified> {
        yield_now().await;
        let (call, _) = payment(&ask.arguments);
        let decision = match self.does[call as usize % self.does.len()] {
            Handler::Tells => return Ok(Notified::Pending),
            Handler::Approves => ApprovalDecision::Approve,
            Handler::Denies => ApprovalDecision::Deny { reason: "no".into() },
            Handler::Edits(cents) => ApprovalDecision::Edit { args: json!({"call": call, "cents": cents}) },
            Handler::Fails => {
                self.history.add(Fact::NobodyTold(ask.id));
                return Err(Error::new(ErrorKind::Transport, "the chat is down"));
            }
        };
        Ok(Notified::Decided { decision, by: Some(user("boss")) })
    }
}

/// The time of a schedule: it goes on from one process to the next.
#[derive(Debug)]
pub(super) struct WorldClock(Mutex<(Instant, Timestamp)>);

impl WorldClock {
    /// A clock that starts at the present instant of the runtime around it.
    pub(super) fn start() -> Self {
        Self(Mutex::new((Instant::now(), Timestamp::from_micros(1_795_000_000_000_000))))
    }

    /// When the process that ended stood.
    pub(super) fn last(&self) -> (Instant, Timestamp) {
        (Instant::now(), self.now())
    }

    /// Goes on in another runtime, `gap` after `last`. The leases that the first gave out are over by then.
    pub(super) async fn go_on(&self, (instant, wall): (Instant, Timestamp), gap: Duration) {
        tokio::time::advance(instant.saturating_duration_since(Instant::now()) + gap).await;
        *self.0.lock() = (Instant::now(), wall.saturating_add(gap));
    }
}

impl Clock for WorldClock {
    fn now(&self) -> Timestamp {
        let (start, wall) = *self.0.lock();
        wall.saturating_add(Instant::now().saturating_duration_since(start))
    }
}

/// A journal that suspends before and after everything it writes.
#[derive(Debug)]
pub(super) struct Journal(pub(super) InProcRuntime);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Runtime for Journal {
    fn journals(&self) -> bool {
        self.0.journals()
    }

    async fn open(&self, scope: &Scope, opening: RunOpening) -> Result<RunLease> {
        self.0.open(scope, opening).await
    }

    async fn renew(&self, scope: &Scope, lease: &RunLease, lasting: Duration) -> Result<()> {
        self.0.renew(scope, lease, lasting).await
    }

    async fn begin(&self, scope: &Scope, lease: &RunLease, step: &StepKey) -> Result<Recorded> {
        yield_now().await;
        let known = self.0.begin(scope, lease, step).await;
        yield_now().await;
        known
    }

    async fn commit(
        &self,
        scope: &Scope,
        lease: &RunLease,
        step: &StepKey,
        outcome: Redacted<String>,
    ) -> Result<()> {
        yield_now().await;
        let done = self.0.commit(scope, lease, step, outcome).await;
        yield_now().await;
        done
    }

    async fn set_status(&self, scope: &Scope, lease: &RunLease, status: RunStatus) -> Result<()> {
        self.0.set_status(scope, lease, status).await
    }

    async fn close(&self, scope: &Scope, lease: &RunLease, status: RunStatus) -> Result<()> {
        self.0.close(scope, lease, status).await
    }

    async fn load(&self, scope: &Scope, run: RunId) -> Result<Owned<RunRecord>> {
        self.0.load(scope, run).await
    }

    async fn open_runs(&self, scope: &Scope) -> Result<Vec<Owned<RunRecord>>> {
        self.0.open_runs(scope).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl TenantData for Journal {
    fn store_name(&self) -> &str {
        self.0.store_name()
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        self.0.epoch(scope).await
    }

    async fn ready(&self) -> loomflow_core::resilience::Readiness {
        self.0.ready().await
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        self.0.export(scope).await
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        self.0.forget(scope, what).await
    }
}
