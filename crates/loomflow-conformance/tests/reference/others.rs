//! A naive audit log, runtime and tool cache.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_conformance::doubles::ManualClock;
use loomflow_conformance::{audit, runtime, tool_cache};
use loomflow_core::{
    AuditEntry, AuditEvent, AuditLog, AuditQuery, AuditReceipt, AuditVerification, Digest, Epoch, Erase,
    Erased, Error, ErrorKind, ExportItem, ExportStream, Owned, Owner, Recorded, Redacted, Result, RunId,
    RunLease, RunOpening, RunRecord, RunStatus, Runtime, Scope, SessionId, StepKey, TenantData, Timestamp,
    ToolCache, export_from,
};
use serde_json::json;

use super::{Bug, found, key, newer};

#[derive(Debug)]
pub(crate) struct Log {
    bug: Bug,
    entries: Mutex<Vec<(String, Owner, AuditEntry)>>,
}

pub(crate) fn log(bug: Bug) -> audit::Harness {
    let log = Arc::new(Log { bug, entries: Mutex::default() });
    let raw = log.clone();
    audit::Harness::new(log).with_plant(move |order| {
        let raw = raw.clone();
        async move {
            let mut entries = raw.entries.lock().unwrap();
            let seq = entries.len() as u64 + 1;
            entries.push((
                key(raw.bug, order.scope.owner()),
                order.foreign,
                AuditEntry::new(seq, order.record),
            ));
            Ok(())
        }
    })
}

impl Log {
    fn own(&self, scope: &Scope) -> Vec<(Owner, AuditEntry)> {
        let asked = key(self.bug, scope.owner());
        let argument = matches!(self.bug, Bug::OwnerFromArgument | Bug::CaseFold | Bug::PrefixMatch);
        let entries = self.entries.lock().unwrap();
        let mine = entries.iter().filter(|(k, ..)| found(self.bug, k, &asked));
        mine.map(|(_, owner, e)| (if argument { scope.owner().clone() } else { owner.clone() }, e.clone()))
            .collect()
    }
}

#[async_trait]
impl TenantData for Log {
    fn store_name(&self) -> &str {
        "audit:reference"
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let own = self.own(scope).into_iter();
        let item = |(owner, e): (Owner, AuditEntry)| {
            Owned::new(owner, ExportItem::new("audit_entry", json!({ "payload": e.event.payload.get() })))
        };
        Ok(export_from(own.map(item).collect()))
    }

    async fn forget(&self, _scope: &Scope, _what: &Erase) -> Result<Erased> {
        if self.bug == Bug::ForgetEverybody {
            self.entries.lock().unwrap().clear();
        }
        Ok(Erased::new(self.store_name()).with_retained("the chain is kept"))
    }
}

#[async_trait]
impl AuditLog for Log {
    async fn append(&self, scope: &Scope, event: AuditEvent) -> Result<AuditReceipt> {
        let mut entries = self.entries.lock().unwrap();
        let seq = entries.len() as u64 + 1;
        entries.push((key(self.bug, scope.owner()), scope.owner().clone(), AuditEntry::new(seq, event)));
        Ok(AuditReceipt::new(seq))
    }

    async fn query(&self, scope: &Scope, query: &AuditQuery) -> Result<Vec<Owned<AuditEntry>>> {
        let mut own = self.own(scope);
        own.retain(|(_, e)| {
            e.seq > query.after
                && query.action.is_none_or(|a| a == e.event.action)
                && query.run.is_none_or(|r| Some(r) == e.event.run)
        });
        Ok(own.into_iter().take(query.limit).map(|(owner, e)| Owned::new(owner, e)).collect())
    }

    async fn verify(&self) -> Result<AuditVerification> {
        let n = self.entries.lock().unwrap().len() as u64;
        Ok(AuditVerification::new(n, n.min(1), n, "0".repeat(64), Vec::new()))
    }
}

#[derive(Clone, Debug)]
struct Run {
    filed: String,
    owner: Owner,
    run: RunId,
    session: SessionId,
    input: String,
    at: Timestamp,
    until: Timestamp,
    fence: u64,
    status: RunStatus,
    steps: HashMap<u32, (Digest, Option<String>)>,
}

#[derive(Debug)]
pub(crate) struct Journal {
    bug: Bug,
    clock: Arc<ManualClock>,
    runs: Mutex<Vec<Run>>,
    epochs: Mutex<HashMap<String, Epoch>>,
}

pub(crate) fn journal(bug: Bug) -> runtime::Harness {
    let clock = Arc::new(ManualClock::default());
    let journal =
        Arc::new(Journal { bug, clock: clock.clone(), runs: Mutex::default(), epochs: Mutex::default() });
    let raw = journal.clone();
    runtime::Harness::new(journal).with_clock(clock).with_plant(move |order| {
        let raw = raw.clone();
        async move {
            let filed = key(raw.bug, order.scope.owner());
            let run = raw.new_run(filed, order.foreign, order.record);
            raw.runs.lock().unwrap().push(run);
            Ok(())
        }
    })
}

fn conflict() -> Error {
    Error::new(ErrorKind::Conflict, "somebody else holds it")
}

fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such run")
}

impl Journal {
    fn new_run(&self, filed: String, owner: Owner, opening: RunOpening) -> Run {
        Run {
            filed,
            owner,
            run: opening.run,
            session: opening.session,
            input: opening.input.into_inner(),
            at: opening.at,
            until: self.clock.read().saturating_add(opening.lease),
            fence: 1,
            status: RunStatus::Running,
            steps: HashMap::new(),
        }
    }

    fn own(&self, scope: &Scope, run: &Run) -> bool {
        found(self.bug, &run.filed, &key(self.bug, scope.owner()))
    }

    fn record(&self, scope: &Scope, run: &Run) -> Owned<RunRecord> {
        let record = RunRecord::new(run.run, run.session.clone(), run.input.clone(), run.status, run.at)
            .with_steps(run.steps.len() as u32);
        let argument = matches!(self.bug, Bug::OwnerFromArgument | Bug::CaseFold);
        Owned::new(if argument { scope.owner().clone() } else { run.owner.clone() }, record)
    }

    fn with<T>(&self, scope: &Scope, lease: &RunLease, f: impl FnOnce(&mut Run) -> Result<T>) -> Result<T> {
        let mut runs = self.runs.lock().unwrap();
        let mine = |r: &&mut Run| r.run == lease.run && (self.own(scope, r) || self.bug == Bug::ForeignClose);
        let run = runs.iter_mut().find(mine).ok_or_else(not_found)?;
        if run.fence == lease.fence { f(run) } else { Err(conflict()) }
    }
}

#[async_trait]
impl TenantData for Journal {
    fn store_name(&self) -> &str {
        "runtime:reference"
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        Ok(self.epochs.lock().unwrap().get(&key(self.bug, scope.owner())).copied().unwrap_or_default())
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let runs = self.runs.lock().unwrap();
        let item = |r: &Run| {
            let data = json!({ "run": r.run, "steps": r.steps.values().map(|s| &s.1).collect::<Vec<_>>() });
            Owned::new(r.owner.clone(), ExportItem::new("run", data))
        };
        Ok(export_from(runs.iter().filter(|r| self.own(scope, r)).map(item).collect()))
    }

    async fn forget(&self, scope: &Scope, _what: &Erase) -> Result<Erased> {
        let mut epochs = self.epochs.lock().unwrap();
        newer(self.bug, scope, epochs.get(&key(self.bug, scope.owner())))?;
        self.runs.lock().unwrap().retain(|r| !self.own(scope, r) && self.bug != Bug::ForgetEverybody);
        let stored = epochs.entry(key(self.bug, scope.owner())).or_default();
        *stored = scope.epoch().max(*stored);
        Ok(Erased::new(self.store_name()))
    }
}

#[async_trait]
impl Runtime for Journal {
    fn journals(&self) -> bool {
        true
    }

    async fn open(&self, scope: &Scope, opening: RunOpening) -> Result<RunLease> {
        if self.bug != Bug::EpochIgnored {
            scope.check_epoch(self.epoch(scope).await?, "open")?;
        }
        let now = self.clock.read();
        let mut runs = self.runs.lock().unwrap();
        let busy = |r: &Run| {
            let shared = self.bug == Bug::KeysAreShared;
            (self.own(scope, r) || shared)
                && r.session == opening.session
                && !r.status.is_terminal()
                && now < r.until
        };
        if runs.iter().any(busy) {
            return Err(conflict());
        }
        if let Some(run) = runs.iter_mut().find(|r| r.run == opening.run && self.own(scope, r)) {
            run.until = now.saturating_add(opening.lease);
            run.status = RunStatus::Running;
            run.fence += u64::from(self.bug != Bug::LeaseNeverEnds);
            return Ok(RunLease::new(run.run, run.fence));
        }
        let run = self.new_run(key(self.bug, scope.owner()), scope.owner().clone(), opening);
        let lease = RunLease::new(run.run, run.fence);
        runs.push(run);
        Ok(lease)
    }

    async fn renew(&self, scope: &Scope, lease: &RunLease, lasting: Duration) -> Result<()> {
        let until = self.clock.read().saturating_add(lasting);
        self.with(scope, lease, |run| {
            run.until = until;
            Ok(())
        })
    }

    async fn begin(&self, scope: &Scope, lease: &RunLease, step: &StepKey) -> Result<Recorded> {
        self.with(scope, lease, |run| match run.steps.get(&step.seq) {
            None => {
                run.steps.insert(step.seq, (step.fingerprint, None));
                Ok(Recorded::Fresh)
            }
            Some((print, _)) if *print != step.fingerprint => Err(conflict()),
            Some((_, None)) => Ok(Recorded::InDoubt),
            Some((_, Some(text))) => Ok(Recorded::Done(text.clone())),
        })
    }

    async fn commit(
        &self,
        scope: &Scope,
        lease: &RunLease,
        step: &StepKey,
        outcome: Redacted<String>,
    ) -> Result<()> {
        let replaces = self.bug == Bug::RememberReplaces;
        self.with(scope, lease, |run| {
            let known = run.steps.entry(step.seq).or_insert((step.fingerprint, None));
            if known.1.is_none() || replaces {
                known.1 = Some(outcome.into_inner());
            }
            Ok(())
        })
    }

    async fn set_status(&self, scope: &Scope, lease: &RunLease, status: RunStatus) -> Result<()> {
        status.check_open()?;
        self.with(scope, lease, |run| {
            if self.bug != Bug::StatusIgnored {
                run.status = status;
            }
            Ok(())
        })
    }

    async fn close(&self, scope: &Scope, lease: &RunLease, status: RunStatus) -> Result<()> {
        self.with(scope, lease, |run| {
            run.status = status;
            Ok(())
        })
    }

    async fn load(&self, scope: &Scope, run: RunId) -> Result<Owned<RunRecord>> {
        let runs = self.runs.lock().unwrap();
        let mine = runs.iter().find(|r| r.run == run && self.own(scope, r));
        mine.map(|r| self.record(scope, r)).ok_or_else(not_found)
    }

    async fn open_runs(&self, scope: &Scope) -> Result<Vec<Owned<RunRecord>>> {
        let mut runs = self.runs.lock().unwrap().clone();
        runs.retain(|r| self.own(scope, r) && !r.status.is_terminal());
        runs.sort_by_key(|r| r.at);
        Ok(runs.iter().map(|r| self.record(scope, r)).collect())
    }
}

#[derive(Debug)]
pub(crate) struct Cache {
    bug: Bug,
    values: Mutex<HashMap<(String, u64, String), String>>,
}

pub(crate) fn cache(bug: Bug) -> tool_cache::Harness {
    tool_cache::Harness::new(Arc::new(Cache { bug, values: Mutex::default() }))
}

impl Cache {
    fn cell(&self, scope: &Scope, key_of: &str) -> (String, u64, String) {
        let epoch = if self.bug == Bug::EpochIgnored { 0 } else { scope.epoch().get() };
        let partition = key(self.bug, scope.owner());
        if self.bug == Bug::NoDelimiter {
            return (String::new(), epoch, partition + key_of);
        }
        (partition, epoch, key_of.to_owned())
    }
}

#[async_trait]
impl ToolCache for Cache {
    async fn get(&self, scope: &Scope, key: &str) -> Result<Option<Owned<String>>> {
        let value = self.values.lock().unwrap().get(&self.cell(scope, key)).cloned();
        Ok(value.map(|value| Owned::new(scope.owner().clone(), value)))
    }

    async fn put(&self, scope: &Scope, key: &str, value: &str) -> Result<()> {
        self.values.lock().unwrap().insert(self.cell(scope, key), value.to_owned());
        Ok(())
    }

    async fn clear(&self, scope: &Scope) -> Result<u64> {
        let (partition, everybody) = (key(self.bug, scope.owner()), self.bug == Bug::ForgetEverybody);
        let mut values = self.values.lock().unwrap();
        let before = values.len();
        values.retain(|(p, ..), _| *p != partition && !everybody);
        Ok((before - values.len()) as u64)
    }
}
