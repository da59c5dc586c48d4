//! Closing a hold through an outage: what was spent is told to the ledger when the ledger is there again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::Result;
use crate::ids::HoldId;
use crate::ledger::{Charge, Ledger, Settled};
use crate::scope::Scope;

/// How long a close is tried for. Within the margin that a hold's lease has beyond the deadline of its run, so that what is
/// closed late is seldom an estimate already.
pub(crate) const CLOSING_LIMIT: Duration = Duration::from_secs(50);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause, also of a store that asks for a longer one: it may be back sooner than it fears.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Ends a hold, and tries again while the ledger fails in a way that may pass. A close is idempotent: one whose answer was
/// lost is not counted twice.
///
/// # Errors
///
/// The ledger's own, at once where trying again is no use, else the last one after [`CLOSING_LIMIT`]; the hold's lease then
/// charges the estimate or gives it back.
pub(crate) async fn close(
    ledger: Arc<dyn Ledger>,
    scope: Scope,
    hold: HoldId,
    charge: Charge,
) -> Result<Settled> {
    let until = Instant::now() + CLOSING_LIMIT;
    let mut pause = FIRST_PAUSE;
    loop {
        match ledger.close(&scope, hold, charge).await {
            Err(error) if error.is_retryable() && Instant::now() + pause < until => {
                let wait = error.retry_after().unwrap_or_default().max(pause).min(LONGEST_PAUSE);
                // Those that failed together do not come back together.
                sleep(wait.mul_f64(0.5 + 0.5 * rand::random::<f64>())).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            ended => return ended,
        }
    }
}
