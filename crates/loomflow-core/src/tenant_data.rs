//! What every store of tenant data implements: export and erasure.

use std::fmt;
use std::pin::Pin;

use async_trait::async_trait;
use futures_core::Stream;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Timestamp;
use crate::error::Result;
use crate::identity::SessionId;
use crate::resilience::Readiness;
use crate::scope::{Epoch, Owned, Scope};

/// A stream of everything a store holds for a partition, oldest first.
pub type ExportStream = Pin<Box<dyn Stream<Item = Result<Owned<ExportItem>>> + Send + 'static>>;

/// One exported record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExportItem {
    /// What it is: `episode`, `fact`, `block`, `approval`, `counter`, `audit_entry`, ...
    pub kind: String,
    /// The record.
    pub data: Value,
}

impl ExportItem {
    /// A record of `kind`.
    #[must_use]
    pub fn new(kind: impl Into<String>, data: Value) -> Self {
        Self { kind: kind.into(), data }
    }
}

/// What to erase of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Erase {
    /// Only this session (its episodes and every fact that came from them alone); blocks and the rest stay.
    pub session: Option<SessionId>,
    /// Only what happened before this moment.
    pub before: Option<Timestamp>,
}

impl Erase {
    /// All of the partition.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// One session of the partition.
    #[must_use]
    pub fn session(session: SessionId) -> Self {
        Self { session: Some(session), before: None }
    }

    /// What happened before `moment`.
    #[must_use]
    pub fn before(moment: Timestamp) -> Self {
        Self { session: None, before: Some(moment) }
    }

    /// Limits the erasure to what happened before `moment`.
    #[must_use]
    pub fn with_before(mut self, moment: Timestamp) -> Self {
        self.before = Some(moment);
        self
    }

    /// Whether the whole partition goes.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.session.is_none() && self.before.is_none()
    }
}

/// One store's line of an erasure receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Erased {
    /// The store, such as `memory:inmemory`. Never a credential.
    pub store: String,
    /// How many records went, by kind.
    pub counts: Vec<(String, u64)>,
    /// What was kept, and why; empty when nothing was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retained: Vec<String>,
}

impl Erased {
    /// A line for `store` with nothing erased.
    #[must_use]
    pub fn new(store: impl Into<String>) -> Self {
        Self { store: store.into(), counts: Vec::new(), retained: Vec::new() }
    }

    /// Adds how many records of `kind` went.
    #[must_use]
    pub fn with_count(mut self, kind: impl Into<String>, n: u64) -> Self {
        self.counts.push((kind.into(), n));
        self
    }

    /// Says what was kept, and why.
    #[must_use]
    pub fn with_retained(mut self, why: impl Into<String>) -> Self {
        self.retained.push(why.into());
        self
    }

    /// How many records went, over all kinds.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|(_, n)| n).sum()
    }
}

/// Everything that stores tenant data implements this: memory, journal, approvals, ledger, audit.
#[async_trait]
pub trait TenantData: fmt::Debug + Send + Sync + 'static {
    /// The store's name in receipts and reports, such as `memory:inmemory`. Never a credential.
    fn store_name(&self) -> &str;

    /// The partition's erasure epoch as this store knows it; [`Epoch::ZERO`] for a partition it never erased.
    ///
    /// - A store that refuses late writes by epoch answers with the stored one, and it survives eviction.
    /// - A store that keeps nothing a late write could bring back keeps this default.
    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        let _ = scope;
        Ok(Epoch::ZERO)
    }

    /// Whether the store can be used now, for a readiness probe: asks its server something cheap. A store without a
    /// server is always ready.
    async fn ready(&self) -> Readiness {
        Readiness::ready()
    }

    /// Everything held for this partition, streamed and complete.
    ///
    /// - An unknown partition is an empty stream, not an error.
    /// - Items carry the owner decoded from the stored record.
    async fn export(&self, scope: &Scope) -> Result<ExportStream>;

    /// Erases `what` and raises the stored epoch to the scope's, in one step: the scope that is passed here was
    /// minted for the erasure and carries the new epoch.
    ///
    /// - An unknown partition is a line with zero counts, and the epoch is raised all the same.
    /// - A store that keeps an epoch refuses a scope whose epoch is not newer than the stored one with
    ///   [`ErrorKind::Conflict`](crate::ErrorKind::Conflict), before it touches anything: two erasures that overlap would
    ///   share an epoch, and a run that began between them could write back what the second erased. Mint a newer epoch
    ///   and try again. A store without an epoch (the ledger, the audit log) accepts any scope.
    /// - Other partitions are untouched, those of the same user in other namespaces included.
    /// - A store that must keep something (a quota until its window ends, an audit chain) says so in
    ///   [`Erased::retained`].
    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased>;
}

/// An export stream over records that are already in memory.
#[must_use]
pub fn export_from(items: Vec<Owned<ExportItem>>) -> ExportStream {
    Box::pin(futures_util::stream::iter(items.into_iter().map(Ok)))
}
