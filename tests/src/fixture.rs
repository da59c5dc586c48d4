//! Small parts that tests put agents together from.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{
    Action, AuditEntry, AuditQuery, Clock, Effect, Label, PermittedCall, RunContext, Scope, Telemetry,
    Timestamp, Tool, ToolOutcome, ToolSpec, UserAgent, UserId,
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
    /// The sum of a metric where it has this label.
    pub fn with(&self, metric: &str, label: Label) -> u64 {
        let labelled = |labels: &[Label]| labels.contains(&label);
        self.0
            .lock()
            .iter()
            .filter(|(name, _, labels)| *name == metric && labelled(labels))
            .map(|(_, by, _)| by)
            .sum()
    }

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

/// A wall clock that goes with the runtime's own, so that a paused runtime pauses it, too.
#[derive(Clone, Copy, Debug)]
pub struct RuntimeClock(tokio::time::Instant);

impl RuntimeClock {
    /// A clock that starts now, in November 2026. Needs a runtime around it.
    #[must_use]
    pub fn start() -> Self {
        Self(tokio::time::Instant::now())
    }
}

impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_795_000_000_000_000).saturating_add(self.0.elapsed())
    }
}

/// Keeps panics whose words end with "on purpose" from being printed: a test that raises thousands would drown in them.
pub fn quiet_on_purpose() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let words = panic.payload().downcast_ref::<&str>().copied().unwrap_or_default();
            if !words.ends_with("on purpose") {
                usual(panic);
            }
        }));
    });
}

/// An `Arc` of a value, under a short name.
pub fn shared<T>(value: T) -> Arc<T> {
    Arc::new(value)
}
