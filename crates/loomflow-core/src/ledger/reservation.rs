//! A hold as a type: it can be sent once, settled once, and it closes itself when it is dropped.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::closer::{Handoff, Slot, Work};
use crate::error::Result;
use crate::ids::HoldId;
use crate::ledger::{Charge, HoldKey, Ledger, Settled, Warning, close};
use crate::scope::Scope;
use crate::usage::{Price, Usage};

/// A reservation whose request has not left yet. Dropped: the hold is given back.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Held;

/// A reservation whose request may have left. Dropped: the prompt and what was streamed are charged as an estimate,
/// because the provider bills them.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Sent;

/// Which state a reservation is in. Sealed: [`Held`] and [`Sent`] are all there is.
pub trait Phase: sealed::Sealed {
    #[doc(hidden)]
    const SENT: bool;
}

impl Phase for Held {
    const SENT: bool = false;
}

impl Phase for Sent {
    const SENT: bool = true;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Held {}
    impl Sealed for super::Sent {}
}

/// Who is told of the caps that a charge brought to their warning line, when nobody waits for the charge any more.
pub(crate) trait HearsWarnings: Send + Sync {
    /// Tells of them.
    fn hear(self: Arc<Self>, warnings: Vec<Warning>) -> Work<Result<()>>;
}

/// A hold in a ledger, owned. `Reservation<Held>` → [`sent`](Reservation::sent) → `Reservation<Sent>` →
/// [`settle`](Reservation::settle).
///
/// `Drop` cannot await, so a reservation owns a place in the closer's queue that was taken before the hold existed:
/// dropping it hands the close to the closer, synchronously, and that cannot fail for want of room.
#[must_use = "a reservation that is dropped is refunded (held) or charged its estimate (sent)"]
pub struct Reservation<P: Phase> {
    open: Option<Open>,
    phase: PhantomData<P>,
}

struct Open {
    ledger: Arc<dyn Ledger>,
    scope: Scope,
    hold: HoldId,
    key: HoldKey,
    input_tokens: u64,
    output_tokens: u64,
    streamed: u64,
    /// What was generated at least, for all that anybody can know.
    unseen: u64,
    price: Option<Price>,
    hears: Arc<dyn HearsWarnings>,
    slot: Slot,
}

/// What a reservation is made of.
pub(crate) struct HoldTicket {
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) scope: Scope,
    pub(crate) hold: HoldId,
    pub(crate) key: HoldKey,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) price: Option<Price>,
    pub(crate) hears: Arc<dyn HearsWarnings>,
    pub(crate) slot: Slot,
}

impl<P: Phase> Reservation<P> {
    /// Generated tokens that were set aside.
    #[must_use]
    pub fn output_tokens(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.output_tokens)
    }

    pub(crate) fn key(&self) -> HoldKey {
        self.open.as_ref().expect("a reservation is open until it is settled, and settling consumes it").key
    }
}

impl Reservation<Held> {
    pub(crate) fn new(ticket: HoldTicket) -> Self {
        let HoldTicket { ledger, scope, hold, key, input_tokens, output_tokens, price, hears, slot } = ticket;
        let (streamed, unseen) = (0, 0);
        let open = Open {
            ledger,
            scope,
            hold,
            key,
            input_tokens,
            output_tokens,
            streamed,
            unseen,
            price,
            hears,
            slot,
        };
        Self { open: Some(open), phase: PhantomData }
    }

    /// Records in the ledger that the request is about to leave. Only then may it leave.
    ///
    /// # Errors
    ///
    /// Whatever the ledger fails with; the hold is then given back.
    pub async fn sent(mut self) -> Result<Reservation<Sent>> {
        if let Some(open) = &self.open {
            open.ledger.sent(&open.scope, open.hold).await?;
        }
        Ok(Reservation { open: self.open.take(), phase: PhantomData })
    }
}

impl Reservation<Sent> {
    /// Counts generated tokens as they arrive, for the case that the rest never does.
    pub fn streamed(&mut self, tokens: u64) {
        if let Some(open) = &mut self.open {
            open.streamed = open.streamed.saturating_add(tokens);
        }
    }

    /// Takes all the granted output for generated until the provider says otherwise: a model that reasons in silence may have
    /// made it without a word.
    pub(crate) fn may_be_unseen(&mut self) {
        if let Some(open) = &mut self.open {
            open.unseen = open.output_tokens;
        }
    }

    /// Charges what the provider reports, and ends the hold. `None` charges the estimate, marked as such.
    ///
    /// Dropping the future does not lose the charge: the closer finishes it. The answer's warnings are the caller's to tell.
    ///
    /// # Errors
    ///
    /// Whatever the ledger fails with, after trying for a while where that may help; the hold's lease then charges the
    /// estimate.
    pub async fn settle(self, usage: Option<Usage>) -> Result<Settled> {
        self.settle_and_tell(usage).1.await
    }

    /// Like `settle`; says at once what is charged.
    pub(crate) fn settle_and_tell(mut self, usage: Option<Usage>) -> (Usage, Handoff<Result<Settled>>) {
        let open =
            self.open.take().expect("a reservation is open until it is settled, and settling consumes it");
        let (usage, estimated) = open.bill(usage);
        (usage, open.close(Charge::Used { usage, estimated }))
    }

    /// Gives the hold back: the provider is known to have taken no order.
    pub(crate) fn refund(mut self) -> Handoff<Result<Settled>> {
        let open =
            self.open.take().expect("a reservation is open until it is settled, and settling consumes it");
        open.close(Charge::Refund)
    }
}

impl Open {
    fn bill(&self, reported: Option<Usage>) -> (Usage, bool) {
        let estimated = reported.is_none();
        let usage = reported.unwrap_or_else(|| Usage::new(self.input_tokens, self.streamed.max(self.unseen)));
        let cost = self.price.map(|p| p.cost(&usage)).unwrap_or_default();
        (usage.with_cost(cost), estimated)
    }

    fn close(self, charge: Charge) -> Handoff<Result<Settled>> {
        let Self { ledger, scope, hold, slot, .. } = self;
        Handoff::new(slot, Box::pin(close(ledger, scope, hold, charge)))
    }

    /// As [`Open::close`], for when nobody will look at the answer.
    fn close_alone(self, charge: Charge) -> Handoff<Result<()>> {
        let Self { ledger, scope, hold, slot, hears, .. } = self;
        let closing = async move {
            let settled = close(ledger, scope, hold, charge).await?;
            hears.hear(settled.warnings).await
        };
        Handoff::new(slot, Box::pin(closing))
    }
}

impl<P: Phase> Drop for Reservation<P> {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            let charge = if P::SENT {
                let (usage, estimated) = open.bill(None);
                Charge::Used { usage, estimated }
            } else {
                Charge::Refund
            };
            // Dropping a handoff that was never polled gives it to the closer.
            drop(open.close_alone(charge));
        }
    }
}

impl<P: Phase> fmt::Debug for Reservation<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Reservation<{}>({:?})",
            if P::SENT { "Sent" } else { "Held" },
            self.open.as_ref().map(|o| o.hold)
        )
    }
}
