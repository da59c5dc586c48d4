//! A process full of turns: a real agent, thousands of runs of it at once, on a ledger that other processes use, too.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use loomflow_core::{
    Agent, Clock, EventKind, Ledger, Namespace, Result, RetryPolicy, SystemClock, Timestamp, UserId,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use super::provider::HALT;
use super::wire::WireModel;
use super::witness::{Note, Witness};

/// The most words of an input.
const MOST_WORDS: u64 = 12;
const INSTRUCTIONS: &str = "Answer in few words.";
/// The most words of a reply that are asked for.
const MOST_OUTPUT: u64 = 12;
/// The most that one call can hold: instructions, input, reply.
pub(super) const MOST_HELD: u64 = 4 + MOST_WORDS + MOST_OUTPUT;
/// After so many refusals in a row somebody takes the cap for used up.
const GIVE_UP: u32 = 8;
/// No run ends because the machine is slow.
const RUN_TIMEOUT: Duration = Duration::from_secs(3_600);

/// What a worker is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "made by the round beside it")]
pub(super) struct Job {
    /// The namespace, whose cap all turns share.
    pub(super) namespace: String,
    /// Where the provider is.
    pub(super) provider: String,
    /// Between how many users the turns go round.
    pub(super) users: u64,
    /// Turns at once.
    pub(super) turns: u64,
    /// Which choices.
    pub(super) seed: u64,
    /// The longest lease.
    pub(super) lease: Duration,
    /// Where the witness writes.
    pub(super) notes: PathBuf,
    /// What is broken on purpose.
    pub(super) fault: Option<String>,
}

/// What a worker has done so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "read by the round beside it")]
pub(super) struct Progress {
    /// Turns that ended with a reply.
    pub(super) completed: u64,
    /// Turns whose user went away in the middle.
    pub(super) left: u64,
    /// Turns that a cap refused.
    pub(super) refused: u64,
    /// Turns that failed, by kind of error.
    pub(super) failed: BTreeMap<String, u64>,
    /// One such error in words.
    pub(super) example: Option<String>,
    /// Whether everything is settled and over.
    pub(super) ended: bool,
}

impl Progress {
    /// All turns together.
    pub(super) fn turns(&self) -> u64 {
        self.completed + self.left + self.refused + self.failed.values().sum::<u64>()
    }
}

/// The machine's clock, and how far somebody turned it.
#[derive(Debug, Default)]
pub(super) struct TurnedClock(AtomicI64);

impl TurnedClock {
    /// Turns it to `seconds` beside the right time.
    pub(super) fn turn_to(&self, seconds: i64) {
        self.0.store(seconds.saturating_mul(1_000_000), Ordering::SeqCst);
    }
}

impl Clock for TurnedClock {
    fn now(&self) -> Timestamp {
        let right = SystemClock.now().as_micros();
        Timestamp::from_micros(right.saturating_add(self.0.load(Ordering::SeqCst)))
    }
}

/// What steers a worker from outside.
#[derive(Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "shared by those who steer and the steered")]
pub(super) struct Strings {
    /// No further turn begins.
    pub(super) stop: AtomicBool,
    /// The worker's clock.
    pub(super) clock: Arc<TurnedClock>,
    /// What it has done.
    pub(super) progress: Mutex<Progress>,
}

/// Does a job until its cap is used up or it is told to stop, and settles everything before it returns.
///
/// # Errors
///
/// When the provider is not there, or an agent cannot be built.
pub(super) async fn work(job: Job, ledger: Arc<dyn Ledger>, strings: Arc<Strings>) -> Result<()> {
    let internal = |e: std::io::Error| {
        loomflow_core::Error::new(loomflow_core::ErrorKind::Internal, "a worker cannot begin").with_source(e)
    };
    let model = WireModel::connect(&job.provider).await.map_err(internal)?;
    let (budget, witness) = before(&job, ledger).map_err(internal)?;
    let agent = Agent::builder(INSTRUCTIONS)
        .model(model)
        .namespace(Namespace::new(&job.namespace)?)
        .budget(budget)
        .clock(strings.clock.clone() as Arc<dyn Clock>)
        .max_output_tokens(MOST_OUTPUT)
        .run_timeout(RUN_TIMEOUT)
        .retry(RetryPolicy::new(3, Duration::from_millis(20), Duration::from_millis(200)))
        .build()?;
    let users: Vec<UserId> = (0..job.users).map(user).collect::<Result<_>>()?;
    let users: Arc<[UserId]> = users.into();
    let mut turns = tokio::task::JoinSet::new();
    for place in 0..job.turns {
        let (agent, users, strings) = (agent.clone(), users.clone(), strings.clone());
        let luck = StdRng::seed_from_u64(job.seed.wrapping_add(place));
        turns.spawn(async move { take_turns(&agent, &users, place, luck, &strings).await });
    }
    while turns.join_next().await.is_some() {}
    agent.shutdown().await?;
    witness.note(&Note::End)?;
    strings.progress.lock().ended = true;
    Ok(())
}

/// User number `n`.
///
/// # Errors
///
/// Never: it is a good name.
pub(super) fn user(n: u64) -> Result<UserId> {
    UserId::new(format!("user-{n}"))
}

/// What the agent is given instead of the ledger itself.
fn before(job: &Job, ledger: Arc<dyn Ledger>) -> std::io::Result<(Arc<dyn Ledger>, Arc<Witness>)> {
    let see = |ledger| Witness::new(ledger, &job.notes, job.lease).map(Arc::new);
    #[cfg(feature = "fault-injection")]
    if let Some(fault) = &job.fault {
        use super::fault::{Broken, Fault};
        let fault: Fault = fault.parse().map_err(std::io::Error::other)?;
        return Ok(if fault == Fault::EndlessLease {
            let witness = see(Arc::new(Broken::new(ledger, fault)))?;
            (witness.clone(), witness)
        } else {
            let witness = see(ledger)?;
            (Arc::new(Broken::new(witness.clone(), fault)), witness)
        });
    }
    if job.fault.is_some() {
        return Err(std::io::Error::other("this program was built without the feature `fault-injection`"));
    }
    let witness = see(ledger)?;
    Ok((witness.clone(), witness))
}

async fn take_turns(agent: &Agent, users: &[UserId], place: u64, mut luck: StdRng, strings: &Strings) {
    let mut refused = 0;
    let mut number = place;
    while !strings.stop.load(Ordering::SeqCst) && refused < GIVE_UP {
        let user = &users[(number % users.len() as u64) as usize];
        let words = luck.random_range(1..=MOST_WORDS);
        let input = (0..words).map(|n| format!("w{n}")).collect::<Vec<_>>().join(" ");
        let ended = turn(agent, user, input).await;
        let wait = {
            let mut progress = strings.progress.lock();
            match ended {
                Ended::Completed => progress.completed += 1,
                Ended::Left => progress.left += 1,
                Ended::Refused => progress.refused += 1,
                Ended::Failed(kind, ref why) => {
                    *progress.failed.entry(kind.to_owned()).or_default() += 1;
                    progress.example.get_or_insert_with(|| why.clone());
                }
            }
            match ended {
                Ended::Completed | Ended::Left => 0,
                Ended::Refused => 150,
                // A store that is down is not asked all the time.
                Ended::Failed(..) => 500,
            }
        };
        refused = if matches!(ended, Ended::Refused) { refused + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(luck.random_range(0..=wait))).await;
        // Anybody's neighbour next, so that all users are served whatever their number.
        number += 1 + luck.random_range(0..users.len() as u64);
    }
}

enum Ended {
    Completed,
    Left,
    Refused,
    Failed(&'static str, String),
}

async fn turn(agent: &Agent, user: &UserId, input: String) -> Ended {
    let mut events = match agent.for_user(user.clone()).stream(input).await {
        Ok(events) => events,
        Err(error) => return Ended::Failed(error.kind().as_str(), format!("{error:?}")),
    };
    let mut refused = false;
    while let Some(event) = events.next().await {
        match event.kind {
            // Whoever has read this goes away without a word.
            EventKind::TextDelta { text } if text.trim() == HALT => return Ended::Left,
            EventKind::BudgetExceeded(_) => refused = true,
            _ => {}
        }
    }
    match events.result().await {
        _ if refused => Ended::Refused,
        Ok(_) => Ended::Completed,
        Err(error) => Ended::Failed(error.kind().as_str(), format!("{error:?}")),
    }
}
