//! Chaos: real processes on one ledger or store, killed, cut off and set back in time, and a judgement of what is left.
//!
//! `cargo xtask chaos` runs it; `docs/testing.md` says what is claimed and how it is checked.

mod children;
#[cfg(feature = "fault-injection")]
mod fault;
mod judge;
mod memory;
mod provider;
mod report;
mod roles;
mod round;
mod sampler;
mod stores;
mod wire;
mod witness;
mod worker;

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

#[cfg(feature = "fault-injection")]
pub use fault::Fault;
pub use judge::Verdict;
pub use memory::{Memory, memory};
pub use report::{Report, table};
pub use roles::{provider, worker};
pub use stores::Kind;

use round::Round;
use stores::Place;

/// How much chaos to make.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// How long things go wrong, for each store.
    pub seconds: u64,
    /// Which things.
    pub seed: u64,
    /// Worker processes at a time.
    pub processes: u64,
    /// Turns at once in each of them.
    pub turns: u64,
    /// The longest lease: what is waited for at the end of each round.
    pub lease: Duration,
    /// What is broken on purpose.
    pub fault: Option<String>,
}

impl Options {
    /// Chaos with so many processes, with so many turns at once in each.
    #[must_use]
    pub fn new(processes: u64, turns: u64) -> Self {
        // As long as it takes until everybody is there, on a slow machine.
        let lease = Duration::from_secs(4 + processes * turns / 400);
        Self { seconds: 10, seed: 1, processes, turns, lease, fault: None }
    }

    /// Sets how long things go wrong.
    #[must_use]
    pub fn with_seconds(mut self, seconds: u64) -> Self {
        self.seconds = seconds;
        self
    }

    /// Sets which things.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the longest lease. Half of it is what is waited for at most until all turns are there at once.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Breaks something on purpose.
    #[must_use]
    pub fn with_fault(mut self, fault: Option<String>) -> Self {
        self.fault = fault;
        self
    }
}

/// Why a run could not be made.
#[derive(Debug)]
pub struct Failed(String);

impl Failed {
    /// This is why.
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<loomflow_core::Error> for Failed {
    fn from(error: loomflow_core::Error) -> Self {
        Self(format!("{error:?}"))
    }
}

/// Makes chaos with a ledger, round after round until the time is over. `program` is the binary `chaos`, which the other
/// processes are made of; `say` is told all the time how it goes.
///
/// # Errors
///
/// When it could not be made, which is no finding about the ledger.
///
/// # Panics
///
/// When a server that is needed cannot be started.
pub async fn ledger(
    kind: Kind,
    program: &Path,
    options: &Options,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Report, Failed> {
    let scratch = Scratch::new()?;
    let mut place = Place::start(kind, &scratch.0).await?;
    let began = Instant::now();
    let mut active = Duration::from_secs(options.seconds);
    let mut report = Report { store: format!("ledger:{kind}"), seed: options.seed, ..Report::default() };
    while report.rounds == 0 || active > Duration::from_secs(1) {
        let dir = scratch.0.join(format!("round-{}", report.rounds));
        std::fs::create_dir(&dir)?;
        let seed = options.seed.wrapping_add(report.rounds);
        let round = Instant::now();
        let played = Round { program, options, place: &mut place, dir, seed, active, say }.play().await?;
        report.add(played);
        active = active.saturating_sub(round.elapsed());
    }
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

/// A directory that is gone at the end.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> std::io::Result<Self> {
        let dir = std::env::temp_dir().join(format!("loomflow-chaos-{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A file that is left behind is no reason to fail.
        let _left = std::fs::remove_dir_all(&self.0);
    }
}
