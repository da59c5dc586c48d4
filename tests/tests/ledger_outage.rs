//! A ledger that is away for a while when a call ends: what was spent is told to it when it is back, once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    Action, Agent, BudgetConfig, Charge, Erase, Erased, Error, ErrorKind, ExportStream, Hold, HoldId, Ledger,
    Limits, Reserve, Result, RunId, Scope, Settled, TenantData, UsageReport,
};
use loomflow_local::{InMemoryAuditLog, StandardBudget};
use loomflow_tests::double::{ModelDouble, Step, say};
use loomflow_tests::fixture::{assert_one_terminal_record_per_run, entries, user};
use tokio::time::Instant;

/// A ledger whose closes fail until a moment. The answer of every other one that comes through is lost.
#[derive(Debug)]
struct Away {
    inner: StandardBudget,
    until: Instant,
    kind: ErrorKind,
    asked: AtomicU64,
    done: AtomicU64,
}

impl Away {
    fn new(away_for: Duration, kind: ErrorKind) -> Arc<Self> {
        let caps = BudgetConfig::new()
            .per_user_max_tokens(9_999)
            .per_user_max_wall_clock(Duration::from_secs(3_600));
        let inner = StandardBudget::new(caps).unwrap();
        let (asked, done) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { inner, until: Instant::now() + away_for, kind, asked, done })
    }
}

#[async_trait]
impl TenantData for Away {
    fn store_name(&self) -> &str {
        "ledger:away"
    }
    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        self.inner.export(scope).await
    }
    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        self.inner.forget(scope, what).await
    }
}

#[async_trait]
impl Ledger for Away {
    async fn reserve(&self, scope: &Scope, hold: &Hold) -> Result<Reserve> {
        self.inner.reserve(scope, hold).await
    }
    async fn sent(&self, scope: &Scope, hold: HoldId) -> Result<()> {
        self.inner.sent(scope, hold).await
    }
    async fn extend(&self, scope: &Scope, hold: HoldId, lease: Duration) -> Result<()> {
        self.inner.extend(scope, hold, lease).await
    }
    async fn close(&self, scope: &Scope, hold: HoldId, charge: Charge) -> Result<Settled> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if Instant::now() < self.until {
            return Err(Error::new(self.kind, "the ledger is away"));
        }
        let settled = self.inner.close(scope, hold, charge).await?;
        if self.done.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            return Err(Error::new(self.kind, "the answer is lost"));
        }
        Ok(settled)
    }
    async fn usage(&self, scope: &Scope) -> Result<UsageReport> {
        self.inner.usage(scope).await
    }
    async fn end_run(&self, scope: &Scope, run: RunId) -> Result<()> {
        self.inner.end_run(scope, run).await
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
}

fn agent(model: &Arc<ModelDouble>, ledger: &Arc<Away>) -> Agent {
    Agent::builder("x")
        .model(model.clone())
        .budget(ledger.clone())
        .audit_log(InMemoryAuditLog::new())
        .run_timeout(Duration::from_secs(300))
        .build()
        .unwrap()
}

/// A call whose charge the ledger could not take was charged its estimate when the lease ran out, and its run failed.
#[tokio::test(start_paused = true)]
async fn a_run_goes_on_when_its_ledger_is_back() {
    let ledger = Away::new(Duration::from_secs(20), ErrorKind::Unreachable);
    let model = ModelDouble::saying("one two three");
    let agent = agent(&model, &ledger);
    let tenant = agent.for_user(user("a"));
    assert_eq!(&*tenant.run("hi").await.unwrap().output, "one two three");
    agent.settled().await.unwrap();
    let usage = tenant.usage().await.unwrap();
    let (input, output) = model.invoice();
    assert_eq!((usage.used.input_tokens, usage.used.output_tokens, usage.open_holds), (input, output, 0));
    let record = entries(&tenant).await.into_iter().find(|entry| entry.event.action == Action::ModelCall);
    assert!(!record.unwrap().event.payload.get().contains("estimated"), "the charge is the provider's own");
}

#[tokio::test(start_paused = true)]
async fn runs_that_were_dropped_meanwhile_are_charged_once_each() {
    let ledger = Away::new(Duration::from_secs(20), ErrorKind::Transport);
    let model = ModelDouble::new(|_, _| Ok(vec![Step::Say("one two".into()), Step::Hang]));
    let agent = agent(&model, &ledger);
    let tenants: Vec<_> = (0..2_000).map(|n| agent.for_user(user(&format!("u{n}")))).collect();
    let runs: Vec<_> =
        tenants.iter().map(|tenant| tokio::spawn(IntoFuture::into_future(tenant.run("hi")))).collect();
    while model.calls() < runs.len() as u64 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for run in runs {
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
    }
    agent.settled().await.unwrap();
    for tenant in &tenants {
        let usage = tenant.usage().await.unwrap();
        assert_eq!((usage.used.total_tokens(), usage.open_holds), (4, 0));
        assert_one_terminal_record_per_run(tenant).await;
    }
}

/// Nobody waits for ever, and the record does not wait for the ledger.
#[tokio::test(start_paused = true)]
async fn an_outage_that_does_not_end_fails_the_run_and_leaves_the_hold_to_its_lease() {
    let ledger = Away::new(Duration::from_secs(86_400), ErrorKind::Unreachable);
    let model = ModelDouble::saying("one two three");
    let agent = agent(&model, &ledger);
    let tenant = agent.for_user(user("a"));
    let begun = Instant::now();
    let error = tenant.run("hi").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(!error.is_retryable(), "the provider was paid: doing it again pays again");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(model.calls(), 1);
    assert_one_terminal_record_per_run(&tenant).await;
    agent.settled().await.unwrap();
    assert_eq!(
        tenant.usage().await.unwrap().open_holds,
        2,
        "the call's and the run's, until their leases end"
    );
}

#[tokio::test(start_paused = true)]
async fn what_will_not_pass_is_told_at_once() {
    let ledger = Away::new(Duration::from_secs(86_400), ErrorKind::Internal);
    let model = ModelDouble::new(|_, _| Ok(say("one")));
    let begun = Instant::now();
    let error = agent(&model, &ledger).for_user(user("a")).run("hi").await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed()), (ErrorKind::Internal, Duration::ZERO));
    assert_eq!(ledger.asked.load(Ordering::SeqCst), 2, "once for the call, once for the run's time");
}
