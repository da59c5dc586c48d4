//! A double of the telemetry pipeline.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use loomflow_core::{Label, Owner, Redacted, RunContext, Scope, Telemetry};

/// The most records that are kept; what comes after is counted and dropped.
const MOST: usize = 1_000_000;

/// One call of a [`RecordingTelemetry`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Metric {
    /// Whose.
    pub owner: Owner,
    /// The metric's, or the span's, name.
    pub name: &'static str,
    /// What was added to a counter; 0 for a duration or a span.
    pub by: u64,
    /// How long it took; zero for a counter.
    pub took: Duration,
    /// The labels.
    pub labels: Vec<Label>,
    /// The detail of a span; empty for a metric.
    pub detail: String,
}

/// A double of [`Telemetry`] that keeps the first million calls and hands them out.
#[derive(Debug, Default)]
pub struct RecordingTelemetry {
    seen: Mutex<(Vec<Metric>, u64)>,
}

impl RecordingTelemetry {
    /// A sink that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything that was recorded, in order.
    #[must_use]
    pub fn recorded(&self) -> Vec<Metric> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// The sum of the counter `name` over all tenants and labels.
    #[must_use]
    pub fn total(&self, name: &str) -> u64 {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.0.iter().filter(|m| m.name == name).map(|m| m.by).sum()
    }

    /// How many records did not fit.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    fn keep(&self, metric: Metric) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0.len() < MOST {
            seen.0.push(metric);
        } else {
            seen.1 += 1;
        }
    }
}

impl Telemetry for RecordingTelemetry {
    fn count(&self, scope: &Scope, metric: &'static str, by: u64, labels: &[Label]) {
        self.keep(Metric {
            owner: scope.owner().clone(),
            name: metric,
            by,
            took: Duration::ZERO,
            labels: labels.to_vec(),
            detail: String::new(),
        });
    }

    fn duration(&self, scope: &Scope, metric: &'static str, took: Duration, labels: &[Label]) {
        self.keep(Metric {
            owner: scope.owner().clone(),
            name: metric,
            by: 0,
            took,
            labels: labels.to_vec(),
            detail: String::new(),
        });
    }

    fn span(&self, ctx: &RunContext, name: &'static str, took: Duration, detail: &Redacted<String>) {
        self.keep(Metric {
            owner: ctx.scope().owner().clone(),
            name,
            by: 0,
            took,
            labels: Vec::new(),
            detail: detail.get().clone(),
        });
    }

    fn wants_spans(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::World;

    #[test]
    fn what_is_counted_is_kept_with_its_owner() {
        let telemetry = RecordingTelemetry::new();
        let alice = World::new().user("alice");
        telemetry.count(&alice, "calls", 2, &[("kind", "a")]);
        telemetry.count(&alice, "calls", 3, &[]);
        telemetry.duration(&alice, "took", Duration::from_secs(1), &[]);
        assert_eq!((telemetry.total("calls"), telemetry.dropped()), (5, 0));
        let seen = telemetry.recorded();
        assert_eq!(
            (seen.len(), &seen[0].owner, &seen[0].labels[..]),
            (3, alice.owner(), &[("kind", "a")][..])
        );
    }
}
