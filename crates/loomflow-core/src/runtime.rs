//! Durability: a runtime journals the driver's effects and holds the lease of a run.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::error::Result;
use crate::identity::SessionId;
use crate::ids::RunId;
use crate::message::Digest;
use crate::redact::Redacted;
use crate::result::RunStatus;
use crate::scope::{Owned, Scope};
use crate::tenant_data::TenantData;

/// A run that is about to begin or to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunOpening {
    /// The run.
    pub run: RunId,
    /// Its conversation: only one run of it is open at a time.
    pub session: SessionId,
    /// What is needed to go on after a crash: the redacted input, as JSON. Empty when the runtime keeps no journal.
    pub input: Redacted<String>,
    /// How long the lease lasts without being renewed.
    pub lease: Duration,
    /// When it begins.
    pub at: Timestamp,
}

impl RunOpening {
    /// Opens `run` in `session`.
    #[must_use]
    pub fn new(
        run: RunId,
        session: SessionId,
        input: Redacted<String>,
        lease: Duration,
        at: Timestamp,
    ) -> Self {
        Self { run, session, input, lease, at }
    }
}

/// The right to write a run's journal. The fence grows with every holder, so that a former holder's writes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunLease {
    /// The run.
    pub run: RunId,
    /// Grows with every holder.
    pub fence: u64,
}

impl RunLease {
    /// The lease of `run` under `fence`.
    #[must_use]
    pub fn new(run: RunId, fence: u64) -> Self {
        Self { run, fence }
    }
}

/// Names one effect of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct StepKey {
    /// Which effect of the run, from 0, in the order the driver makes them.
    pub seq: u32,
    /// Identifies what is done; another fingerprint under the same number on replay is an error, never a re-run.
    pub fingerprint: Digest,
    /// Whether doing it twice is the same as doing it once.
    pub idempotent: bool,
}

impl StepKey {
    /// The effect number `seq`.
    #[must_use]
    pub fn new(seq: u32, fingerprint: Digest, idempotent: bool) -> Self {
        Self { seq, fingerprint, idempotent }
    }
}

/// What a runtime knows about a step before it is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "the driver must decide about each, and there is no fourth")]
pub enum Recorded {
    /// It was never begun: take it.
    Fresh,
    /// It was taken; this is what came of it.
    Done(String),
    /// It was begun and its end was never recorded. An idempotent step is repeated; anything else is left for a person.
    InDoubt,
}

/// A run as a runtime keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunRecord {
    /// The run.
    pub run: RunId,
    /// Its conversation.
    pub session: SessionId,
    /// The redacted input.
    pub input: String,
    /// Where it stands.
    pub status: RunStatus,
    /// When it began.
    pub started_at: Timestamp,
    /// How many steps are recorded.
    pub steps: u32,
}

impl RunRecord {
    /// A run as a runtime read it back.
    #[must_use]
    pub fn new(
        run: RunId,
        session: SessionId,
        input: String,
        status: RunStatus,
        started_at: Timestamp,
    ) -> Self {
        Self { run, session, input, status, started_at, steps: 0 }
    }

    /// Sets how many steps are recorded.
    #[must_use]
    pub fn with_steps(mut self, steps: u32) -> Self {
        self.steps = steps;
        self
    }
}

/// Journals the effects of runs.
///
/// Two runs of one session are never open at once. A step's `begin` is recorded before its effect, its `commit` after.
#[async_trait]
pub trait Runtime: TenantData {
    /// Whether steps are kept at all. Without a journal the driver writes none of their outcomes down.
    fn journals(&self) -> bool;

    /// Opens a run and takes its lease, together with the session's.
    ///
    /// - Another open run in the session with a live lease is [`ErrorKind::Conflict`](crate::ErrorKind::Conflict).
    /// - The same run again (after its lease ran out) gets a lease with a larger fence.
    /// - Fails with [`ErrorKind::Erased`](crate::ErrorKind::Erased) when the scope is older than the last erasure.
    async fn open(&self, scope: &Scope, opening: RunOpening) -> Result<RunLease>;

    /// Makes the lease last for `lease` from now. A lease that was taken over is
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict).
    async fn renew(&self, scope: &Scope, lease: &RunLease, lasting: Duration) -> Result<()>;

    /// Records whether an open run goes on or waits for a person: [`RunStatus::Running`] or
    /// [`RunStatus::WaitingApproval`]. Opening it again makes it running.
    ///
    /// - Any other status is [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput): that is for
    ///   [`Runtime::close`].
    /// - A lease that was taken over is [`ErrorKind::Conflict`](crate::ErrorKind::Conflict).
    async fn set_status(&self, scope: &Scope, lease: &RunLease, status: RunStatus) -> Result<()>;

    /// Says what is known about a step and, when it is fresh, records that it is begun.
    ///
    /// - Another fingerprint than the recorded one is [`ErrorKind::Conflict`](crate::ErrorKind::Conflict): the code
    ///   changed under the run.
    /// - A lease that was taken over is [`ErrorKind::Conflict`](crate::ErrorKind::Conflict).
    async fn begin(&self, scope: &Scope, lease: &RunLease, step: &StepKey) -> Result<Recorded>;

    /// Records what came of a step. Committing the same step again changes nothing.
    async fn commit(
        &self,
        scope: &Scope,
        lease: &RunLease,
        step: &StepKey,
        outcome: Redacted<String>,
    ) -> Result<()>;

    /// Ends a run: its lease and the session's are free, its steps may go. A status that is not terminal parks it instead.
    ///
    /// - The lease's fence decides, not the session: a run that lost its session to another still ends, and one that was taken
    ///   over is [`ErrorKind::Conflict`](crate::ErrorKind::Conflict).
    /// - A run whose row was erased has nothing left to end: that succeeds.
    async fn close(&self, scope: &Scope, lease: &RunLease, status: RunStatus) -> Result<()>;

    /// One of the scope's own runs; anybody else's is [`ErrorKind::NotFound`](crate::ErrorKind::NotFound).
    async fn load(&self, scope: &Scope, run: RunId) -> Result<Owned<RunRecord>>;

    /// The scope's own runs that are not ended, oldest first.
    async fn open_runs(&self, scope: &Scope) -> Result<Vec<Owned<RunRecord>>>;
}
