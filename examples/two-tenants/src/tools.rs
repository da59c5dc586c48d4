//! The one tool of the example: it pays money out, and it knows who is asking without being told.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use loomflow::prelude::*;

/// Stands in for the bank's books.
static EXECUTED: AtomicU64 = AtomicU64::new(0);

/// Refunds an amount, in cents, to the customer.
#[tool(effect = external)]
pub(crate) async fn refund(ctx: &RunContext, cents: NonZeroU64) -> String {
    EXECUTED.fetch_add(1, Ordering::SeqCst);
    let who = ctx.user_id().map_or("a visitor", UserId::as_str);
    format!("{cents} cents refunded to {who}")
}

/// How many refunds were executed.
pub(crate) fn executed() -> u64 {
    EXECUTED.load(Ordering::SeqCst)
}
