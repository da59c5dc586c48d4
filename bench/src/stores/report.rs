//! What was measured, for people (Markdown) and for machines (JSON).

use std::fmt::Write as _;

use serde::Serialize;

use super::Args;
use super::load::Done;
use crate::machine::Machine;
use crate::stats::Latency;

/// A load of writers.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Rate {
    /// How many at once.
    pub writers: usize,
    /// Operations that were acknowledged.
    pub operations: u64,
    /// Of them, in a second.
    pub per_s: f64,
    /// Of one operation, in microseconds.
    pub latency_us: Latency,
}

impl Rate {
    pub(super) fn new(writers: usize, done: &Done) -> Self {
        let operations = done.latencies.len() as u64;
        Self { writers, operations, per_s: done.per_second(), latency_us: Latency::of(&done.latencies) }
    }
}

impl Done {
    pub(super) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.wall.as_secs_f64().max(1e-9)
    }
}

/// The same rows, written to the same server or disk with the least that is needed for it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Floor {
    /// What wrote them.
    pub how: String,
    /// Rows in a second.
    pub per_s: f64,
}

/// Facts of one user, found among those of all.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Facts {
    /// How many there are.
    pub facts: u64,
    /// Of how many users.
    pub users: u64,
    /// How fast they were asserted.
    pub asserts_per_s: f64,
    /// One query at a time, in microseconds.
    pub alone: Latency,
    /// As many at once as there are writers.
    pub together: Latency,
}

/// One relevant episode among those of others.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Noise {
    /// Episodes of others.
    pub foreign: u64,
    /// One query at a time, in microseconds.
    pub alone: Latency,
    /// As many at once as there are writers.
    pub together: Latency,
}

/// Everything that was measured of one store.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The store's name. Never its URL.
    pub store: String,
    /// Where.
    pub machine: Machine,
    /// Components of each vector.
    pub dimensions: usize,
    /// Concurrent writers.
    pub remembers: Option<Rate>,
    /// What the store's server or disk would take at best.
    pub floor: Option<Floor>,
    /// Facts.
    pub facts: Option<Facts>,
    /// By how much there is of others.
    pub foreign: Vec<Noise>,
}

impl Report {
    pub(super) fn new(store: &str, args: &Args) -> Self {
        Self {
            store: store.to_owned(),
            machine: Machine::here(),
            dimensions: args.dimensions,
            remembers: None,
            floor: None,
            facts: None,
            foreign: Vec::new(),
        }
    }

    /// A Markdown table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = format!(
            "{} on {} cores of {}, vectors of {} components\n\n| what | per second | p50 | p99 | max |\n|---|---|---|---|---|\n",
            self.store, self.machine.cores, self.machine.cpu, self.dimensions
        );
        let mut row = |what: String, per_s: Option<f64>, latency: Option<Latency>| {
            let per_s = per_s.map_or_else(String::new, |n| format!("{n:.0}"));
            let [p50, p99, max] =
                latency.map_or_else(Default::default, |l| [l.p50, l.p99, l.max].map(millis));
            let _ = writeln!(out, "| {what} | {per_s} | {p50} | {p99} | {max} |");
        };
        if let Some(rate) = &self.remembers {
            let what = format!("remember, {} writers", rate.writers);
            row(what, Some(rate.per_s), Some(rate.latency_us));
        }
        if let Some(floor) = &self.floor {
            row(format!("floor: {}", floor.how), Some(floor.per_s), None);
        }
        if let (Some(rate), Some(floor)) = (&self.remembers, &self.floor) {
            row(
                format!("share of the floor: {:.0} %", 100.0 * rate.per_s / floor.per_s.max(1e-9)),
                None,
                None,
            );
        }
        if let Some(f) = &self.facts {
            row(format!("assert, {} facts of {} users", f.facts, f.users), Some(f.asserts_per_s), None);
            row("facts of one user, one query at a time".to_owned(), None, Some(f.alone));
            row("facts of one user, all at once".to_owned(), None, Some(f.together));
        }
        for n in &self.foreign {
            row(format!("recall among {} foreign episodes", n.foreign), None, Some(n.alone));
            row(format!("recall among {} foreign episodes, all at once", n.foreign), None, Some(n.together));
        }
        out
    }
}

fn millis(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1_000.0)
}
