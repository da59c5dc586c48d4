//! Metrics and spans as plain calls: no telemetry SDK's types in core.

use std::fmt;
use std::time::Duration;

use crate::context::RunContext;
use crate::redact::Redacted;
use crate::scope::Scope;

/// A label of a metric: a name and one of a small set of values. Never a user id, a prompt or anything unbounded.
pub type Label = (&'static str, &'static str);

/// Receives metrics and spans. Everything here is best effort: it must not block, and it cannot fail a run.
///
/// Whether and how a metric is attributed to the user of `scope` is the sink's business: it bounds how many series that
/// makes.
pub trait Telemetry: fmt::Debug + Send + Sync + 'static {
    /// Adds to a counter.
    fn count(&self, scope: &Scope, metric: &'static str, by: u64, labels: &[Label]) {
        let _ = (scope, metric, by, labels);
    }

    /// Records a duration.
    fn duration(&self, scope: &Scope, metric: &'static str, took: Duration, labels: &[Label]) {
        let _ = (scope, metric, took, labels);
    }

    /// A span ended: `run`, `model` or `tool`, of the run of `ctx`.
    fn span(&self, ctx: &RunContext, name: &'static str, took: Duration, detail: &Redacted<String>) {
        let _ = (ctx, name, took, detail);
    }

    /// Whether spans are wanted at all, so that their detail need not be written for nobody.
    fn wants_spans(&self) -> bool {
        false
    }
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit that is what its name says")]
pub struct NoTelemetry;

impl Telemetry for NoTelemetry {}
