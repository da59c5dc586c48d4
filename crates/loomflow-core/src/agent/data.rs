//! What a tenant can do with their own data: look, export, erase, go on with a run.

use std::sync::Arc;

use futures_util::StreamExt as _;
use serde::Serialize;

use crate::agent::execute::input_of;
use crate::agent::{Run, UserAgent};
use crate::audit::{Action, Actor, AuditEntry, AuditEvent, AuditQuery};
use crate::clock::Timestamp;
use crate::closer::Handoff;
use crate::context::{open_all, open_owned};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::RunId;
use crate::ledger::UsageReport;
use crate::memory::ScopedMemory;
use crate::redact::Redacted;
use crate::runtime::RunRecord;
use crate::scope::{Epoch, Scope};
use crate::tenant_data::{Erase, Erased, ExportItem, ExportStream};

/// How often an erasure that met another one draws a newer epoch.
const ERASURE_ATTEMPTS: u32 = 5;

/// What an erasure did, store by store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ForgetReceipt {
    /// When.
    pub at: Timestamp,
    /// The partition's epoch from now on: a write that carries an older one is refused.
    pub epoch: Epoch,
    /// One line per store.
    pub stores: Vec<Erased>,
}

impl ForgetReceipt {
    /// How many records went, over all stores.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.stores.iter().map(Erased::total).sum()
    }
}

impl UserAgent {
    /// The tenant's memory.
    ///
    /// # Errors
    ///
    /// Whatever the stores fail with when they are asked for the partition's epoch.
    pub async fn memory(&self) -> Result<ScopedMemory> {
        Ok(ScopedMemory::within(self.agent.services.clone(), self.scope().await?))
    }

    /// What the tenant has used and holds, against each cap.
    ///
    /// # Errors
    ///
    /// Whatever the ledger fails with.
    pub async fn usage(&self) -> Result<UsageReport> {
        self.agent.ledger.usage(&self.scope().await?).await
    }

    /// The tenant's own audit entries.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::IsolationViolation`] when the log returned another tenant's; whatever it fails with.
    pub async fn audit(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>> {
        let scope = self.scope().await?;
        let services = &self.agent.services;
        open_all(services, &scope, "audit", services.audit.query(&scope, query).await?).await
    }

    /// Everything that every store holds for the tenant, store after store. Recorded in the audit log.
    ///
    /// # Errors
    ///
    /// Whatever a store fails with. The stream ends with [`ErrorKind::IsolationViolation`] at the first item of another
    /// tenant.
    pub async fn export(
        &self,
    ) -> Result<impl futures_core::Stream<Item = Result<ExportItem>> + Send + use<>> {
        let scope = Arc::new(self.scope().await?);
        let mut streams: Vec<ExportStream> = Vec::new();
        for store in self.agent.stores() {
            streams.push(store.export(&scope).await?);
        }
        let payload = self.agent.services.redactor.object().num("stores", streams.len() as u64).finish();
        self.record(&scope, Action::MemoryExport, payload).await?;
        let services = self.agent.services.clone();
        Ok(futures_util::stream::iter(streams).flatten().then(move |item| {
            let (services, scope) = (services.clone(), scope.clone());
            async move { open_owned(&services, &scope, "export", item?).await }
        }))
    }

    /// Erases the tenant's data in every store, and refuses late writes of runs in flight. Recorded in the audit log.
    ///
    /// Every store is tried. A store that fails does not keep the others from erasing; the call then fails, and can be
    /// repeated.
    ///
    /// # Errors
    ///
    /// Whatever the first failing store failed with, naming it.
    pub async fn forget(&self, what: Erase) -> Result<ForgetReceipt> {
        let slot = self.agent.closer.enter(rand::random())?;
        let user = self.clone();
        // Half an erasure is none: a caller who goes away leaves the rest of it to the closer.
        Handoff::new(slot, Box::pin(async move { user.forget_everywhere(&what).await })).await
    }

    async fn forget_everywhere(&self, what: &Erase) -> Result<ForgetReceipt> {
        let mut lost = None;
        for _ in 0..ERASURE_ATTEMPTS {
            let epoch = self.scope().await?.epoch().next();
            let scope = Scope::mint(self.owner.clone(), epoch);
            match self.forget_in(&scope, what).await {
                // Another erasure drew the same epoch and was first: this one needs a newer.
                Err(error) if error.kind() == ErrorKind::Conflict => lost = Some(error),
                other => return other,
            }
        }
        Err(lost.unwrap_or_else(|| Error::new(ErrorKind::Conflict, "too many erasures at once; try again")))
    }

    async fn forget_in(&self, scope: &Scope, what: &Erase) -> Result<ForgetReceipt> {
        let epoch = scope.epoch();
        let mut receipt = ForgetReceipt { at: self.agent.services.clock.now(), epoch, stores: Vec::new() };
        let mut failure = None;
        for store in self.agent.stores() {
            match store.forget(scope, what).await {
                Ok(line) => receipt.stores.push(line),
                Err(error) => failure = failure.or(Some(error.with_context("store", store.store_name()))),
            }
        }
        match self.agent.services.cache.clear(scope).await {
            Ok(n) => receipt.stores.push(Erased::new("tool_cache").with_count("entry", n)),
            Err(error) => failure = failure.or(Some(error.with_context("store", "tool_cache"))),
        }
        let payload = self.agent.services.redactor.object().num("records", receipt.total());
        let payload = payload.num("epoch", epoch.get()).bool("complete", failure.is_none()).finish();
        self.record(scope, Action::MemoryForget, payload).await?;
        failure.map_or(Ok(receipt), Err)
    }

    /// The tenant's runs that are not ended, oldest first.
    ///
    /// # Errors
    ///
    /// Whatever the runtime fails with; without one there are none.
    pub async fn open_runs(&self) -> Result<Vec<RunRecord>> {
        let Some(runtime) = &self.agent.runtime else { return Ok(Vec::new()) };
        let scope = self.scope().await?;
        open_all(&self.agent.services, &scope, "runtime", runtime.open_runs(&scope).await?).await
    }

    /// Goes on with one of the tenant's runs that was cut off, from what its journal has: recorded effects are not made
    /// again, and not charged again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for a run that is not there or not theirs, [`ErrorKind::Unsupported`] without a journal.
    pub async fn resume(&self, run: RunId) -> Result<Run> {
        let runtime = self.agent.runtime.as_ref();
        let runtime = runtime
            .filter(|r| r.journals())
            .ok_or_else(|| Error::unsupported("the agent's runtime", "resume"))?;
        let scope = self.scope().await?;
        let found = runtime.load(&scope, run).await?;
        let record = open_owned(&self.agent.services, &scope, "runtime", found).await?;
        if record.status.is_terminal() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{run} is {} and cannot go on", record.status.as_str()),
            ));
        }
        Ok(Run::new(self.clone(), input_of(&record.input)?).resuming(run, record.session))
    }

    pub(super) async fn scope(&self) -> Result<Scope> {
        self.agent.mint(&self.owner).await
    }

    async fn record(&self, scope: &Scope, action: Action, payload: Redacted<String>) -> Result<()> {
        let services = &self.agent.services;
        let event = AuditEvent::new(services.clock.now(), Actor::User, action, payload);
        services.audit.append(scope, event).await.map(drop)
    }
}
