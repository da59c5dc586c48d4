//! Random histories of every operation of memory, over tenants that are easy to mix up: a store and a naive oracle are
//! asked the same, and every answer is compared, its order and its scores included.
//!
//! The oracle is plain vectors and the formulas as they are written. It shares no code with what it judges: not with
//! core's rules, not with any backend. Each case has namespaces of its own, so that a server can be shared; the case is
//! erased when it is over, and that is compared as well.

mod compare;
mod history;
mod oracle;
mod ranking;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use loomflow_core::MemoryStore;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio::runtime::Runtime;

use self::history::History;

/// How long a failing history may be shortened.
const SHRINK: Duration = Duration::from_secs(60);

/// How much to try.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Case `n` of a seed is always the same history.
    pub seed: u64,
    /// The first case: what a failure names, to see it again at once.
    pub first_case: u64,
    /// No new case begins after so many operations.
    pub operations: u64,
    /// No new case begins after so long.
    pub time: Duration,
    /// How many episodes the store keeps of a user.
    pub max_episodes: usize,
}

impl Options {
    /// As many operations as go into `time`.
    #[must_use]
    pub fn for_time(seed: u64, time: Duration) -> Self {
        Self { seed, first_case: 0, operations: u64::MAX, time, max_episodes: usize::MAX }
    }

    /// At least so many operations, however long they take.
    #[must_use]
    pub fn for_operations(seed: u64, operations: u64) -> Self {
        Self { operations, ..Self::for_time(seed, Duration::MAX) }
    }

    /// Begins at this case.
    #[must_use]
    pub fn with_first_case(mut self, case: u64) -> Self {
        self.first_case = case;
        self
    }

    /// Says how many episodes the store keeps of a user.
    #[must_use]
    pub fn with_max_episodes(mut self, episodes: usize) -> Self {
        self.max_episodes = episodes;
        self
    }
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Histories.
    pub cases: u64,
    /// Operations in them, each with its comparisons.
    pub operations: u64,
}

/// A history whose answers differ from the oracle's, as short as it could be made.
#[non_exhaustive]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Which case of the seed.
    pub case: u64,
    /// What was different.
    pub why: String,
    history: History,
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, case {}: {}", self.seed, self.case, self.why)?;
        write!(f, "the shortest history that shows it:\n{:?}", self.history)
    }
}

/// Compares `store` with the oracle, and tells `progress` after each case.
///
/// # Errors
///
/// The first difference, after its history was made as short as it goes.
pub fn check(
    runtime: &Runtime,
    store: &Arc<dyn MemoryStore>,
    options: &Options,
    mut progress: impl FnMut(Report),
) -> Result<Report, Box<Failure>> {
    let began = Instant::now();
    let mut report = Report::default();
    let run = |history: &History| runtime.block_on(compare::run(&**store, history, options.max_episodes));
    for case in options.first_case.. {
        let mut tree = history::histories()
            .new_tree(&mut draws(options.seed, case))
            .expect("nothing is filtered out, so a history can be drawn");
        let history = tree.current();
        if let Err(why) = run(&history) {
            let (history, why) = shrink(&mut tree, (history, why), run);
            return Err(Box::new(Failure { seed: options.seed, case, why, history }));
        }
        report.cases += 1;
        report.operations += history.operations();
        progress(report);
        if report.operations >= options.operations || began.elapsed() >= options.time {
            break;
        }
    }
    Ok(report)
}

/// The choices of one case.
fn draws(seed: u64, case: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&case.to_le_bytes());
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn shrink(
    tree: &mut impl ValueTree<Value = History>,
    found: (History, String),
    run: impl Fn(&History) -> Result<(), String>,
) -> (History, String) {
    let began = Instant::now();
    let mut shortest = found;
    let mut more = tree.simplify();
    while more && began.elapsed() < SHRINK {
        let history = tree.current();
        more = match run(&history) {
            Err(why) => {
                shortest = (history, why);
                tree.simplify()
            }
            Ok(()) => tree.complicate(),
        };
    }
    shortest
}
