//! What a run of chaos came to, as a table and as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::judge::Verdict;
use super::provider::Seen;
use super::sampler::Samples;
use super::worker::Progress;
use crate::killing::Toll;

/// What happened, counted while it did.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) processes: u64,
    pub(super) kills: u64,
    pub(super) restarts: u64,
    pub(super) cuts: u64,
    pub(super) clock_jumps: u64,
    progress: Progress,
    concurrent: u64,
}

impl Tally {
    /// Adds what a worker has done, as it last said.
    pub(super) fn worker(&mut self, progress: &Progress) {
        let sum = &mut self.progress;
        sum.completed += progress.completed;
        sum.left += progress.left;
        sum.refused += progress.refused;
        for (kind, count) in &progress.failed {
            *sum.failed.entry(kind.clone()).or_default() += count;
        }
        if sum.example.is_none() {
            sum.example.clone_from(&progress.example);
        }
    }

    pub(super) fn seen(&mut self, seen: Seen) {
        self.concurrent = self.concurrent.max(seen.most);
    }
}

/// What came of one store.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The store.
    pub store: String,
    /// How long things went wrong, and were judged.
    pub seconds: f64,
    /// The seed of the first round.
    pub seed: u64,
    /// Rounds, each with a namespace and a cap of its own.
    pub rounds: u64,
    /// Processes that worked.
    pub processes: u64,
    /// Of these, killed with SIGKILL while they worked.
    pub kills: u64,
    /// How often the server was killed and started again.
    pub restarts: u64,
    /// How often connections to it were cut.
    pub cuts: u64,
    /// How often a worker's clock was turned by an hour.
    pub clock_jumps: u64,
    /// Turns of agents that ended; what a killed process had not told is missing.
    pub turns: u64,
    /// The most calls that the provider had in flight at once.
    pub concurrent: u64,
    /// Turns that a cap refused.
    pub refused: u64,
    /// Turns that failed, by kind.
    pub failed: BTreeMap<String, u64>,
    /// Looks at the ledger while it was used.
    pub looks: u64,
    /// Of these, how many saw more used and held than the cap, and rounds with an invoice above it.
    pub overspend: u64,
    /// Holds that nobody held any more when all leases had ended.
    pub phantom_holds: u64,
    /// The sum of the rounds' caps, in tokens.
    pub cap_tokens: u64,
    /// Writes to a memory that were acknowledged.
    pub acknowledged: u64,
    /// What the three accounts came to.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl Report {
    pub(super) fn of_round(
        tally: Tally,
        samples: Samples,
        mut verdict: Verdict,
        phantom_holds: u64,
        over_cap: bool,
        cap_tokens: u64,
    ) -> Self {
        verdict.told.extend(samples.example);
        if over_cap {
            verdict.told.push("the invoice is above the cap".to_owned());
        }
        if phantom_holds > 0 {
            verdict.told.push(format!("{phantom_holds} holds are there after the end of every lease"));
        }
        let Progress { refused, failed, example, .. } = tally.progress.clone();
        verdict.told.extend(example.map(|why| format!("(a turn failed, which may be: {why})")));
        Self {
            rounds: 1,
            processes: tally.processes,
            kills: tally.kills,
            restarts: tally.restarts,
            cuts: tally.cuts,
            clock_jumps: tally.clock_jumps,
            turns: tally.progress.turns(),
            concurrent: tally.concurrent,
            refused,
            failed,
            looks: samples.looks,
            overspend: samples.overspend + u64::from(over_cap),
            phantom_holds,
            cap_tokens,
            verdict,
            ..Self::default()
        }
    }

    /// Adds a round.
    pub(super) fn add(&mut self, round: Self) {
        self.rounds += round.rounds;
        self.processes += round.processes;
        self.kills += round.kills;
        self.restarts += round.restarts;
        self.cuts += round.cuts;
        self.clock_jumps += round.clock_jumps;
        self.turns += round.turns;
        self.concurrent = self.concurrent.max(round.concurrent);
        self.refused += round.refused;
        for (kind, count) in round.failed {
            *self.failed.entry(kind).or_default() += count;
        }
        self.looks += round.looks;
        self.overspend += round.overspend;
        self.phantom_holds += round.phantom_holds;
        self.cap_tokens += round.cap_tokens;
        self.acknowledged += round.acknowledged;
        self.verdict.add(round.verdict);
    }

    /// What came of a memory.
    pub(super) fn memory(&mut self, toll: Toll) {
        self.rounds = toll.kills;
        // The one that looks, and one for each kill.
        self.processes = toll.kills + 1;
        self.kills = toll.kills;
        self.restarts = toll.restarts;
        self.acknowledged = toll.acknowledged;
        self.verdict.lost = toll.lost;
        self.verdict.doubled = toll.doubled;
        self.verdict.told.extend(toll.example);
    }

    /// How much was found that must not be.
    pub fn findings(&self) -> u64 {
        self.overspend + self.phantom_holds + self.verdict.findings()
    }
}

/// All reports side by side.
pub fn table(reports: &[Report]) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: &dyn Fn(&Report) -> String| {
        text.push_str(&format!("{name:<22}"));
        for report in reports {
            text.push_str(&format!(" {:>18}", value(report)));
        }
        text.push('\n');
    };
    row("", &|r| r.store.clone());
    row("seconds", &|r| format!("{:.1}", r.seconds));
    type Count = fn(&Report) -> u64;
    let counts: [(&str, Count); 26] = [
        ("rounds", |r| r.rounds),
        ("processes", |r| r.processes),
        ("kills", |r| r.kills),
        ("server restarts", |r| r.restarts),
        ("cuts", |r| r.cuts),
        ("clock jumps", |r| r.clock_jumps),
        ("turns", |r| r.turns),
        ("calls at once", |r| r.concurrent),
        ("turns refused", |r| r.refused),
        ("turns failed", |r| r.failed.values().sum()),
        ("looks", |r| r.looks),
        ("calls billed", |r| r.verdict.billed_calls),
        ("calls estimated", |r| r.verdict.estimated_calls),
        ("of these, orphaned", |r| r.verdict.orphaned_calls),
        ("closes that failed", |r| r.verdict.failed_closes),
        ("cap, tokens", |r| r.cap_tokens),
        ("ledger, tokens", |r| r.verdict.ledger_tokens),
        ("invoice, tokens", |r| r.verdict.invoiced_tokens),
        ("reconciled, tokens", |r| r.verdict.reconciled_tokens),
        ("writes acknowledged", |r| r.acknowledged),
        ("OVERSPEND", |r| r.overspend),
        ("PHANTOM HOLDS", |r| r.phantom_holds),
        ("LOST", |r| r.verdict.lost),
        ("DOUBLED", |r| r.verdict.doubled),
        ("LIVE MISMATCHES", |r| r.verdict.live_mismatches),
        ("UNRECONCILED etc.", |r| r.verdict.unreconciled + r.verdict.undercharged + r.verdict.unlisted),
    ];
    for (name, count) in counts {
        row(name, &|report| count(report).to_string());
    }
    text
}
