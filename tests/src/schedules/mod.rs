//! Random schedules of everything that may happen to an approval, against a real agent: approve, deny, edit, decisions by people
//! who may not, decisions and uses that are delivered twice, policies exchanged, crashes in the middle of anything, expiry.
//!
//! Every part that a run waits for suspends before and after it does something, so that a crash can fall between any two
//! effects. Time is the runtime's, which is paused: a schedule that takes days takes no time. What happened is written into a
//! `History`, and a naive oracle reads it afterwards: it shares no code with what it judges.

mod drive;
mod history;
mod oracle;
mod parts;
mod plan;
mod policy;
mod store;

use std::fmt;
use std::sync::Arc;

use loomflow_core::{ApprovalStore, Clock};

use self::oracle::Tally;
use self::plan::Plan;

/// Opens the approval store of one schedule, on a clock that goes with the schedule's time. A store that is shared by several
/// schedules keeps them apart by namespace: each has one of its own.
pub type Open<'o> = dyn Fn(Arc<dyn Clock>) -> Arc<dyn ApprovalStore> + 'o;

/// Which schedules.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Schedule `n` of a seed is always the same.
    pub seed: u64,
    /// The first one: what a failure names, to see it again at once.
    pub first: u64,
    /// How many.
    pub schedules: u64,
}

impl Options {
    /// The first `schedules` of `seed`.
    #[must_use]
    pub fn new(seed: u64, schedules: u64) -> Self {
        Self { seed, first: 0, schedules }
    }

    /// Begins at this one.
    #[must_use]
    pub fn with_first(mut self, schedule: u64) -> Self {
        self.first = schedule;
        self
    }
}

/// What was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Schedules.
    pub schedules: u64,
    /// What happened in them, together.
    pub tally: Tally,
}

/// A schedule that showed what must not be.
#[derive(Clone)]
#[non_exhaustive]
pub struct Failure {
    /// Which of the seed.
    pub schedule: u64,
    /// What is wrong.
    pub why: String,
    /// What was to happen and what did.
    pub story: String,
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "schedule {}: {}\n{}", self.schedule, self.why, self.story)
    }
}

/// Runs schedules until one fails or all have passed; tells `each` after every one.
///
/// # Errors
///
/// The first that fails.
pub fn check(options: Options, open: &Open<'_>, mut each: impl FnMut(&Report)) -> Result<Report, Failure> {
    let mut report = Report::default();
    for schedule in options.first..options.first.saturating_add(options.schedules) {
        let plan = Plan::draw(options.seed, schedule);
        let namespace = format!("schedule-{:x}-{schedule:x}", options.seed);
        let (history, told) = drive::play(&plan, &namespace, open);
        let judged = told.and_then(|()| oracle::judge(&history));
        match judged {
            Ok(tally) => report.tally += tally,
            Err(why) => {
                let story = format!("{plan:#?}\n{history:#?}");
                return Err(Failure { schedule, why, story });
            }
        }
        report.schedules += 1;
        each(&report);
    }
    Ok(report)
}
