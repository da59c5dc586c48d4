//! Quota as plain data: what a ledger backend implements, and the type-state wrapper the model door uses.

mod closing;
mod config;
mod reservation;
mod types;

use async_trait::async_trait;

pub(crate) use closing::{CLOSING_LIMIT, close};
pub use config::{BudgetConfig, Caps, Window};
pub(crate) use reservation::{HearsWarnings, HoldTicket};
pub use reservation::{Held, Phase, Reservation, Sent};
pub use types::{
    Cap, CapUsage, Charge, Entity, EstimatedCharge, Granted, Hold, HoldKey, Limits, Refusal, RefusalReason,
    Reserve, Settled, UsageReport, Warning,
};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{HoldId, RunId};
use crate::scope::{Owned, Scope};
use crate::tenant_data::TenantData;
use crate::usage::Usage;
use std::time::Duration;

/// Keeps the count of what each user, each run and all together have spent and hold.
///
/// Invariant, at every instant and under any concurrency: for every cap, `used + held ≤ limit`, unless a provider
/// delivered more than was held; that excess is recorded and reported, never lost.
///
/// A hold has a lease. A hold that was never marked sent is refunded when its lease runs out; one that was sent is
/// charged its estimate then, marked `estimated`.
///
/// Every future may be dropped at any await: the operation then happened whole or not at all, and every operation but
/// `extend` may be repeated with the same arguments without counting twice.
#[async_trait]
pub trait Ledger: TenantData {
    /// Sets aside what a call may cost, against every cap at once, or refuses without setting anything aside.
    ///
    /// - Grants fewer output tokens (and less wall clock) than asked for when the caps leave less, but never less than
    ///   the hold's minimum.
    /// - The same [`HoldKey`] again, with the same amounts and price, returns the same hold while it is open. With
    ///   others it is [`ErrorKind::Conflict`](crate::ErrorKind::Conflict): what was judged is not what is asked for now.
    /// - An unknown price under a cost cap is refused, never counted as zero.
    /// - A full table of users refuses a new user with [`RefusalReason::Capacity`].
    async fn reserve(&self, scope: &Scope, hold: &Hold) -> Result<Reserve>;

    /// Records that the request is about to leave: from now on an expired lease charges the estimate.
    ///
    /// - An unknown, closed or foreign hold is [`ErrorKind::NotFound`](crate::ErrorKind::NotFound).
    async fn sent(&self, scope: &Scope, hold: HoldId) -> Result<()>;

    /// Moves the end of the hold's lease to `lease` from now.
    ///
    /// - An unknown, closed or foreign hold is [`ErrorKind::NotFound`](crate::ErrorKind::NotFound).
    async fn extend(&self, scope: &Scope, hold: HoldId, lease: Duration) -> Result<()>;

    /// Ends a hold and counts what was really used, even where it is more than was held.
    ///
    /// - A hold that is closed already (or expired) is not counted again: the answer says `duplicate`. An actual
    ///   charge after an expiry replaces the estimate that the expiry charged.
    /// - A foreign hold is [`ErrorKind::NotFound`](crate::ErrorKind::NotFound).
    async fn close(&self, scope: &Scope, hold: HoldId, charge: Charge) -> Result<Settled>;

    /// The charges of this scope's user that are estimates, because the call ended before the provider reported, or its
    /// process died; oldest hold first. Each can be [reconciled](Self::reconcile) for as long as it is listed: how many a
    /// ledger keeps of a user is bounded, and the oldest ones stand as they are.
    ///
    /// - A ledger that keeps none is [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported), which is the default.
    async fn estimates(&self, scope: &Scope) -> Result<Vec<Owned<EstimatedCharge>>> {
        let _ = scope;
        Err(unsupported(self.store_name(), "keeps no list of estimated charges"))
    }

    /// Puts what the provider invoiced in the place of an estimate, in the window it was charged in. `actual.cost_usd` is
    /// what it cost.
    ///
    /// - A hold that is reconciled already, or was charged what the provider reported, is not counted again: the answer
    ///   says `duplicate`.
    /// - An open hold is [`ErrorKind::Conflict`](crate::ErrorKind::Conflict): its call has not ended.
    /// - A foreign hold is [`ErrorKind::NotFound`](crate::ErrorKind::NotFound).
    async fn reconcile(&self, scope: &Scope, hold: HoldId, actual: Usage) -> Result<Settled> {
        let _ = (scope, hold, actual);
        Err(unsupported(self.store_name(), "keeps no estimate that could be corrected"))
    }

    /// What all users of the scope's namespace together have used and hold, against the caps of all users together: an
    /// operator's view, in which nobody is named. Counted only where such caps are set;
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) otherwise. `open_holds` is zero where the ledger does not
    /// count them over all users.
    async fn namespace_usage(&self, scope: &Scope) -> Result<UsageReport> {
        let _ = scope;
        Err(unsupported(self.store_name(), "counts no usage of all users together"))
    }

    /// What this scope's user has used and holds, against each of their caps. Looking does not keep an idle user alive.
    async fn usage(&self, scope: &Scope) -> Result<UsageReport>;

    /// Forgets the per-run counters of a run that ended. Holds of the run that are still open stay counted.
    async fn end_run(&self, scope: &Scope, run: RunId) -> Result<()> {
        let _ = (scope, run);
        Ok(())
    }

    /// Which kinds of caps are set, so that the loop does not ask for what nobody limits.
    fn limits(&self) -> Limits;
}

fn unsupported(store: &str, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{store} {what}"))
}
