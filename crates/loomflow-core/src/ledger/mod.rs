//! Quota as plain data: what a ledger backend implements, and the type-state wrapper the model door uses.

mod config;
mod reservation;
mod types;

use async_trait::async_trait;

pub use config::{BudgetConfig, Caps, Window};
pub(crate) use reservation::HoldTicket;
pub use reservation::{Held, Phase, Reservation, Sent};
pub use types::{
    Cap, CapUsage, Charge, Entity, Granted, Hold, HoldKey, Limits, Refusal, RefusalReason, Reserve, Settled,
    UsageReport, Warning,
};

use crate::error::Result;
use crate::ids::{HoldId, RunId};
use crate::scope::Scope;
use crate::tenant_data::TenantData;
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
