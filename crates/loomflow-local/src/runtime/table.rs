//! The runs of every tenant, partition first: nothing that names a run reaches another tenant's.

use std::collections::VecDeque;

use hashbrown::HashMap;
use loomflow_core::{
    Digest, Erase, Error, ErrorKind, Owner, Result, RunId, RunLease, RunOpening, RunRecord, RunStatus, Scope,
    SessionId, StepKey, Timestamp,
};
use tokio::time::Instant;

use crate::epochs::{EpochTable, MAX_ERASED};

/// How many tenants without a run keep their (empty) tables.
const KEPT_IDLE: usize = 4_096;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) open_runs: usize,
    pub(super) steps_per_run: usize,
    pub(super) ended_runs: usize,
}

#[derive(Debug)]
pub(super) struct Table {
    tenants: HashMap<Owner, Tenant>,
    pub(super) epochs: EpochTable,
    journals: bool,
    limits: Limits,
    open: usize,
    fence: u64,
    /// Ended runs, oldest first; only a journal keeps any.
    ended: VecDeque<(Owner, RunId)>,
    /// Until when a search for abandoned runs is known to find nothing.
    searched_until: Option<Instant>,
}

#[derive(Debug, Default)]
struct Tenant {
    runs: HashMap<RunId, Run>,
    /// The run that holds each session's lease.
    sessions: HashMap<SessionId, RunId>,
}

#[derive(Debug)]
pub(super) struct Run {
    pub(super) owner: Owner,
    pub(super) session: SessionId,
    pub(super) input: String,
    pub(super) status: RunStatus,
    pub(super) started_at: Timestamp,
    fence: u64,
    expires: Instant,
    open: bool,
    pub(super) steps: Vec<Step>,
}

#[derive(Debug)]
pub(super) struct Step {
    pub(super) seq: u32,
    fingerprint: Digest,
    pub(super) outcome: Option<String>,
}

impl Run {
    /// A run that was opened just now. Its input is kept by a journal alone.
    fn opened(owner: Owner, opening: RunOpening, fence: u64, expires: Instant, journals: bool) -> Self {
        Self {
            owner,
            session: opening.session,
            input: if journals { opening.input.into_inner() } else { String::new() },
            status: RunStatus::Running,
            started_at: opening.at,
            fence,
            expires,
            open: true,
            steps: Vec::new(),
        }
    }

    pub(super) fn record(&self, run: RunId) -> RunRecord {
        let steps = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        RunRecord::new(run, self.session.clone(), self.input.clone(), self.status, self.started_at)
            .with_steps(steps)
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }
}

/// What is known about a step.
pub(super) enum Known {
    Fresh,
    Done(String),
    InDoubt,
}

impl Table {
    pub(super) fn new(journals: bool, limits: Limits) -> Self {
        Self {
            tenants: HashMap::new(),
            epochs: EpochTable::new(MAX_ERASED),
            journals,
            limits,
            open: 0,
            fence: 0,
            ended: VecDeque::new(),
            searched_until: None,
        }
    }

    pub(super) fn journals(&self) -> bool {
        self.journals
    }

    pub(super) fn open(&mut self, scope: &Scope, opening: RunOpening, now: Instant) -> Result<RunLease> {
        self.epochs.check(scope, "open run")?;
        let run = opening.run;
        let tenant = self.tenants.get(scope.owner());
        if let Some(tenant) = tenant {
            tenant.may_open(run, &opening.session, now)?;
        }
        if !tenant.is_some_and(|tenant| tenant.runs.contains_key(&run)) {
            self.make_room(now)?;
        }
        self.fence += 1;
        let lease = RunLease::new(run, self.fence);
        let tenant = match self.tenants.get_mut(scope.owner()) {
            Some(tenant) => tenant,
            None => self.tenants.entry(scope.owner().clone()).or_default(),
        };
        tenant.sessions.insert(opening.session.clone(), run);
        let expires = now + opening.lease;
        match tenant.runs.get_mut(&run) {
            Some(known) => {
                known.fence = self.fence;
                known.expires = expires;
                known.status = RunStatus::Running;
            }
            None => {
                self.open += 1;
                let opened = Run::opened(scope.owner().clone(), opening, self.fence, expires, self.journals);
                tenant.runs.insert(run, opened);
            }
        }
        Ok(lease)
    }

    /// Files an open run of `owner` among the runs of `filed_under`.
    pub(super) fn plant(&mut self, filed_under: &Owner, owner: Owner, opening: RunOpening, now: Instant) {
        self.fence += 1;
        self.open += 1;
        let (run, session, expires) = (opening.run, opening.session.clone(), now + opening.lease);
        let opened = Run::opened(owner, opening, self.fence, expires, self.journals);
        let tenant = self.tenants.entry(filed_under.clone()).or_default();
        tenant.sessions.insert(session, run);
        tenant.runs.insert(run, opened);
    }

    /// Refuses a further run when too many are open. Without a journal, one whose lease ran out is given up for it: there
    /// is nothing to go on from.
    fn make_room(&mut self, now: Instant) -> Result<()> {
        if self.open < self.limits.open_runs {
            return Ok(());
        }
        if !self.journals && self.searched_until.is_none_or(|until| now >= until) {
            let mut next = None;
            for tenant in self.tenants.values_mut() {
                tenant.runs.retain(|_, run| {
                    let live = run.expires > now;
                    if live {
                        next = Some(next.map_or(run.expires, |n: Instant| n.min(run.expires)));
                    }
                    live
                });
                tenant.sessions.retain(|_, run| tenant.runs.contains_key(run));
            }
            self.tenants.retain(|_, tenant| !tenant.runs.is_empty());
            self.open = self.tenants.values().map(|tenant| tenant.runs.len()).sum();
            self.searched_until = next;
        }
        if self.open < self.limits.open_runs {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Capacity,
            format!("{} runs are open in this process, the most allowed", self.limits.open_runs),
        ))
    }

    /// The run of a lease that is still the holder's.
    fn held(&mut self, scope: &Scope, lease: &RunLease, operation: &'static str) -> Result<&mut Run> {
        self.epochs.check(scope, operation)?;
        let tenant = self.tenants.get_mut(scope.owner()).ok_or_else(taken_over)?;
        let run = tenant.runs.get_mut(&lease.run).ok_or_else(taken_over)?;
        let holds = tenant.sessions.get(&run.session) == Some(&lease.run);
        if run.open && holds && run.fence == lease.fence { Ok(run) } else { Err(taken_over()) }
    }

    pub(super) fn renew(&mut self, scope: &Scope, lease: &RunLease, until: Instant) -> Result<()> {
        self.held(scope, lease, "renew lease")?.expires = until;
        Ok(())
    }

    pub(super) fn set_status(&mut self, scope: &Scope, lease: &RunLease, status: RunStatus) -> Result<()> {
        self.held(scope, lease, "set run status")?.status = status;
        Ok(())
    }

    pub(super) fn begin(&mut self, scope: &Scope, lease: &RunLease, step: &StepKey) -> Result<Known> {
        let (journals, most) = (self.journals, self.limits.steps_per_run);
        let run = self.held(scope, lease, "begin step")?;
        if !journals {
            return Ok(Known::Fresh);
        }
        match run.steps.binary_search_by_key(&step.seq, |known| known.seq) {
            Ok(at) => {
                let known = &run.steps[at];
                if known.fingerprint != step.fingerprint {
                    return Err(changed(step.seq));
                }
                Ok(known.outcome.clone().map_or(Known::InDoubt, Known::Done))
            }
            Err(_) if run.steps.len() >= most => Err(Error::new(
                ErrorKind::Capacity,
                format!("the run has {most} steps, the most a journal keeps"),
            )),
            Err(at) => {
                let begun = Step { seq: step.seq, fingerprint: step.fingerprint, outcome: None };
                run.steps.insert(at, begun);
                Ok(Known::Fresh)
            }
        }
    }

    pub(super) fn commit(
        &mut self,
        scope: &Scope,
        lease: &RunLease,
        step: &StepKey,
        outcome: String,
    ) -> Result<()> {
        let journals = self.journals;
        let run = self.held(scope, lease, "commit step")?;
        if !journals {
            return Ok(());
        }
        let Ok(at) = run.steps.binary_search_by_key(&step.seq, |known| known.seq) else {
            return Err(Error::new(ErrorKind::Conflict, format!("step {} was never begun", step.seq)));
        };
        let known = &mut run.steps[at];
        if known.fingerprint != step.fingerprint {
            return Err(changed(step.seq));
        }
        known.outcome.get_or_insert(outcome);
        Ok(())
    }

    /// Ends a run, or parks it: a run that a journal keeps and whose status is not terminal can be opened again.
    ///
    /// What may be ended is decided by the fence alone. Neither an erasure that left the run standing nor another run that
    /// took the session over after the lease ran out may keep a run from ending, or it would count as open for ever. The
    /// session is let go only if it is still the run's own.
    pub(super) fn close(&mut self, scope: &Scope, lease: &RunLease, status: RunStatus) -> Result<()> {
        let erased = self.epochs.get(scope.owner()) > scope.epoch();
        let tenant = self.tenants.get_mut(scope.owner());
        let mine = tenant.and_then(|tenant| {
            let run = tenant.runs.get_mut(&lease.run)?;
            let mine = run.open && run.fence == lease.fence;
            mine.then(|| {
                run.status = status;
                run.session.clone()
            })
            .map(|session| (tenant, session))
        });
        let Some((tenant, session)) = mine else {
            // A run that was erased has nothing left to end.
            return if erased { Ok(()) } else { Err(taken_over()) };
        };
        if tenant.sessions.get(&session) == Some(&lease.run) {
            tenant.sessions.remove(&session);
        }
        if !self.journals {
            tenant.runs.remove(&lease.run);
            self.open -= 1;
            // A tenant that comes back soon finds its two small tables still there.
            if tenant.runs.is_empty() && (tenant.runs.capacity() > 64 || self.tenants.len() > KEPT_IDLE) {
                self.tenants.remove(scope.owner());
            }
        } else if status.is_terminal()
            && let Some(run) = tenant.runs.get_mut(&lease.run)
        {
            run.open = false;
            run.steps = Vec::new();
            self.open -= 1;
            self.ended.push_back((scope.owner().clone(), lease.run));
            self.drop_ended();
        }
        Ok(())
    }

    fn drop_ended(&mut self) {
        while self.ended.len() > self.limits.ended_runs {
            let Some((owner, run)) = self.ended.pop_front() else { return };
            let Some(tenant) = self.tenants.get_mut(&owner) else { continue };
            // Erased and opened anew under its id, it is not the run that ended.
            if tenant.runs.get(&run).is_some_and(|run| !run.open) {
                tenant.runs.remove(&run);
            }
            if tenant.runs.is_empty() {
                self.tenants.remove(&owner);
            }
        }
    }

    pub(super) fn run(&self, scope: &Scope, run: RunId) -> Option<&Run> {
        self.tenants.get(scope.owner())?.runs.get(&run)
    }

    /// The tenant's runs, oldest first.
    pub(super) fn runs(&self, scope: &Scope) -> Vec<(RunId, &Run)> {
        let tenant = self.tenants.get(scope.owner());
        let mut runs: Vec<_> =
            tenant.into_iter().flat_map(|tenant| &tenant.runs).map(|(id, run)| (*id, run)).collect();
        runs.sort_unstable_by_key(|(id, run)| (run.started_at, *id));
        runs
    }

    /// Erases runs with their steps and leases; returns how many of each.
    pub(super) fn forget(&mut self, scope: &Scope, what: &Erase) -> Result<(u64, u64)> {
        self.epochs.advance(scope)?;
        let Some(tenant) = self.tenants.get_mut(scope.owner()) else { return Ok((0, 0)) };
        let (mut runs, mut steps, mut open) = (0, 0, 0);
        tenant.runs.retain(|_, run| {
            let goes = what.session.as_ref().is_none_or(|session| run.session == *session)
                && what.before.is_none_or(|before| run.started_at < before);
            if goes {
                runs += 1;
                steps += run.steps.len() as u64;
                open += usize::from(run.open);
            }
            !goes
        });
        self.open -= open;
        tenant.sessions.retain(|_, run| tenant.runs.contains_key(run));
        if tenant.runs.is_empty() {
            self.tenants.remove(scope.owner());
        }
        let left = &self.tenants;
        self.ended.retain(|(owner, run)| left.get(owner).is_some_and(|tenant| tenant.runs.contains_key(run)));
        Ok((runs, steps))
    }
}

impl Tenant {
    fn may_open(&self, run: RunId, session: &SessionId, now: Instant) -> Result<()> {
        if let Some(known) = self.runs.get(&run) {
            if !known.open {
                return Err(Error::new(ErrorKind::Conflict, "the run has ended"));
            }
            if known.session != *session {
                return Err(Error::new(ErrorKind::Conflict, "the run belongs to another session"));
            }
        }
        let holder = self.sessions.get(session).and_then(|holder| self.runs.get(holder));
        match holder {
            Some(holder) if holder.expires > now => {
                Err(Error::new(ErrorKind::Conflict, "another run of this session is open")
                    .with_retry_after(holder.expires.duration_since(now)))
            }
            _ => Ok(()),
        }
    }
}

fn taken_over() -> Error {
    Error::new(ErrorKind::Conflict, "the run's lease is not, or no longer, this holder's")
}

fn changed(seq: u32) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("step {seq} is not what was recorded: the code changed under the run"),
    )
}
