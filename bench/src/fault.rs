//! Breaks the system under test on purpose, each part behind its own trait, so that the detectors can be seen to detect.
//!
//! Compiled only with the feature `fault-injection`. Nothing outside this room and the one call in [`crate::system`] knows
//! that it exists: what looks for violations looks the same way with and without it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::danger::take_unchecked;
use loomflow_core::{
    AuditEntry, AuditEvent, AuditLog, AuditQuery, AuditReceipt, AuditVerification, Capabilities, Charge,
    EpisodeId, EpisodeMatch, Epoch, Erase, Erased, EstimatedCharge, ExportStream, FactStore, HistoryLimit,
    Hold, HoldId, Ledger, Limits, MemoryBlock, MemoryProfile, MemoryStore, Message, NewEpisode, Owned, Owner,
    PutBlock, RecallQuery, Reserve, Result, RunId, Scope, SessionId, Settled, TenantData, Usage, UsageReport,
};
use parking_lot::Mutex;

use crate::config::Fault;
use crate::system::Parts;

/// One in so many calls is broken.
const ONE_IN: u64 = 50;

/// The parts with one of them broken.
pub(crate) fn inject(fault: Option<Fault>, parts: Parts) -> Parts {
    match fault {
        None => parts,
        Some(Fault::Leak) => Parts { memory: Arc::new(Leaky::new(parts.memory)), ..parts },
        Some(Fault::DoubleCharge) => {
            Parts { ledger: Arc::new(Greedy { inner: parts.ledger, turn: Turn::default() }), ..parts }
        }
        Some(Fault::LostAudit) => {
            Parts { audit: Arc::new(Forgetful { inner: parts.audit, turn: Turn::default() }), ..parts }
        }
    }
}

/// Says when it is time to break something.
#[derive(Debug, Default)]
struct Turn(AtomicU64);

impl Turn {
    fn comes(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) % ONE_IN == ONE_IN - 1
    }
}

macro_rules! tenant_data {
    ($name:ident) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl TenantData for $name {
            fn store_name(&self) -> &str {
                self.inner.store_name()
            }

            async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
                self.inner.epoch(scope).await
            }

            async fn ready(&self) -> loomflow_core::resilience::Readiness {
                self.inner.ready().await
            }

            async fn export(&self, scope: &Scope) -> Result<ExportStream> {
                self.inner.export(scope).await
            }

            async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
                self.inner.forget(scope, what).await
            }
        }
    };
}

/// Sometimes answers with what it answered somebody else, labelled as the asker's own: no tripwire can see that.
#[derive(Debug)]
struct Leaky {
    inner: Arc<dyn MemoryStore>,
    turn: Turn,
    histories: Mutex<VecDeque<(Owner, Message)>>,
    episodes: Mutex<VecDeque<(Owner, EpisodeMatch)>>,
}

const REMEMBERED: usize = 64;

impl Leaky {
    fn new(inner: Arc<dyn MemoryStore>) -> Self {
        Self { inner, turn: Turn::default(), histories: Mutex::default(), episodes: Mutex::default() }
    }

    /// Remembers some of what passes, and now and then adds something of somebody else's.
    fn mix<T: Clone>(
        &self,
        scope: &Scope,
        passing: Vec<Owned<T>>,
        seen: &Mutex<VecDeque<(Owner, T)>>,
    ) -> Vec<Owned<T>> {
        let mut seen = seen.lock();
        let stolen = seen.iter().find(|(owner, _)| !scope.owns(owner)).map(|(_, value)| value.clone());
        let mut out: Vec<Owned<T>> = passing
            .into_iter()
            .map(|owned| {
                let owner = owned.owner().clone();
                let value = take_unchecked(owned);
                seen.push_back((owner.clone(), value.clone()));
                Owned::new(owner, value)
            })
            .collect();
        while seen.len() > REMEMBERED {
            seen.pop_front();
        }
        if let Some(value) = stolen
            && self.turn.comes()
        {
            out.push(Owned::new(scope.owner().clone(), value));
        }
        out
    }
}

tenant_data!(Leaky);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MemoryStore for Leaky {
    async fn remember(&self, scope: &Scope, episode: NewEpisode) -> Result<EpisodeId> {
        self.inner.remember(scope, episode).await
    }

    async fn recall(&self, scope: &Scope, query: &RecallQuery) -> Result<Vec<Owned<EpisodeMatch>>> {
        let found = self.inner.recall(scope, query).await?;
        Ok(self.mix(scope, found, &self.episodes))
    }

    async fn history(
        &self,
        scope: &Scope,
        session: &SessionId,
        limit: HistoryLimit,
    ) -> Result<Vec<Owned<Message>>> {
        let found = self.inner.history(scope, session, limit).await?;
        Ok(self.mix(scope, found, &self.histories))
    }

    async fn blocks(&self, scope: &Scope) -> Result<Vec<Owned<MemoryBlock>>> {
        self.inner.blocks(scope).await
    }

    async fn put_block(&self, scope: &Scope, block: PutBlock) -> Result<()> {
        self.inner.put_block(scope, block).await
    }

    async fn profile(&self, scope: &Scope) -> Result<Owned<MemoryProfile>> {
        self.inner.profile(scope).await
    }

    fn facts(&self) -> Option<&dyn FactStore> {
        self.inner.facts()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
}

/// Sometimes charges twice.
#[derive(Debug)]
struct Greedy {
    inner: Arc<dyn Ledger>,
    turn: Turn,
}

tenant_data!(Greedy);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Ledger for Greedy {
    async fn reserve(&self, scope: &Scope, hold: &Hold) -> Result<Reserve> {
        self.inner.reserve(scope, hold).await
    }

    async fn sent(&self, scope: &Scope, hold: HoldId) -> Result<()> {
        self.inner.sent(scope, hold).await
    }

    async fn extend(&self, scope: &Scope, hold: HoldId, lease: Duration) -> Result<()> {
        self.inner.extend(scope, hold, lease).await
    }

    async fn close(&self, scope: &Scope, hold: HoldId, charge: Charge) -> Result<Settled> {
        let charge = match charge {
            Charge::Used { usage, estimated } if self.turn.comes() => {
                let twice = Usage::new(2 * usage.input_tokens, 2 * usage.output_tokens);
                Charge::Used { usage: twice.with_cost(usage.cost_usd), estimated }
            }
            charge => charge,
        };
        self.inner.close(scope, hold, charge).await
    }

    async fn estimates(&self, scope: &Scope) -> Result<Vec<Owned<EstimatedCharge>>> {
        self.inner.estimates(scope).await
    }

    async fn reconcile(&self, scope: &Scope, hold: HoldId, actual: Usage) -> Result<Settled> {
        self.inner.reconcile(scope, hold, actual).await
    }

    async fn namespace_usage(&self, scope: &Scope) -> Result<UsageReport> {
        self.inner.namespace_usage(scope).await
    }

    async fn usage(&self, scope: &Scope) -> Result<UsageReport> {
        self.inner.usage(scope).await
    }

    async fn end_run(&self, scope: &Scope, run: RunId) -> Result<()> {
        self.inner.end_run(scope, run).await
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }
}

/// Sometimes acknowledges an entry that it never wrote.
#[derive(Debug)]
struct Forgetful {
    inner: Arc<dyn AuditLog>,
    turn: Turn,
}

tenant_data!(Forgetful);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl AuditLog for Forgetful {
    async fn append(&self, scope: &Scope, event: AuditEvent) -> Result<AuditReceipt> {
        if self.turn.comes() {
            return Ok(AuditReceipt::new(self.turn.0.load(Ordering::Relaxed)));
        }
        self.inner.append(scope, event).await
    }

    async fn query(&self, scope: &Scope, query: &AuditQuery) -> Result<Vec<Owned<AuditEntry>>> {
        self.inner.query(scope, query).await
    }

    async fn verify(&self) -> Result<AuditVerification> {
        self.inner.verify().await
    }
}
