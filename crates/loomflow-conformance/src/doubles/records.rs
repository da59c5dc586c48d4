//! Doubles of a ledger and of an audit log that refuse nothing and keep everything, to be looked into.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    AuditEntry, AuditEvent, AuditLog, AuditQuery, AuditReceipt, AuditVerification, Charge, Erase, Erased,
    Error, ErrorKind, ExportItem, ExportStream, Granted, Hold, HoldId, Ledger, Limits, Owned, Owner, Reserve,
    Result, Scope, Settled, TenantData, UsageReport, export_from,
};

/// One hold of a [`RecordingLedger`], and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HoldRecord {
    /// Whose.
    pub owner: Owner,
    /// What was asked for.
    pub hold: Hold,
    /// The generated tokens that were granted.
    pub granted_output: u64,
    /// Whether the request was about to leave.
    pub sent: bool,
    /// How it was closed; `None` while it is open.
    pub charge: Option<Charge>,
}

/// A double of [`Ledger`] without caps that keeps every hold and every charge.
#[derive(Debug, Default)]
pub struct RecordingLedger {
    most_output: Option<u64>,
    holds: Mutex<Vec<(HoldId, HoldRecord)>>,
}

impl RecordingLedger {
    /// A ledger that grants what it is asked for.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Grants at most so many generated tokens a hold.
    #[must_use]
    pub fn granting_at_most(mut self, output_tokens: u64) -> Self {
        self.most_output = Some(output_tokens);
        self
    }

    /// Every hold, in order.
    #[must_use]
    pub fn holds(&self) -> Vec<HoldRecord> {
        self.lock().iter().map(|(_, record)| record.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(HoldId, HoldRecord)>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        scope: &Scope,
        hold: HoldId,
        change: impl FnOnce(&mut HoldRecord) -> Result<T>,
    ) -> Result<T> {
        let mut holds = self.lock();
        let own = holds.iter_mut().find(|(id, record)| *id == hold && record.owner == *scope.owner());
        let (_, record) = own.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such hold"))?;
        change(record)
    }
}

#[async_trait]
impl TenantData for RecordingLedger {
    fn store_name(&self) -> &str {
        "ledger:recording-double"
    }

    async fn export(&self, _scope: &Scope) -> Result<ExportStream> {
        Ok(export_from(Vec::new()))
    }

    async fn forget(&self, _scope: &Scope, _what: &Erase) -> Result<Erased> {
        Ok(Erased::new(self.store_name()).with_retained("a double keeps everything"))
    }
}

#[async_trait]
impl Ledger for RecordingLedger {
    async fn reserve(&self, scope: &Scope, hold: &Hold) -> Result<Reserve> {
        let mut holds = self.lock();
        let open = |record: &HoldRecord| record.hold.key == hold.key && record.owner == *scope.owner();
        if let Some((id, record)) = holds.iter().find(|(_, record)| record.charge.is_none() && open(record)) {
            return Ok(Reserve::Held(Granted::new(*id, record.granted_output, hold.wall_clock)));
        }
        let granted_output = self.most_output.map_or(hold.output_tokens, |most| most.min(hold.output_tokens));
        let id = HoldId::fresh();
        let owner = scope.owner().clone();
        holds.push((id, HoldRecord { owner, hold: *hold, granted_output, sent: false, charge: None }));
        Ok(Reserve::Held(Granted::new(id, granted_output, hold.wall_clock)))
    }

    async fn sent(&self, scope: &Scope, hold: HoldId) -> Result<()> {
        self.with(scope, hold, |record| {
            record.sent = true;
            Ok(())
        })
    }

    async fn extend(&self, scope: &Scope, hold: HoldId, _lease: Duration) -> Result<()> {
        self.with(scope, hold, |_| Ok(()))
    }

    async fn close(&self, scope: &Scope, hold: HoldId, charge: Charge) -> Result<Settled> {
        self.with(scope, hold, |record| {
            let mut settled = Settled::default();
            settled.duplicate = record.charge.is_some();
            record.charge.get_or_insert(charge);
            Ok(settled)
        })
    }

    async fn usage(&self, scope: &Scope) -> Result<UsageReport> {
        let mut report = UsageReport::default();
        for (_, record) in self.lock().iter().filter(|(_, record)| record.owner == *scope.owner()) {
            match record.charge {
                None => report.open_holds += 1,
                Some(Charge::Used { usage, estimated }) => {
                    report.used += usage;
                    report.estimated_tokens += if estimated { usage.total_tokens() } else { 0 };
                }
                Some(_) => {}
            }
        }
        Ok(report)
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }
}

/// A double of [`AuditLog`] that keeps every record in memory, unsealed.
#[derive(Debug, Default)]
pub struct RecordingAudit {
    entries: Mutex<Vec<(Owner, AuditEntry)>>,
}

impl RecordingAudit {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every record of every tenant, in order.
    #[must_use]
    pub fn entries(&self) -> Vec<(Owner, AuditEntry)> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Owner, AuditEntry)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl TenantData for RecordingAudit {
    fn store_name(&self) -> &str {
        "audit:recording-double"
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let own = self.lock().iter().filter(|(owner, _)| owner == scope.owner()).cloned().collect::<Vec<_>>();
        let item = |(owner, entry): (Owner, AuditEntry)| {
            Owned::new(owner, ExportItem::new("audit_entry", entry.event.payload.into_inner().into()))
        };
        Ok(export_from(own.into_iter().map(item).collect()))
    }

    async fn forget(&self, _scope: &Scope, _what: &Erase) -> Result<Erased> {
        Ok(Erased::new(self.store_name()).with_retained("a double keeps everything"))
    }
}

#[async_trait]
impl AuditLog for RecordingAudit {
    async fn append(&self, scope: &Scope, event: AuditEvent) -> Result<AuditReceipt> {
        let mut entries = self.lock();
        let seq = entries.len() as u64 + 1;
        entries.push((scope.owner().clone(), AuditEntry::new(seq, event)));
        Ok(AuditReceipt::new(seq))
    }

    async fn query(&self, scope: &Scope, query: &AuditQuery) -> Result<Vec<Owned<AuditEntry>>> {
        let wanted = |entry: &AuditEntry| {
            entry.seq > query.after
                && query.action.is_none_or(|action| action == entry.event.action)
                && query.run.is_none_or(|run| Some(run) == entry.event.run)
        };
        let entries = self.lock();
        let own = entries.iter().filter(|(owner, entry)| owner == scope.owner() && wanted(entry));
        Ok(own.take(query.limit).map(|(owner, entry)| Owned::new(owner.clone(), entry.clone())).collect())
    }

    async fn verify(&self) -> Result<AuditVerification> {
        let n = self.lock().len() as u64;
        Ok(AuditVerification::new(n, n.min(1), n, "0".repeat(64), Vec::new()))
    }
}
