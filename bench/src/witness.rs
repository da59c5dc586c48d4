//! The driver's own eyes inside the system: doubles that count what passes through them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    Decision, Effect, Judged, Label, OutputSchema, Permissions, PermittedCall, Result, RunContext, Scope,
    Telemetry, Tool, ToolCall, ToolOutcome, ToolSpec,
};
use serde_json::{Value, json};

use crate::population::Population;
use crate::watch::{Channel, Watch};

/// Counts what telemetry is told about budgets, isolation and the ends of runs.
#[derive(Debug)]
pub struct TelemetryWitness {
    people: Arc<Population>,
    refused: AtomicU64,
    warned: AtomicU64,
    violations: AtomicU64,
    ended: AtomicU64,
    exhausted: Box<[AtomicBool]>,
}

impl TelemetryWitness {
    /// A witness that saw nothing yet.
    #[must_use]
    pub fn new(people: Arc<Population>) -> Self {
        let exhausted = (0..people.len()).map(|_| AtomicBool::new(false)).collect();
        let (refused, warned, violations, ended) = Default::default();
        Self { people, refused, warned, violations, ended, exhausted }
    }

    /// Calls that a cap refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Caps that reached their warning line.
    #[must_use]
    pub fn warned(&self) -> u64 {
        self.warned.load(Ordering::Relaxed)
    }

    /// Times that a store handed out somebody else's record.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    /// Runs that began and are over, whatever they came to.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Tenants who ran into a cap.
    #[must_use]
    pub fn exhausted(&self) -> u64 {
        self.exhausted.iter().filter(|user| user.load(Ordering::Relaxed)).count() as u64
    }
}

impl Telemetry for TelemetryWitness {
    fn count(&self, scope: &Scope, metric: &'static str, by: u64, _labels: &[Label]) {
        match metric {
            "loom.budget.refused" => {
                self.refused.fetch_add(by, Ordering::Relaxed);
                if let Some(place) = self.people.place(scope.user_id()) {
                    self.exhausted[place].store(true, Ordering::Relaxed);
                }
            }
            "loom.budget.warnings" => _ = self.warned.fetch_add(by, Ordering::Relaxed),
            "loom.isolation.violations" => _ = self.violations.fetch_add(by, Ordering::Relaxed),
            _ => {}
        }
    }

    fn duration(&self, _scope: &Scope, metric: &'static str, _took: Duration, _labels: &[Label]) {
        self.ended.fetch_add(u64::from(metric == "loom.run.duration"), Ordering::Relaxed);
    }
}

/// Counts the decisions of a policy.
#[derive(Debug)]
pub struct PolicyWitness<P> {
    policy: P,
    counts: Arc<PolicyCounts>,
}

/// What a policy decided.
#[derive(Debug, Default)]
pub struct PolicyCounts {
    allowed: AtomicU64,
    asked: AtomicU64,
    denied: AtomicU64,
}

impl PolicyCounts {
    /// Decisions in all.
    #[must_use]
    pub fn checks(&self) -> u64 {
        self.allowed.load(Ordering::Relaxed) + self.asked() + self.denied()
    }

    /// Calls that somebody would have to approve.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Calls that were denied.
    #[must_use]
    pub fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }
}

impl<P: Permissions> PolicyWitness<P> {
    /// Watches `policy`.
    #[must_use]
    pub fn new(policy: P, counts: Arc<PolicyCounts>) -> Self {
        Self { policy, counts }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<P: Permissions> Permissions for PolicyWitness<P> {
    async fn check(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Decision> {
        self.judge(ctx, call, effect).await.map(|judged| judged.decision)
    }

    async fn judge(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Judged> {
        let judged = self.policy.judge(ctx, call, effect).await?;
        let counter = match &judged.decision {
            Decision::Allow => &self.counts.allowed,
            Decision::Ask { .. } => &self.counts.asked,
            Decision::Deny { .. } => &self.counts.denied,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(judged)
    }

    fn version(&self) -> u64 {
        self.policy.version()
    }
}

/// A tool that answers with the canary its run carries.
#[derive(Debug)]
pub struct CanaryTool {
    spec: ToolSpec,
    people: Arc<Population>,
    watch: Arc<Watch>,
    calls: Arc<AtomicU64>,
}

/// Where a run carries what its tools answer with.
pub const TOOL_CANARY: &str = "tool_canary";

impl CanaryTool {
    /// A tool of that name and effect; every call is counted in `calls`.
    ///
    /// # Errors
    ///
    /// When the name is refused.
    pub fn new(
        name: &str,
        effect: Effect,
        people: Arc<Population>,
        watch: Arc<Watch>,
        calls: Arc<AtomicU64>,
    ) -> Result<Self> {
        let parameters = json!({"type": "object", "properties": {"key": {"type": "string"}}});
        let spec = ToolSpec::new(name, "Knows something about a key.", effect, parameters)?;
        Ok(Self { spec, people, watch, calls })
    }
}

#[async_trait]
impl Tool for CanaryTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, ctx: &RunContext, call: PermittedCall) -> ToolOutcome {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if let Some(tenant) = self.people.place(ctx.user_id()) {
            self.watch.look_at(tenant, Channel::ToolCall, call.arguments());
        }
        tokio::task::yield_now().await;
        match ctx.metadata().get(TOOL_CANARY) {
            Some(canary) => ToolOutcome::ok(format!("the archive says {canary} about that")),
            None => ToolOutcome::error("the archive says nothing"),
        }
    }
}

/// The shape that structured answers must have: an object with a text `kept`.
#[derive(Debug)]
pub struct KeptSchema(Arc<Value>);

impl Default for KeptSchema {
    fn default() -> Self {
        Self(Arc::new(json!({
            "type": "object", "properties": {"kept": {"type": "string"}}, "required": ["kept"],
        })))
    }
}

impl OutputSchema for KeptSchema {
    fn schema(&self) -> &Arc<Value> {
        &self.0
    }

    fn validate(&self, value: &Value) -> Result<(), Vec<String>> {
        match value.get("kept").and_then(Value::as_str) {
            Some(_) => Ok(()),
            None => Err(vec!["kept: a text is required".to_owned()]),
        }
    }
}
