//! The driver's command line, and what it resolves to.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::Serialize;

use crate::backends::Backend;

/// Many tenants on one shared agent: throughput, latency, memory, and proof that nobody sees, spends or loses what is
/// somebody else's. Exits 1 on any violation, mismatch or regression, 2 on a mistake in the command line.
#[derive(Clone, Debug, Parser)]
#[command(name = "tenants", version)]
#[non_exhaustive]
pub struct Args {
    /// Tenants (500; 200 with --smoke)
    #[arg(long)]
    pub users: Option<usize>,
    /// Runs of each tenant, one after the other (5)
    #[arg(long)]
    pub turns: Option<usize>,
    /// Tenants in flight at once: `all` or a number (`all` for full, 64 for the others)
    #[arg(long)]
    pub concurrency: Option<Concurrency>,
    /// Worker threads; 1 is a single-threaded runtime (all cores for full, 2 with --smoke, 1 for the others)
    #[arg(long)]
    pub threads: Option<usize>,
    /// The memory under test: `inmemory`, `sqlite:PATH`, `postgres://..`, `redis://..` or `qdrant:http://..`
    #[arg(long, value_name = "URL", default_value = "inmemory", value_parser = Backend::parse)]
    pub memory: Backend,
    /// The ledger under test: `inmemory`, `sqlite:PATH`, `postgres://..` or `redis://..`
    #[arg(long, value_name = "URL", default_value = "inmemory", value_parser = Backend::parse)]
    pub ledger: Backend,
    /// The audit log under test: `inmemory`
    #[arg(long, value_name = "URL", default_value = "inmemory")]
    pub audit: String,
    /// The runtime under test: `inproc`
    #[arg(long, value_name = "URL", default_value = "inproc")]
    pub runtime: String,
    /// What each run does
    #[arg(long, value_enum, default_value_t = Profile::Full)]
    pub profile: Profile,
    /// Makes the same choices again
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// No progress bar and no table
    #[arg(long)]
    pub quiet: bool,
    /// Writes the report as JSON; /dev/stdout works
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the report as one self-contained page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Compares with an older report; a regression exits 1
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// The short variant for continuous integration
    #[arg(long)]
    pub smoke: bool,
    /// Breaks the system under test on purpose; the driver must notice
    #[arg(long, value_enum)]
    pub fault: Option<Fault>,
    /// Leaves the report and a dump of the audit log in DIR, and the rows in the stores
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

/// What each run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "the command line names all of them")]
pub enum Profile {
    /// One model call with session history and nothing else.
    Bare,
    /// One model call with history, recall, ledger and audit: the peers' work.
    Text,
    /// A model call, one tool, a second model call, with the same parts: the peers' work.
    Tool,
    /// Everything at once, with hostile names, faults and probes.
    Full,
}

/// How the system under test is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "the command line names all of them")]
pub enum Fault {
    /// The memory sometimes returns another tenant's rows, labelled as the asker's own.
    Leak,
    /// The ledger sometimes charges twice.
    DoubleCharge,
    /// The audit log sometimes acknowledges an entry and drops it.
    LostAudit,
}

/// How many tenants are in flight at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the command line names all of them")]
pub enum Concurrency {
    /// Every tenant.
    All,
    /// So many.
    Of(usize),
}

impl std::str::FromStr for Concurrency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            _ => match text.parse() {
                Ok(n) if n > 0 => Ok(Self::Of(n)),
                _ => Err("use `all` or a number above zero".to_owned()),
            },
        }
    }
}

/// What a run of the driver does, every default filled in. Part of the report, so that reports can be compared.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Config {
    /// What each run does.
    pub profile: Profile,
    /// Tenants.
    pub users: usize,
    /// Runs of each tenant.
    pub turns: usize,
    /// Tenants in flight at once.
    pub concurrency: usize,
    /// Worker threads.
    pub threads: usize,
    /// The seed of every choice.
    pub seed: u64,
    /// Whether this is the short variant.
    pub smoke: bool,
    /// What is broken on purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Whether progress is hidden.
    #[serde(skip)]
    pub quiet: bool,
    /// The memory under test. The report names it under `stores`.
    #[serde(skip)]
    pub memory: Backend,
    /// The ledger under test.
    #[serde(skip)]
    pub ledger: Backend,
    /// Whether rows stay in the stores under test.
    #[serde(skip)]
    pub keep: bool,
}

const USERS: usize = 500;
const SMOKE_USERS: usize = 200;
const SMOKE_THREADS: usize = 2;
const TURNS: usize = 5;
const IN_FLIGHT: usize = 64;

impl Args {
    /// The configuration, with defaults that depend on profile and machine.
    ///
    /// # Errors
    ///
    /// What is wrong with the flags, naming what would be right.
    pub fn resolve(&self) -> Result<Config, String> {
        only("audit", &self.audit, "inmemory")?;
        only("runtime", &self.runtime, "inproc")?;
        if self.fault.is_some() && !cfg!(feature = "fault-injection") {
            return Err(
                "--fault needs a driver that was built for it: add `--features fault-injection`, or use \
                        `cargo xtask bench-tenants --fault ...`, which does"
                    .to_owned(),
            );
        }
        if self.fault.is_some() && self.profile != Profile::Full {
            return Err(
                "--fault needs the profile full: the others do not look for what it breaks".to_owned()
            );
        }
        let full = self.profile == Profile::Full;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let users = self.users.unwrap_or(if self.smoke { SMOKE_USERS } else { USERS });
        let turns = self.turns.unwrap_or(TURNS);
        let threads = self.threads.unwrap_or(match (full, self.smoke) {
            (false, _) => 1,
            // The same on every machine, so that a baseline can be compared.
            (true, true) => SMOKE_THREADS,
            (true, false) => cores,
        });
        if users == 0 || turns == 0 || threads == 0 {
            return Err("--users, --turns and --threads must be at least 1".to_owned());
        }
        if users > 1_000_000 || turns > 1_000 {
            return Err("at most 1,000,000 users and 1,000 turns".to_owned());
        }
        let default = if full { Concurrency::All } else { Concurrency::Of(IN_FLIGHT) };
        let concurrency = match self.concurrency.unwrap_or(default) {
            Concurrency::All => users,
            Concurrency::Of(n) => n.min(users),
        };
        Ok(Config {
            profile: self.profile,
            users,
            turns,
            concurrency,
            threads,
            seed: self.seed,
            smoke: self.smoke,
            fault: self.fault,
            quiet: self.quiet,
            memory: self.memory.clone(),
            ledger: self.ledger.clone(),
            keep: self.keep.is_some(),
        })
    }
}

impl Config {
    /// How many users a store in this process has room for: every tenant, and some that only look.
    #[must_use]
    pub fn room(&self) -> usize {
        self.users.saturating_mul(2).max(16)
    }

    /// Whether everything is in this process.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        matches!((&self.memory, &self.ledger), (Backend::Embedded, Backend::Embedded))
    }
}

fn only(flag: &str, given: &str, supported: &str) -> Result<(), String> {
    if given == supported {
        return Ok(());
    }
    // The value may hold a password, so it is not repeated.
    Err(format!("--{flag}: this build of the driver supports `{supported}` and nothing else"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(args: &[&str]) -> Result<Config, String> {
        Args::try_parse_from([&["tenants"], args].concat()).map_err(|e| e.to_string())?.resolve()
    }

    #[test]
    fn defaults_depend_on_the_profile() {
        let full = resolve(&[]).unwrap();
        assert_eq!((full.users, full.turns, full.concurrency), (500, 5, 500));
        let text = resolve(&["--profile", "text"]).unwrap();
        assert_eq!((text.concurrency, text.threads), (64, 1));
        let smoke = resolve(&["--smoke"]).unwrap();
        assert_eq!((smoke.users, smoke.threads), (200, 2));
        assert_eq!(resolve(&["--users", "7", "--concurrency", "all"]).unwrap().concurrency, 7);
    }

    #[test]
    fn other_stores_are_refused_without_repeating_the_url() {
        for flag in ["--audit", "--runtime"] {
            let error = resolve(&[flag, "postgres://u:hunter2@h/d"]).unwrap_err();
            assert!(
                error.contains(&flag[2..]) && error.contains("in") && !error.contains("hunter2"),
                "{error}"
            );
        }
        for bad in
            [&["--users", "0"][..], &["--concurrency", "0"], &["--concurrency", "some"], &["--turns", "0"]]
        {
            assert!(resolve(bad).is_err(), "{bad:?}");
        }
    }

    #[cfg(not(feature = "fault-injection"))]
    #[test]
    fn a_fault_without_its_feature_says_how_to_get_it() {
        assert!(resolve(&["--fault", "leak"]).unwrap_err().contains("--features fault-injection"));
    }
}
