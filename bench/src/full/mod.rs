//! The profile `full`: everything at once, for tenants with hostile names, while everything they receive is searched for
//! what belongs to others.
//!
//! A closed loop as in the other profiles, but a turn is whatever its plan says: answered, streamed, cancelled at some
//! poll, aborted after some events, timed out or structured, with a provider that fails on demand. Planting and probing
//! happen between the runs, inside the timed part, so the CPU per run of this profile is not comparable with the others'.

mod judge;
mod probe;
mod turn;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use loomflow_core::{Agent, Error, ErrorKind, Result, RunId, RunStatus};

use crate::canary::Canaries;
use crate::config::Config;
use crate::meter::Meter;
use crate::plan::Plan;
use crate::population::Population;
use crate::progress::Progress;
use crate::provider::{Invoice, MeteredModel};
use crate::report::{Endings, Report};
use crate::stats::Latency;
use crate::system::{self, Doubles, Dump, FullSystem};
use crate::watch::Watch;
use crate::witness::{PolicyCounts, TelemetryWitness};

/// Canaries of one turn: said, answered by tools, and planted as fact and block; the same again for a run beside it.
const CANARIES_PER_TURN: usize = 6;

/// Everything the workers share.
#[derive(Debug)]
struct World {
    seed: u64,
    agent: Agent,
    hurried: Agent,
    people: Arc<Population>,
    canaries: Arc<Canaries>,
    watch: Arc<Watch>,
    exports: AtomicU64,
    forgets: AtomicU64,
    /// The most tokens by which any cap was exceeded at any look, holds counted.
    overspend: AtomicU64,
}

/// What the workers saw of the runs they made.
#[derive(Debug, Default)]
struct Seen {
    endings: Endings,
    /// Runs dropped at some poll. They show their caller nothing, and on a store the network may still be at the door.
    left: u64,
    /// Runs whose end was seen, and how they ended.
    known: Vec<(RunId, RunStatus)>,
    latencies: Vec<Duration>,
    /// What must not happen at all.
    defects: Vec<String>,
}

impl Seen {
    fn begun(&self) -> u64 {
        let Endings { completed, interrupted, failed, timed_out, dropped, withdrawn: _ } = self.endings;
        completed + interrupted + failed + timed_out + dropped
    }

    /// Sorts the runs that were left without a sign, now that `ended` runs were told to be over.
    ///
    /// Telemetry is told of every run that began, whatever became of it, and knows nothing of the log. What the driver saw
    /// itself bounds what is believed of it: from the runs that it saw begin to those and all it left. `at_once`: no store
    /// is waited for, so that the first poll begins a run, and each of those that were left did begin.
    fn sort(&mut self, ended: u64, at_once: bool) {
        let sure = self.begun();
        let most = sure + self.left;
        let least = if at_once { most } else { sure };
        if !(least..=most).contains(&ended) {
            self.defects.push(format!("{ended} runs were told to be over, and {least} to {most} began"));
        }
        let begun = ended.clamp(least, most) - sure;
        self.endings.dropped += begun;
        self.endings.withdrawn += self.left - begun;
        self.left = 0;
    }

    fn absorb(&mut self, other: Self) {
        let (to, from) = (&mut self.endings, other.endings);
        to.completed += from.completed;
        to.interrupted += from.interrupted;
        to.failed += from.failed;
        to.timed_out += from.timed_out;
        to.dropped += from.dropped;
        self.left += other.left;
        self.known.extend(other.known);
        self.latencies.extend(other.latencies);
        self.defects.extend(other.defects);
    }
}

/// Runs the profile and reports.
///
/// # Errors
///
/// When the driver itself cannot go on; whatever a run ends with is counted.
pub async fn run(config: &Config, progress: &Progress) -> Result<(Report, Dump)> {
    let people = Arc::new(Population::new(config.users));
    let canaries = Arc::new(Canaries::mint(config.users, config.turns * CANARIES_PER_TURN, config.seed));
    let watch = Arc::new(Watch::new(canaries.clone()));
    let invoice = Arc::new(Invoice::new(config.users));
    let model = Arc::new(MeteredModel::new(people.clone(), canaries.clone(), watch.clone(), invoice.clone()));
    let doubles = Doubles {
        model: model.clone(),
        people: people.clone(),
        watch: watch.clone(),
        invoice,
        telemetry: Arc::new(TelemetryWitness::new(people.clone())),
        policy: Arc::new(PolicyCounts::default()),
        tool_calls: Arc::default(),
    };
    let system = system::full(config, &doubles).await?;
    let world = Arc::new(World {
        seed: config.seed,
        agent: system.agent.clone(),
        hurried: system.hurried.clone(),
        people,
        canaries,
        watch,
        exports: AtomicU64::new(0),
        forgets: AtomicU64::new(0),
        overspend: AtomicU64::new(0),
    });

    let meter = Arc::new(Meter::begin(config.users, system.audit_bytes.clone()));
    let mut seen = load(&world, config, &meter, progress).await?;
    let measured = meter.end();

    settle(&system).await?;
    seen.sort(doubles.telemetry.ended(), config.is_embedded());
    seen.latencies.sort_unstable();
    let latency = Latency::of(&seen.latencies);
    let mut report =
        Report::new(config.clone(), system.stores.clone(), seen.begun(), model.answered(), measured, latency);
    report.longest_prompt_messages = model.longest_prompt();
    report.endings = seen.endings;
    judge::judge(&mut report, &world, &system, &doubles, &model, &seen).await?;
    report.judge();
    system.leftovers.erase(config.users, |agent, tenant| Ok(world.people.enter(agent, tenant))).await?;
    Ok((report, system.dump))
}

/// Waits until everything that dropped runs left behind is settled and recorded.
async fn settle(system: &FullSystem) -> Result<()> {
    system.agent.settled().await?;
    system.hurried.settled().await
}

async fn load(world: &Arc<World>, config: &Config, meter: &Arc<Meter>, progress: &Progress) -> Result<Seen> {
    let _drawing = progress.draw();
    let mut workers = Vec::with_capacity(config.concurrency);
    for worker in 0..config.concurrency {
        let (world, meter, progress) = (world.clone(), meter.clone(), progress.clone());
        let (users, turns, step) = (config.users, config.turns, config.concurrency);
        workers.push(tokio::spawn(async move {
            let mut seen = Seen::default();
            for turn in 0..turns {
                for tenant in (worker..users).step_by(step) {
                    let plan = Plan::of(world.seed, tenant, turn);
                    turn::take(&world, tenant, turn, &plan, &mut seen).await?;
                    probe::after(&world, tenant, turn, &plan, &mut seen).await?;
                    if turn == 0 {
                        meter.user_created();
                    }
                    progress.tick();
                }
            }
            Ok::<_, Error>(seen)
        }));
    }
    let mut all = Seen::default();
    for worker in workers {
        let ended =
            worker.await.map_err(|e| Error::new(ErrorKind::Internal, format!("a worker died: {e}")))?;
        all.absorb(ended?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(ended: u64, at_once: bool) -> (u64, u64, bool) {
        let endings = Endings { completed: 5, dropped: 2, ..Endings::default() };
        let mut seen = Seen { endings, left: 3, ..Seen::default() };
        seen.sort(ended, at_once);
        (seen.begun(), seen.endings.withdrawn, seen.defects.is_empty())
    }

    #[test]
    fn what_is_told_of_runs_that_were_left_is_believed_within_what_was_seen() {
        for (ended, sound) in [(6, false), (7, true), (9, true), (10, true), (11, false)] {
            let begun = ended.clamp(7, 10);
            assert_eq!(sorted(ended, false), (begun, 10 - begun, sound), "{ended} over");
            assert_eq!(sorted(ended, true), (10, 0, ended == 10), "{ended} over, embedded");
        }
    }
}
