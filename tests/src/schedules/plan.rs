//! What is to happen in a schedule, drawn from its seed.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::policy::Content;

/// One schedule.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// What each turn of the model pays: one amount a call.
    pub(super) turns: Vec<Vec<u64>>,
    /// What the policy says at first.
    pub(super) policy: Content,
    /// What the handler does with each request in turn.
    pub(super) handler: Vec<Handler>,
    pub(super) acts: Vec<Act>,
}

/// What the handler does with a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Handler {
    /// It is on its way to somebody.
    Tells,
    Approves,
    Denies,
    Edits(u64),
    Fails,
}

/// Who may not decide.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stranger {
    Requester,
    Mallory,
    Anonymous,
}

/// One thing that happens from outside. Requests are meant by number, modulo how many there are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    /// The run goes on for so many of its suspensions.
    Go(u32),
    /// A little time passes: just as much as a run waits before it looks again.
    Wait,
    Approve(usize),
    Deny(usize),
    Edit(usize, u64),
    /// The same decision is delivered twice at once.
    Twice(usize),
    /// Somebody who may not tries to decide, and to use.
    Wrong(usize, Stranger),
    /// A decision is delivered again after it was made.
    Again(usize),
    /// An approval that was used is used again.
    Reuse(usize),
    /// An approval is used for what it was not given for.
    Forge(usize),
    Reload(Content),
    /// The process goes away and another takes its place, with the policies it finds.
    Crash(Option<Content>),
    /// A second process resumes the run that is still going on.
    ResumeTwice,
    /// More time passes than any request lives.
    Expire,
}

/// Amounts; the last is one that some policies deny.
const AMOUNTS: [u64; 4] = [5, 70, 300, 900];

impl Plan {
    pub(super) fn draw(seed: u64, schedule: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ schedule);
        let turns = (0..rng.random_range(1..=2))
            .map(|_| (0..rng.random_range(1..=2)).map(|_| amount(&mut rng)).collect())
            .collect();
        let policy = if rng.random_ratio(4, 5) { Content::AsksAbout(0) } else { content(&mut rng) };
        let handler = (0..4).map(|_| handler(&mut rng)).collect();
        let mut acts = Vec::new();
        for _ in 0..rng.random_range(4..=20) {
            let next = act(&mut rng);
            acts.push(next);
            // What was just decided is being carried out: the best moment to go away.
            if matches!(next, Act::Approve(_) | Act::Edit(..)) && rng.random_ratio(1, 3) {
                acts.extend([Act::Wait, Act::Go(rng.random_range(1..30)), Act::Crash(None)]);
            }
        }
        Self { turns, policy, handler, acts }
    }
}

fn amount(rng: &mut StdRng) -> u64 {
    AMOUNTS[rng.random_range(0..AMOUNTS.len())]
}

fn content(rng: &mut StdRng) -> Content {
    match rng.random_range(0..10_u32) {
        0..5 => Content::AsksAbout(rng.random_range(0..2)),
        5..8 => Content::DeniesAbove(500),
        8 => Content::Denies,
        _ => Content::Allows,
    }
}

fn handler(rng: &mut StdRng) -> Handler {
    match rng.random_range(0..20_u32) {
        0..15 => Handler::Tells,
        15 => Handler::Approves,
        16 => Handler::Denies,
        17 | 18 => Handler::Edits(amount(rng)),
        _ => Handler::Fails,
    }
}

fn act(rng: &mut StdRng) -> Act {
    let which = rng.random_range(0..8);
    match rng.random_range(0..100_u32) {
        0..34 => Act::Go(rng.random_range(1..40)),
        34..42 => Act::Wait,
        42..58 => Act::Approve(which),
        58..61 => Act::Deny(which),
        61..66 => Act::Edit(which, amount(rng)),
        66..70 => Act::Twice(which),
        70..74 => Act::Wrong(
            which,
            [Stranger::Requester, Stranger::Mallory, Stranger::Anonymous][rng.random_range(0..3)],
        ),
        74..77 => Act::Again(which),
        77 | 78 => Act::Reuse(which),
        79 => Act::Forge(which),
        80..86 => Act::Reload(content(rng)),
        86..97 => Act::Crash(if rng.random_ratio(1, 4) { Some(content(rng)) } else { None }),
        97..99 => Act::ResumeTwice,
        _ => Act::Expire,
    }
}
