//! A run whose caller leaves: before it began nothing is left of it, and from then on it has one beginning and one end.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::poll;
use loomflow_core::{
    Action, Agent, BudgetConfig, Charge, Effect, Epoch, Erase, Erased, ExportStream, Hold, HoldId, Ledger,
    Limits, Owned, Recorded, Redacted, Reserve, Result, RunId, RunLease, RunOpening, RunRecord, RunStatus,
    Runtime, Scope, Settled, StepKey, TenantData, ToolOutcome, UsageReport, UserAgent,
};
use loomflow_local::{InMemoryAuditLog, InProcRuntime, StandardBudget, StandardPermissions};
use loomflow_tests::double::{ModelDouble, call, say};
use loomflow_tests::fixture::{FnTool, actions, assert_one_terminal_record_per_run, user};
use tokio::task::yield_now;

/// A runtime behind a network: a scope is not minted at once, and a lease is taken some time before its answer is there.
#[derive(Debug)]
struct FarRuntime(InProcRuntime);

/// Waits of [`FarRuntime`] before a run begins.
const WAITS: usize = 3;
/// Tokens of a user. A run needs more than the warning line leaves, and fewer than there are.
const CAP: u64 = 40;
/// Waits of the tool that every run calls.
const TOOL_WAITS: usize = 4;

#[async_trait]
impl TenantData for FarRuntime {
    fn store_name(&self) -> &str {
        "runtime:far"
    }
    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        yield_now().await;
        self.0.epoch(scope).await
    }
    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        self.0.export(scope).await
    }
    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        self.0.forget(scope, what).await
    }
}
#[async_trait]
impl Runtime for FarRuntime {
    fn journals(&self) -> bool {
        self.0.journals()
    }
    async fn open(&self, scope: &Scope, opening: RunOpening) -> Result<RunLease> {
        yield_now().await;
        let lease = self.0.open(scope, opening).await;
        yield_now().await;
        lease
    }
    async fn renew(&self, scope: &Scope, lease: &RunLease, lasting: Duration) -> Result<()> {
        self.0.renew(scope, lease, lasting).await
    }
    async fn set_status(&self, scope: &Scope, lease: &RunLease, status: RunStatus) -> Result<()> {
        self.0.set_status(scope, lease, status).await
    }
    async fn begin(&self, scope: &Scope, lease: &RunLease, step: &StepKey) -> Result<Recorded> {
        self.0.begin(scope, lease, step).await
    }
    async fn commit(
        &self,
        scope: &Scope,
        lease: &RunLease,
        step: &StepKey,
        outcome: Redacted<String>,
    ) -> Result<()> {
        self.0.commit(scope, lease, step, outcome).await
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

/// A ledger behind a network: each operation takes a while before it is done, and a while until its answer is there.
#[derive(Debug)]
struct FarLedger(StandardBudget);

#[async_trait]
impl TenantData for FarLedger {
    fn store_name(&self) -> &str {
        "ledger:far"
    }
    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        self.0.export(scope).await
    }
    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        self.0.forget(scope, what).await
    }
}

/// There and back.
macro_rules! far {
    ($operation:expr) => {{
        yield_now().await;
        let answer = $operation.await;
        yield_now().await;
        answer
    }};
}

#[async_trait]
impl Ledger for FarLedger {
    async fn reserve(&self, scope: &Scope, hold: &Hold) -> Result<Reserve> {
        far!(self.0.reserve(scope, hold))
    }
    async fn sent(&self, scope: &Scope, hold: HoldId) -> Result<()> {
        far!(self.0.sent(scope, hold))
    }
    async fn extend(&self, scope: &Scope, hold: HoldId, lease: Duration) -> Result<()> {
        far!(self.0.extend(scope, hold, lease))
    }
    async fn close(&self, scope: &Scope, hold: HoldId, charge: Charge) -> Result<Settled> {
        far!(self.0.close(scope, hold, charge))
    }
    async fn usage(&self, scope: &Scope) -> Result<UsageReport> {
        self.0.usage(scope).await
    }
    fn limits(&self) -> Limits {
        self.0.limits()
    }
}

fn model() -> Arc<ModelDouble> {
    ModelDouble::new(|_, n| Ok(if n % 2 == 0 { call("look", "{}") } else { say("one two three") }))
}

fn agent(model: &Arc<ModelDouble>) -> Agent {
    let limits =
        BudgetConfig::new().per_user_max_tokens(CAP).per_user_max_wall_clock(Duration::from_secs(999));
    Agent::builder("x")
        .model(model.clone())
        .tool(FnTool::new("look", Effect::Write, |_, _| async {
            for _ in 0..TOOL_WAITS {
                yield_now().await;
            }
            ToolOutcome::ok("seen")
        }))
        .permissions(StandardPermissions::bypass())
        .runtime(FarRuntime(InProcRuntime::new()))
        .budget(FarLedger(StandardBudget::new(limits).expect("good limits")))
        .audit_log(InMemoryAuditLog::new())
        .build()
        .expect("parts that fit together")
}

/// Drops a run after `polls` polls and waits for what it left. Whether it ended before.
async fn leaves_after(polls: usize, agent: &Agent, tenant: &UserAgent) -> bool {
    let mut run = Box::pin(IntoFuture::into_future(tenant.run("hi").session("s")));
    for _ in 0..polls {
        if poll!(&mut run).is_ready() {
            return true;
        }
    }
    drop(run);
    agent.settled().await.expect("the closer runs");
    false
}

#[tokio::test]
async fn a_run_dropped_while_it_is_let_in_leaves_nothing() {
    for polls in 0..=WAITS {
        let model = model();
        let agent = agent(&model);
        let tenant = agent.for_user(user("a"));
        assert!(!leaves_after(polls, &agent, &tenant).await);
        assert_eq!(actions(&tenant).await, [], "after {polls} polls");
        let usage = tenant.usage().await.unwrap();
        assert_eq!((usage.used.total_tokens(), usage.held_tokens, usage.open_holds), (0, 0, 0));
        assert_eq!(usage.wall_clock, Duration::ZERO);
        assert!(usage.windows.iter().all(|window| window.used + window.held == 0), "{usage:?}");
        assert_eq!(model.calls(), 0);
        // Nor is the session held.
        tenant.run("again").session("s").await.unwrap();
        assert_one_terminal_record_per_run(&tenant).await;
    }
}

#[tokio::test]
async fn a_run_dropped_at_any_later_poll_began_once_and_ended_once() {
    for polls in WAITS + 1.. {
        let model = model();
        let agent = agent(&model);
        let tenant = agent.for_user(user("a"));
        let ended = leaves_after(polls, &agent, &tenant).await;
        let log = actions(&tenant).await;
        assert_eq!(log.first(), Some(&Action::RunStarted), "after {polls} polls: {log:?}");
        assert_one_terminal_record_per_run(&tenant).await;
        let count = |action| log.iter().filter(|recorded| **recorded == action).count() as u64;
        assert_eq!(count(Action::ModelCall), model.calls(), "after {polls} polls: {log:?}");
        let usage = tenant.usage().await.unwrap();
        assert_eq!(usage.open_holds, 0, "after {polls} polls");
        // The line is reached by whoever reserves first, and is told of once, be it by a run that was dropped.
        let _refused_or_not = tenant.run("again").await;
        let warned = actions(&tenant).await.iter().filter(|action| **action == Action::BudgetWarning).count();
        assert_eq!(warned, 1, "after {polls} polls");
        if ended {
            return assert!(polls > WAITS + TOOL_WAITS, "runs were dropped in the middle");
        }
    }
}
