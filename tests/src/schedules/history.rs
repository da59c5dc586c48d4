//! What happened in a schedule, in order.

use std::sync::Arc;

use loomflow_core::{ApprovalId, Timestamp};
use parking_lot::Mutex;

/// What somebody decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Approve,
    Deny,
    Edit(u64),
}

/// What the policy answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Allow,
    Ask,
    Deny,
}

/// Which policy was in force: the number of a row of contents, the one a process began with and those it was given since.
/// Two of one label are the same, and a version belongs to one label.
pub(super) type Label = usize;

/// One thing that happened. A call is known by its number in the schedule, which is in its arguments.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fact {
    /// A process began.
    Life(u32),
    Policy {
        label: Label,
        version: u64,
    },
    Judged {
        call: u64,
        cents: u64,
        answer: Answer,
        version: u64,
        at: Timestamp,
    },
    Created {
        id: ApprovalId,
        call: u64,
        cents: u64,
        version: u64,
        expires: Timestamp,
    },
    /// The handler could not tell anybody.
    NobodyTold(ApprovalId),
    /// The store took a decision.
    Decided {
        id: ApprovalId,
        said: Said,
    },
    /// The store gave a decision out to be used.
    Consumed {
        id: ApprovalId,
        at: Timestamp,
    },
    /// The store made a decision void that was not used.
    Void {
        id: ApprovalId,
        at: Timestamp,
    },
    Executed {
        call: u64,
        cents: u64,
    },
    /// The run is over: completed, or given up at its time limit.
    Ended {
        at: Timestamp,
    },
    /// Nobody knows what a crash left behind, and a person must look.
    Parked,
}

/// Everything that happened, shared by all parts of a schedule and by all its lives.
#[derive(Clone, Debug, Default)]
pub(super) struct History(Arc<Mutex<Vec<Fact>>>);

impl History {
    pub(super) fn add(&self, fact: Fact) {
        self.0.lock().push(fact);
    }

    pub(super) fn facts(&self) -> Vec<Fact> {
        self.0.lock().clone()
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// The requests so far, in the order they were made.
    pub(super) fn requests(&self) -> Vec<ApprovalId> {
        let created = |fact: &Fact| match fact {
            Fact::Created { id, .. } => Some(*id),
            _ => None,
        };
        self.0.lock().iter().filter_map(created).collect()
    }

    pub(super) fn has(&self, is: impl Fn(&Fact) -> bool) -> bool {
        self.0.lock().iter().any(is)
    }
}
