//! The runtime of one process: leases always, steps where a journal is given.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    Epoch, Erase, Erased, Error, ErrorKind, ExportItem, ExportStream, Owned, Owner, Recorded, Redacted,
    Result, RunId, RunLease, RunOpening, RunRecord, RunStatus, Runtime, Scope, StepKey, TenantData,
    export_from,
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::runtime::table::{Known, Limits, Table};

const LIMITS: Limits = Limits { open_runs: 100_000, steps_per_run: 10_000, ended_runs: 10_000 };

/// A runtime within one process.
///
/// One run at a time is open in a session: its lease runs out by monotonic time unless it is renewed, and every holder
/// has a larger fence than the one before. 100,000 runs may be open; a further one is refused with
/// [`ErrorKind::Capacity`], after those whose lease ran out were given up (without a journal there is nothing to go on
/// from).
///
/// [`InProcRuntime::new`] keeps no steps. [`InProcRuntime::with_journal`] keeps them in an [`InMemoryJournalStore`], so
/// that a run that was dropped midway goes on in the same process.
#[derive(Clone, Debug)]
pub struct InProcRuntime(Arc<Mutex<Table>>);

/// The journal of an [`InProcRuntime`]: runs, their steps and leases, in memory.
///
/// Cheap to clone; clones share one journal, as two processes share a database. A run keeps 10,000 steps until it ends;
/// the last 10,000 ended runs are kept, without their steps.
#[derive(Clone, Debug)]
pub struct InMemoryJournalStore(Arc<Mutex<Table>>);

impl InMemoryJournalStore {
    /// An empty journal.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limits(LIMITS.open_runs, LIMITS.steps_per_run, LIMITS.ended_runs)
    }

    /// An empty journal that holds so many open runs, steps of one run, and ended runs.
    #[must_use]
    pub fn with_limits(open_runs: usize, steps_per_run: usize, ended_runs: usize) -> Self {
        let limits = Limits { open_runs, steps_per_run, ended_runs };
        Self(Arc::new(Mutex::new(Table::new(true, limits))))
    }
}

impl Default for InMemoryJournalStore {
    fn default() -> Self {
        Self::new()
    }
}

impl InProcRuntime {
    /// Leases, and no journal.
    #[must_use]
    pub fn new() -> Self {
        Self::with_max_open_runs(LIMITS.open_runs)
    }

    /// Leases for at most `runs` open runs, and no journal.
    #[must_use]
    pub fn with_max_open_runs(runs: usize) -> Self {
        let limits = Limits { open_runs: runs, ..LIMITS };
        Self(Arc::new(Mutex::new(Table::new(false, limits))))
    }

    /// Leases and steps in `journal`.
    #[must_use]
    pub fn with_journal(journal: InMemoryJournalStore) -> Self {
        Self(journal.0)
    }

    /// Files a row of `owner` under the key of `filed_under`, by raw means. For the conformance suite only, which checks
    /// that such a row is noticed; nothing else may call it.
    #[doc(hidden)]
    pub fn plant_for_conformance(&self, filed_under: &Owner, owner: Owner, opening: RunOpening) {
        self.0.lock().plant(filed_under, owner, opening, Instant::now());
    }
}

impl Default for InProcRuntime {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Runtime for InProcRuntime {
    fn journals(&self) -> bool {
        self.0.lock().journals()
    }

    async fn open(&self, scope: &Scope, opening: RunOpening) -> Result<RunLease> {
        let now = Instant::now();
        self.0.lock().open(scope, opening, now)
    }

    async fn renew(&self, scope: &Scope, lease: &RunLease, lasting: Duration) -> Result<()> {
        let until = Instant::now() + lasting;
        self.0.lock().renew(scope, lease, until)
    }

    async fn set_status(&self, scope: &Scope, lease: &RunLease, status: RunStatus) -> Result<()> {
        status.check_open()?;
        self.0.lock().set_status(scope, lease, status)
    }

    async fn begin(&self, scope: &Scope, lease: &RunLease, step: &StepKey) -> Result<Recorded> {
        Ok(match self.0.lock().begin(scope, lease, step)? {
            Known::Fresh => Recorded::Fresh,
            Known::Done(outcome) => Recorded::Done(outcome),
            Known::InDoubt => Recorded::InDoubt,
        })
    }

    async fn commit(
        &self,
        scope: &Scope,
        lease: &RunLease,
        step: &StepKey,
        outcome: Redacted<String>,
    ) -> Result<()> {
        self.0.lock().commit(scope, lease, step, outcome.into_inner())
    }

    async fn close(&self, scope: &Scope, lease: &RunLease, status: RunStatus) -> Result<()> {
        self.0.lock().close(scope, lease, status)
    }

    async fn load(&self, scope: &Scope, run: RunId) -> Result<Owned<RunRecord>> {
        let table = self.0.lock();
        let found = table.run(scope, run).map(|known| Owned::new(known.owner.clone(), known.record(run)));
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such run, or it is not yours"))
    }

    async fn open_runs(&self, scope: &Scope) -> Result<Vec<Owned<RunRecord>>> {
        let table = self.0.lock();
        let open = table.runs(scope).into_iter().filter(|(_, run)| run.is_open());
        Ok(open.map(|(id, run)| Owned::new(run.owner.clone(), run.record(id))).collect())
    }
}

#[async_trait]
impl TenantData for InProcRuntime {
    fn store_name(&self) -> &str {
        "runtime:inproc"
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        Ok(self.0.lock().epochs.get(scope.owner()))
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let table = self.0.lock();
        let mut items = Vec::new();
        for (id, run) in table.runs(scope) {
            let data = json!({
                "run_id": id,
                "session_id": run.session,
                "input": run.input,
                "status": run.status,
                "started_at": run.started_at,
            });
            items.push(Owned::new(run.owner.clone(), ExportItem::new("run", data)));
            for step in &run.steps {
                let data = json!({"run_id": id, "seq": step.seq, "outcome": step.outcome});
                items.push(Owned::new(run.owner.clone(), ExportItem::new("step", data)));
            }
        }
        Ok(export_from(items))
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let (runs, steps) = self.0.lock().forget(scope, what)?;
        Ok(Erased::new(self.store_name()).with_count("run", runs).with_count("step", steps))
    }
}

#[cfg(test)]
mod tests;
