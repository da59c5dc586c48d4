//! Breaks the ledger that an agent is given, on purpose, so that the judge can be seen to judge.
//!
//! Compiled only with the feature `fault-injection`. Nothing but [`inject`] knows that it exists.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    Charge, Epoch, Erase, Erased, EstimatedCharge, ExportStream, Granted, Hold, HoldId, HoldKey, Ledger,
    Limits, Owned, Reserve, Result, RunId, Scope, Settled, TenantData, Usage, UsageReport,
};

/// One in so many calls is broken, where not all are.
const ONE_IN: u64 = 20;

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Never tells the ledger that a request leaves: what a dead process had sent is given back.
    SkipSent,
    /// Charges twice now and then, each time under a hold of its own.
    ChargeTwice,
    /// Takes a refusal for a grant.
    IgnoreRefusals,
    /// Never closes a hold now and then.
    ForgetClose,
    /// Charges a word too few now and then.
    Undercharge,
    /// Gives back what was used now and then.
    RefundUsed,
    /// Makes leases so long that nobody lives to see their end.
    EndlessLease,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::SkipSent,
        Self::ChargeTwice,
        Self::IgnoreRefusals,
        Self::ForgetClose,
        Self::Undercharge,
        Self::RefundUsed,
        Self::EndlessLease,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::SkipSent => "skip_sent",
            Self::ChargeTwice => "charge_twice",
            Self::IgnoreRefusals => "ignore_refusals",
            Self::ForgetClose => "forget_close",
            Self::Undercharge => "undercharge",
            Self::RefundUsed => "refund_used",
            Self::EndlessLease => "endless_lease",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|fault| fault.name() == text).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|fault| fault.name()).collect();
            format!("there is no fault `{text}`; there are: {}", known.join(", "))
        })
    }
}

/// The ledger with a fault. A broken lease is made behind the witness, everything else before it.
#[derive(Debug)]
pub(super) struct Broken {
    inner: Arc<dyn Ledger>,
    fault: Fault,
    calls: AtomicU64,
}

impl Broken {
    /// `inner`, broken.
    pub(super) fn new(inner: Arc<dyn Ledger>, fault: Fault) -> Self {
        Self { inner, fault, calls: AtomicU64::new(0) }
    }

    fn now_and_then(&self) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed) % ONE_IN == ONE_IN - 1
    }

    /// The same charge again, under a hold that nobody asked for.
    async fn again(&self, scope: &Scope, charge: Charge) -> Result<()> {
        let Charge::Used { usage, .. } = charge else { return Ok(()) };
        let key = HoldKey::new(RunId::from_u128(rand::random()), 0);
        let hold = Hold::tokens(key, usage.input_tokens, usage.output_tokens);
        if let Reserve::Held(granted) = self.inner.reserve(scope, &hold).await? {
            self.inner.sent(scope, granted.id).await?;
            self.inner.close(scope, granted.id, charge).await?;
        }
        Ok(())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl TenantData for Broken {
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
impl Ledger for Broken {
    async fn reserve(&self, scope: &Scope, hold: &Hold) -> Result<Reserve> {
        if self.fault == Fault::EndlessLease {
            return self.inner.reserve(scope, &hold.with_lease(Duration::from_secs(3_600))).await;
        }
        match self.inner.reserve(scope, hold).await? {
            Reserve::Refused(_) if self.fault == Fault::IgnoreRefusals => {
                let id = HoldId::from_u128(rand::random());
                Ok(Reserve::Held(Granted::new(id, hold.output_tokens, hold.wall_clock)))
            }
            answer => Ok(answer),
        }
    }

    async fn sent(&self, scope: &Scope, hold: HoldId) -> Result<()> {
        if self.fault == Fault::SkipSent {
            return Ok(());
        }
        match (self.fault, self.inner.sent(scope, hold).await) {
            // A hold from thin air is nowhere.
            (Fault::IgnoreRefusals, Err(_)) => Ok(()),
            (_, answer) => answer,
        }
    }

    async fn extend(&self, scope: &Scope, hold: HoldId, lease: Duration) -> Result<()> {
        self.inner.extend(scope, hold, lease).await
    }

    async fn close(&self, scope: &Scope, hold: HoldId, charge: Charge) -> Result<Settled> {
        let used = matches!(charge, Charge::Used { .. });
        match self.fault {
            Fault::IgnoreRefusals => {
                let settled = self.inner.close(scope, hold, charge).await;
                return Ok(settled.unwrap_or_default());
            }
            Fault::ForgetClose if self.now_and_then() => return Ok(Settled::default()),
            Fault::RefundUsed if used && self.now_and_then() => {
                return self.inner.close(scope, hold, Charge::Refund).await;
            }
            Fault::ChargeTwice if used && self.now_and_then() => self.again(scope, charge).await?,
            _ => {}
        }
        let charge = match charge {
            Charge::Used { usage, estimated } if self.fault == Fault::Undercharge && self.now_and_then() => {
                let usage = Usage::new(usage.input_tokens.saturating_sub(1), usage.output_tokens);
                Charge::Used { usage, estimated }
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
