//! What stands between an agent and its ledger in a worker: it notes what was granted and what was acknowledged, in a file
//! that survives the process, and shortens leases so that nobody has to wait minutes for one to run out.
//!
//! A note is one write to the system, so SIGKILL takes nothing of it. `close` is noted before and after: what was only begun
//! may have happened or not.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    Charge, Epoch, Erase, Erased, Error, ErrorKind, EstimatedCharge, ExportStream, Hold, HoldId, Ledger,
    Limits, Owned, Reserve, Result, RunId, Scope, Settled, TenantData, Usage, UsageReport,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::wire::written;

/// One line of a worker's notes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_enums, reason = "read by the judge beside it")]
pub(super) enum Note {
    /// Granted.
    #[serde(rename = "h")]
    Held {
        /// The hold.
        hold: HoldId,
        /// What it is for, as the invoice writes it.
        key: String,
        /// Whose.
        user: String,
    },
    /// A close is about to be asked for.
    #[serde(rename = "i")]
    Closing {
        /// The hold.
        hold: HoldId,
        /// What is charged.
        charged: Charged,
    },
    /// The close was acknowledged.
    #[serde(rename = "c")]
    Closed {
        /// The hold.
        hold: HoldId,
        /// What was charged.
        charged: Charged,
    },
    /// The close failed, or nobody knows.
    #[serde(rename = "e")]
    Failed {
        /// The hold.
        hold: HoldId,
    },
    /// The process ended as it should: nothing of it is under way any more.
    #[serde(rename = "x")]
    End,
}

/// What a close charges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "read by the judge beside it")]
pub(super) struct Charged {
    /// Prompt tokens.
    pub(super) input: u64,
    /// Generated tokens.
    pub(super) output: u64,
    /// Whether they are estimated.
    pub(super) estimated: bool,
}

impl Charged {
    fn of(charge: &Charge) -> Self {
        match charge {
            Charge::Used { usage, estimated } => {
                Self { input: usage.input_tokens, output: usage.output_tokens, estimated: *estimated }
            }
            _ => Self::default(),
        }
    }
}

/// The witness.
#[derive(Debug)]
pub(super) struct Witness {
    inner: Arc<dyn Ledger>,
    notes: Mutex<File>,
    lease: Duration,
}

impl Witness {
    /// Notes what passes to `inner` in the file `notes`. No lease is longer than `lease`.
    ///
    /// # Errors
    ///
    /// When the file cannot be made.
    pub(super) fn new(inner: Arc<dyn Ledger>, notes: &Path, lease: Duration) -> io::Result<Self> {
        Ok(Self { inner, notes: Mutex::new(File::create(notes)?), lease })
    }

    /// Writes a note down.
    ///
    /// # Errors
    ///
    /// When the disk is full, say. Nothing may go on that was not noted.
    pub(super) fn note(&self, note: &Note) -> Result<()> {
        let mut line = serde_json::to_string(note)
            .map_err(|e| Error::new(ErrorKind::Internal, "a note is plain data").with_source(e))?;
        line.push('\n');
        let noted = self.notes.lock().write_all(line.as_bytes());
        noted.map_err(|e| Error::new(ErrorKind::Internal, "the witness cannot write").with_source(e))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl TenantData for Witness {
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

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Ledger for Witness {
    async fn reserve(&self, scope: &Scope, hold: &Hold) -> Result<Reserve> {
        let lease = hold.lease.min(self.lease);
        let answer = self.inner.reserve(scope, &hold.with_lease(lease)).await?;
        if let Reserve::Held(granted) = &answer {
            let user = scope.user_id().map_or("", |user| user.as_str()).to_owned();
            self.note(&Note::Held { hold: granted.id, key: written(hold.key), user })?;
        }
        Ok(answer)
    }

    async fn sent(&self, scope: &Scope, hold: HoldId) -> Result<()> {
        self.inner.sent(scope, hold).await
    }

    async fn extend(&self, scope: &Scope, hold: HoldId, lease: Duration) -> Result<()> {
        self.inner.extend(scope, hold, lease.min(self.lease)).await
    }

    async fn close(&self, scope: &Scope, hold: HoldId, charge: Charge) -> Result<Settled> {
        let charged = Charged::of(&charge);
        self.note(&Note::Closing { hold, charged })?;
        let settled = self.inner.close(scope, hold, charge).await;
        self.note(&match settled {
            Ok(_) => Note::Closed { hold, charged },
            Err(_) => Note::Failed { hold },
        })?;
        settled
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
