//! The report: what the driver hands on, in the shape that readers of reports rely on.

use serde::Serialize;

use crate::config::Config;
use crate::machine::Machine;
use crate::meter::Measured;
use crate::stats::{Fit, Latency, Sample};
use crate::system::Stores;

/// A report. `schema` changes when a field changes its meaning; new fields may come at any time.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The version of this shape: 1.
    pub schema: u32,
    /// What was asked for, defaults filled in.
    pub config: Config,
    /// Where it ran.
    pub machine: Machine,
    /// Runs that began in the timed part.
    pub runs: u64,
    /// Model calls that were answered in full.
    pub turns: u64,
    /// Wall-clock time of the timed part, in seconds.
    pub wall_s: f64,
    /// Runs over wall-clock time.
    pub runs_per_s: f64,
    /// How long runs took that were waited for to their end.
    pub latency_us: Latency,
    /// User and system time of the whole process in the timed part, over runs.
    pub cpu_us_per_run: f64,
    /// Resident memory.
    pub rss_bytes: Rss,
    /// Resident memory against tenants.
    pub rss_fit: Fit,
    /// What the isolation probes found.
    pub isolation: Isolation,
    /// The provider's invoice against the ledger.
    pub budget: Budget,
    /// The log against what was observed.
    pub audit: Audit,
    /// How runs ended, as their callers saw it.
    pub endings: Endings,
    /// The stores under test.
    pub stores: Stores,
    /// The most messages a model call got.
    pub longest_prompt_messages: u64,
    /// Everything that makes this run a failure, in words. Empty when all is well.
    pub failures: Vec<String>,
    /// The memory samples behind the fit.
    pub rss_samples: Vec<Sample>,
}

/// Resident memory, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Rss {
    /// Before the timed part.
    pub before: u64,
    /// After it.
    pub after: u64,
    /// The difference over tenants, the audit log left out: a log grows with runs, not with tenants.
    pub per_user: u64,
    /// What the audit log took, by its own account.
    pub audit: u64,
}

/// What the isolation probes found.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Isolation {
    /// Pieces of data that tenants received and that were searched.
    pub probes: u64,
    /// Pieces that held something of somebody else's, and reads that the tripwire had to withhold.
    pub violations: u64,
    /// Canaries that were put into the system.
    pub canaries_planted: u64,
    /// Canaries that reached a tenant who had not planted them.
    pub canaries_seen_by_others: u64,
    /// Canaries that reached the tenant who had planted them: shows that the probes can see.
    pub canaries_seen_by_owner: u64,
    /// Bytes searched.
    pub bytes: u64,
    /// The same by the way the data took.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<ChannelReport>,
}

/// One way on which tenants receive data.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct ChannelReport {
    /// Its name.
    pub channel: &'static str,
    /// Pieces searched.
    pub probes: u64,
    /// Sightings of own canaries.
    pub own: u64,
    /// Sightings of others' canaries.
    pub foreign: u64,
}

impl ChannelReport {
    /// What was seen on `channel`.
    #[must_use]
    pub fn new(channel: &'static str, probes: u64, own: u64, foreign: u64) -> Self {
        Self { channel, probes, own, foreign }
    }
}

/// The provider's invoice against the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Budget {
    /// What the provider billed to all tenants.
    pub invoiced_tokens: u64,
    /// What the ledger charged to all tenants.
    pub ledger_tokens: u64,
    /// Tenants whose two figures differ.
    pub mismatches: u64,
    /// Tokens used beyond caps, over all tenants.
    pub overspend_tokens: u64,
    /// Holds left open after everything was settled.
    pub phantom_holds: u64,
    /// Tenants who ran into their cap.
    pub exhausted_users: u64,
}

/// The log against what was observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Audit {
    /// Entries in the log.
    pub entries: u64,
    /// Entries there must be, from what the driver saw with its own eyes.
    pub expected: u64,
    /// Whether the chain of MACs is whole.
    pub verified: bool,
    /// Rules that single runs broke: no beginning, no end or two, an intent without a result.
    pub problems: u64,
}

/// How runs ended, as their callers saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Endings {
    /// With an answer.
    pub completed: u64,
    /// By a limit, refusals before the first call among them.
    pub interrupted: u64,
    /// With an error.
    pub failed: u64,
    /// By their deadline.
    pub timed_out: u64,
    /// Dropped by the driver in the middle.
    pub dropped: u64,
    /// Dropped by the driver before they had begun: no runs, and nothing may be left of them.
    pub withdrawn: u64,
}

impl Report {
    /// The figures of a measurement; what the judges find is filled in afterwards.
    #[must_use]
    pub fn new(
        config: Config,
        stores: Stores,
        runs: u64,
        turns: u64,
        measured: Measured,
        latency: Latency,
    ) -> Self {
        let wall_s = measured.wall.as_secs_f64();
        let per_run = |seconds: f64| if runs == 0 { 0.0 } else { seconds / runs as f64 };
        let grown = measured.rss_after.saturating_sub(measured.rss_before);
        Self {
            schema: 1,
            machine: Machine::here(),
            runs,
            turns,
            wall_s,
            runs_per_s: if wall_s > 0.0 { runs as f64 / wall_s } else { 0.0 },
            latency_us: latency,
            cpu_us_per_run: per_run(measured.cpu_s * 1e6),
            rss_bytes: Rss {
                before: measured.rss_before,
                after: measured.rss_after,
                per_user: grown.saturating_sub(measured.audit_bytes) / config.users as u64,
                audit: measured.audit_bytes,
            },
            rss_fit: Fit::through(&measured.samples),
            isolation: Isolation::default(),
            budget: Budget::default(),
            audit: Audit::default(),
            endings: Endings::default(),
            stores,
            longest_prompt_messages: 0,
            failures: Vec::new(),
            rss_samples: measured.samples,
            config,
        }
    }

    /// Turns figures that must not be into failures. Whoever fills in figures calls this last.
    pub fn judge(&mut self) {
        let (isolation, budget, audit) = (&self.isolation, &self.budget, &self.audit);
        let mut failures = Vec::new();
        let mut check = |bad: bool, why: String| {
            if bad {
                failures.push(why);
            }
        };
        check(isolation.violations > 0, format!("{} isolation violations", isolation.violations));
        check(
            isolation.canaries_seen_by_others > 0,
            format!("{} canaries seen by others", isolation.canaries_seen_by_others),
        );
        check(
            budget.mismatches > 0 || budget.invoiced_tokens != budget.ledger_tokens,
            format!(
                "the ledger differs from the invoice for {} tenants ({} invoiced, {} charged)",
                budget.mismatches, budget.invoiced_tokens, budget.ledger_tokens
            ),
        );
        check(budget.overspend_tokens > 0, format!("{} tokens beyond caps", budget.overspend_tokens));
        check(budget.phantom_holds > 0, format!("{} holds left open", budget.phantom_holds));
        check(
            audit.entries != audit.expected,
            format!("the audit log has {} entries and must have {}", audit.entries, audit.expected),
        );
        check(!audit.verified, "the audit log does not verify".to_owned());
        check(audit.problems > 0, format!("{} runs are not recorded as they must be", audit.problems));
        self.failures.extend(failures);
    }
}
