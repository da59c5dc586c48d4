//! Random sequences of every operation of a ledger, over users that are easy to mix up: a ledger and a naive oracle are
//! asked the same, and every answer is compared, refusals and warnings included.
//!
//! The oracle is lists that are added up from the beginning at every step. It shares no code with what it judges: not with
//! core's arithmetic, not with any ledger. Each sequence has namespaces of its own, so that a server can be shared.
//!
//! After every step: what is used and held stays within every cap (but for what was reported as excess), what ran out is
//! held no more, a window begins and ends at its border, and a cap warns once in it.

#![allow(clippy::unwrap_used, reason = "a ledger that fails where it must not is a failed test")]

mod compare;
mod ops;
mod oracle;
mod stores;
mod world;

use std::cell::Cell;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use self::ops::{Op, config, op};
pub use self::stores::{Leases, Manner, open};
use self::world::World;
use loomflow_core::BudgetConfig;

/// How much to try.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// A seed is always the same sequences.
    pub seed: u64,
    /// How many sequences at most.
    pub sequences: u32,
    /// No sequence is begun after so long.
    pub time: Duration,
    /// In process only: so many users are kept hot, and those that are idle for some time are evicted.
    pub hot_users: Option<usize>,
}

impl Options {
    /// So many sequences, however long they take.
    #[must_use]
    pub fn for_sequences(seed: u64, sequences: u32) -> Self {
        Self { seed, sequences, time: Duration::MAX, hot_users: None }
    }

    /// As many sequences as go into `time`.
    #[must_use]
    pub fn for_time(seed: u64, time: Duration) -> Self {
        Self { time, ..Self::for_sequences(seed, u32::MAX) }
    }

    /// Has the ledger keep so few users hot that it evicts all the time.
    #[must_use]
    pub fn with_hot_users(mut self, users: usize) -> Self {
        self.hot_users = Some(users);
        self
    }
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Sequences.
    pub sequences: u32,
    /// Operations in them, each with its comparisons.
    pub operations: u64,
}

const TIME_IS_OVER: &str = "the time is over";

/// Compares the ledger behind `url` with the oracle, and tells `progress` after each sequence.
///
/// # Errors
///
/// The first difference, with the shortest sequence that shows it.
///
/// # Panics
///
/// When no runtime can be started.
pub fn check(url: &str, options: &Options, progress: impl Fn(Report)) -> Result<Report, String> {
    let manner = stores::manner(url);
    let began = Instant::now();
    let report = Cell::new(Report::default());
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&options.seed.to_le_bytes());
    let settings = Config {
        cases: options.sequences,
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(settings, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let sequences = (config(), 1_u64..100, proptest::collection::vec(op(), 1..60));
    let runtime = (manner.leases == Leases::Wall).then(|| {
        let builder = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        builder.expect("a runtime can be started")
    });
    // A sequence that was begun and not ended showed a difference: what follows looks for a shorter one, and is given time.
    let (within, found) = (Cell::new(false), Cell::new(false));
    let outcome = runner.run(&sequences, |(config, idle, ops)| {
        found.set(found.get() || within.get());
        if !found.get() && began.elapsed() >= options.time {
            return Err(TestCaseError::fail(TIME_IS_OVER));
        }
        within.set(true);
        let count = ops.len() as u64;
        let config = match options.hot_users {
            Some(users) => config.max_users(users).user_idle_ttl(Duration::from_secs(idle)),
            // Estimates of evicted users are not kept.
            None => config.user_idle_ttl(None),
        };
        let sequence = run(url, manner, config, options.hot_users, ops);
        match &runtime {
            Some(runtime) => runtime.block_on(sequence),
            None => paused().block_on(sequence),
        }
        within.set(false);
        let Report { sequences, operations } = report.get();
        report.set(Report { sequences: sequences + 1, operations: operations + count });
        progress(report.get());
        Ok(())
    });
    match outcome {
        Ok(()) => Ok(report.get()),
        Err(TestError::Abort(why)) => Err(format!("seed {}: {why}", options.seed)),
        Err(TestError::Fail(why, _)) if why.message() == TIME_IS_OVER => Ok(report.get()),
        Err(TestError::Fail(why, (config, idle, ops))) => Err(format!(
            "seed {}: {why}\nthe shortest sequence that shows it, on {config:?} (idle {idle}):\n{ops:#?}",
            options.seed
        )),
    }
}

/// A runtime whose monotonic clock stands until it is moved.
fn paused() -> tokio::runtime::Runtime {
    let builder = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    builder.expect("a runtime can be started")
}

async fn run(url: &str, manner: Manner, config: BudgetConfig, hot_users: Option<usize>, ops: Vec<Op>) {
    let mut world = World::begin(url, manner, config, hot_users).await;
    // Both look at the clock before anybody sets it.
    world.compare(true).await;
    for op in ops {
        world.step(op).await;
    }
    world.end().await;
}
