//! Small parts that tests put agents together from.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{
    Action, AuditEntry, AuditQuery, Effect, Label, PermittedCall, RunContext, Scope, Telemetry, Tool,
    ToolOutcome, ToolSpec, UserAgent, UserId,
};
use parking_lot::Mutex;

/// A user id that is known to be good.
///
/// # Panics
///
/// When it is not.
pub fn user(name: &str) -> UserId {
    UserId::new(name).expect("the test names a good user")
}

type Body =
    dyn Fn(RunContext, serde_json::Value) -> Pin<Box<dyn Future<Output = ToolOutcome> + Send>> + Send + Sync;

/// A tool made of a closure.
pub struct FnTool {
    spec: ToolSpec,
    body: Box<Body>,
}

impl FnTool {
    /// A tool of `effect` that does what `body` says. It is given a clone of the context and the arguments.
    ///
    /// # Panics
    ///
    /// When the name is not a tool name.
    pub fn new<F, Fut>(name: &str, effect: Effect, body: F) -> Self
    where
        F: Fn(RunContext, serde_json::Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ToolOutcome> + Send + 'static,
    {
        Self::taking(serde_json::json!({"type": "object"}), name, effect, body)
    }

    /// A tool whose arguments `schema` describes.
    ///
    /// # Panics
    ///
    /// When the name is not a tool name, or the schema is not one of an object.
    pub fn taking<F, Fut>(schema: serde_json::Value, name: &str, effect: Effect, body: F) -> Self
    where
        F: Fn(RunContext, serde_json::Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ToolOutcome> + Send + 'static,
    {
        let spec =
            ToolSpec::new(name, "A tool of a test.", effect, schema).expect("the test names a good tool");
        Self { spec, body: Box::new(move |ctx, arguments| Box::pin(body(ctx, arguments))) }
    }

    /// Changes the specification.
    pub fn with(mut self, change: impl FnOnce(ToolSpec) -> ToolSpec) -> Self {
        self.spec = change(self.spec);
        self
    }
}

impl fmt::Debug for FnTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FnTool({})", self.spec.name)
    }
}

#[async_trait]
impl Tool for FnTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, ctx: &RunContext, call: PermittedCall) -> ToolOutcome {
        (self.body)(ctx.clone(), call.arguments().clone()).await
    }
}

/// A telemetry sink that remembers every count.
#[derive(Debug, Default)]
pub struct Counts(Mutex<Vec<(&'static str, u64, Vec<Label>)>>);

impl Counts {
    /// The sum of a metric.
    pub fn total(&self, metric: &str) -> u64 {
        self.0.lock().iter().filter(|(name, ..)| *name == metric).map(|(_, by, _)| by).sum()
    }
}

impl Telemetry for Counts {
    fn count(&self, _scope: &Scope, metric: &'static str, by: u64, labels: &[Label]) {
        self.0.lock().push((metric, by, labels.to_vec()));
    }
}

/// The actions of a tenant's own audit entries, oldest first.
///
/// # Panics
///
/// When the log cannot be read.
pub async fn actions(tenant: &UserAgent) -> Vec<Action> {
    entries(tenant).await.into_iter().map(|entry| entry.event.action).collect()
}

/// A tenant's own audit entries, oldest first.
///
/// # Panics
///
/// When the log cannot be read.
pub async fn entries(tenant: &UserAgent) -> Vec<AuditEntry> {
    tenant.audit(&AuditQuery::first(10_000)).await.expect("the log can be read")
}

/// Checks that every run has exactly one terminal record and that it is the run's last one.
///
/// # Panics
///
/// When it is not so.
pub async fn assert_one_terminal_record_per_run(tenant: &UserAgent) {
    let mut runs: std::collections::BTreeMap<_, Vec<Action>> = std::collections::BTreeMap::new();
    for entry in entries(tenant).await {
        if let Some(run) = entry.event.run {
            runs.entry(run).or_default().push(entry.event.action);
        }
    }
    for (run, actions) in runs {
        let terminal = actions.iter().filter(|action| action.is_terminal()).count();
        assert_eq!(terminal, 1, "{run} has {terminal} terminal records: {actions:?}");
        assert!(
            actions.last().is_some_and(|last| last.is_terminal()),
            "{run} goes on after its end: {actions:?}"
        );
    }
}

/// An `Arc` of a value, under a short name.
pub fn shared<T>(value: T) -> Arc<T> {
    Arc::new(value)
}
