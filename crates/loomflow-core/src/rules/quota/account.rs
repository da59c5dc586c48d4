//! One user's account: the whole of a ledger's behaviour over counters and holds that somebody else keeps.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::amounts::{Amounts, Totals};
use super::books::Books;
use super::bounds::Bounds;
use super::cell::Cell;
use super::period::Periods;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{HoldId, RunId};
use crate::ledger::{
    Charge, EstimatedCharge, Granted, Hold, HoldKey, Reserve, Settled, UsageReport, Warning,
};
use crate::message::Digest;
use crate::usage::Usage;

/// What a store loads of one user for an operation, and writes back where it changed.
///
/// It need not be all of the user: the counter and `open_holds` always; the hold with the id or the key that is asked
/// about; every open hold whose lease ran out; and the counters of the runs that these holds are for.
///
/// An account is of one kind of window. Where a budget's window was changed, the holds and counters of the old one are an
/// account of their own, and a hold is settled in the account it was reserved in.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Account {
    /// The user's counter.
    pub user: Cell,
    /// Counters of runs. Only where runs have caps, or had when a hold was made that is open still. A run that ended has
    /// none: the store takes it out.
    pub runs: BTreeMap<RunId, RunCell>,
    /// Holds by id.
    pub holds: BTreeMap<HoldId, HoldRecord>,
    /// How many holds are open, those that were not loaded included.
    pub open_holds: u64,
}

/// The counter of a run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RunCell {
    /// The hold that the counter began with. It tells this counter from that of an earlier run of the same id, which
    /// ended while holds of it were open.
    pub life: HoldId,
    /// What the run used and holds.
    pub cell: Cell,
}

impl RunCell {
    /// A counter as it was stored.
    #[must_use]
    pub fn new(life: HoldId, cell: Cell) -> Self {
        Self { life, cell }
    }
}

/// A hold as a store keeps it. It is given back, charged and corrected in the counters it was reserved in, whatever the
/// caps are by then.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HoldRecord {
    /// What it is for.
    pub key: HoldKey,
    /// Where it stands.
    pub state: HoldState,
    /// What was asked for, as a digest: the same key again must ask for the same.
    pub terms: Digest,
    /// What it keeps aside.
    pub granted: Amounts,
    /// The end of its lease.
    pub expires: Timestamp,
    /// The window it was reserved in; of one that is not open, the window it was charged in.
    pub window: i64,
    /// Whether it is counted among all users together.
    pub global: bool,
    /// Which counter of its run it is counted in, if any.
    pub life: Option<HoldId>,
}

/// Where a hold stands. A hold that was charged what the provider reported is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HoldState {
    /// Set aside; the request has not left.
    Held,
    /// The request may have left.
    Sent,
    /// Closed with an estimate, and kept so that the truth can be put in its place.
    Estimated {
        /// What was charged; nothing for a lease that ran out before the request left.
        charged: Totals,
        /// Whether the lease ran out; otherwise the caller estimated.
        expired: bool,
    },
}

impl HoldRecord {
    /// A hold as it was stored, counted for its user alone.
    #[must_use]
    pub fn new(
        key: HoldKey,
        state: HoldState,
        terms: Digest,
        granted: Amounts,
        expires: Timestamp,
        window: i64,
    ) -> Self {
        Self { key, state, terms, granted, expires, window, global: false, life: None }
    }

    /// Says where else it is counted: among all users together, and in which counter of its run.
    #[must_use]
    pub fn with_counters(mut self, global: bool, life: Option<HoldId>) -> Self {
        (self.global, self.life) = (global, life);
        self
    }

    /// Whether it still keeps something aside.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !matches!(self.state, HoldState::Estimated { .. })
    }
}

/// Runs have no window.
const RUN: Periods = Periods::LIFETIME;

impl Account {
    /// A user who has used nothing, in the window that `now` lies in.
    #[must_use]
    pub fn new(books: &Books, now: Timestamp) -> Self {
        Self { user: Cell::new(books.periods.number(now)), ..Self::default() }
    }

    /// [`Ledger::reserve`](crate::Ledger::reserve). `id` is the id of the hold, if one is granted. `global` is the
    /// counter of all users together: the stored one where they have caps or a loaded hold is counted there, and any blank
    /// one otherwise.
    ///
    /// # Errors
    ///
    /// As the trait says.
    pub fn reserve(
        &mut self,
        books: &Books,
        now: Timestamp,
        global: &mut Cell,
        id: HoldId,
        hold: &Hold,
    ) -> Result<Reserve> {
        let ask = books.ask(hold)?;
        self.expire(books, now, global);
        if let Some((id, open)) = self.holds.iter().find(|(_, r)| r.is_open() && r.key == hold.key) {
            if open.terms != ask.terms() {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "a hold of this key is open already, for other amounts or at another price",
                ));
            }
            return Ok(granted(*id, open, Vec::new()));
        }
        let window = self.enter(books, now, global, false);
        let run = self.runs.get(&hold.key.run).map(|run| &run.cell);
        let amounts = match books.judge(now, &ask, Some(global), &self.user, run) {
            Ok(amounts) => amounts,
            Err(refusal) => return Ok(Reserve::Refused(refusal)),
        };
        let expires = now.saturating_add(hold.lease);
        let life = (!books.run.is_empty())
            .then(|| self.runs.entry(hold.key.run).or_insert_with(|| RunCell::new(id, Cell::default())).life);
        let record = HoldRecord::new(hold.key, HoldState::Held, ask.terms(), amounts, expires, window)
            .with_counters(!books.global.is_empty(), life);
        let mut warnings = Vec::new();
        self.everywhere(books, global, &record, Some(&mut warnings), |cell, _, _| cell.hold(&amounts));
        let answer = granted(id, &record, warnings);
        self.holds.insert(id, record);
        self.open_holds += 1;
        Ok(answer)
    }

    /// [`Ledger::sent`](crate::Ledger::sent).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for a hold that is not open, or not here.
    pub fn sent(&mut self, books: &Books, now: Timestamp, global: &mut Cell, id: HoldId) -> Result<()> {
        self.open(books, now, global, id)?.state = HoldState::Sent;
        Ok(())
    }

    /// [`Ledger::extend`](crate::Ledger::extend).
    ///
    /// # Errors
    ///
    /// As [`Account::sent`].
    pub fn extend(
        &mut self,
        books: &Books,
        now: Timestamp,
        global: &mut Cell,
        id: HoldId,
        lease: Duration,
    ) -> Result<()> {
        self.open(books, now, global, id)?.expires = now.saturating_add(lease);
        Ok(())
    }

    /// [`Ledger::close`](crate::Ledger::close). `drawn` says whether the id was ever drawn for this user, as
    /// [`HoldIds::granted`](super::HoldIds::granted) knows.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for a hold that this user never had.
    pub fn close(
        &mut self,
        books: &Books,
        now: Timestamp,
        global: &mut Cell,
        id: HoldId,
        charge: &Charge,
        drawn: bool,
    ) -> Result<Settled> {
        self.expire(books, now, global);
        let used = Totals::charged(charge);
        let Some(record) = self.holds.get(&id).cloned() else { return gone(drawn) };
        let excess_tokens = used.usage.total_tokens().saturating_sub(record.granted.tokens());
        let mut settled = Settled { excess_tokens, ..Settled::default() };
        let estimated = matches!(charge, Charge::Used { estimated: true, .. });
        let window = match record.state {
            HoldState::Held | HoldState::Sent => {
                let window = self.enter(books, now, global, record.global);
                self.settle(books, global, &record, &used, window, Some(&mut settled.warnings));
                self.open_holds = self.open_holds.saturating_sub(1);
                window
            }
            HoldState::Estimated { charged, expired: true } => {
                settled.duplicate = true;
                self.enter(books, now, global, record.global);
                self.correct(books, global, &record, &charged, &used, &mut settled.warnings);
                record.window
            }
            HoldState::Estimated { expired: false, .. } => {
                return Ok(Settled { duplicate: true, ..Settled::default() });
            }
        };
        self.leave(id, estimated.then_some(used), window);
        Ok(settled)
    }

    /// [`Ledger::reconcile`](crate::Ledger::reconcile). `drawn` as for [`Account::close`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for a hold that this user never had, [`ErrorKind::Conflict`] for one that is open.
    pub fn reconcile(
        &mut self,
        books: &Books,
        now: Timestamp,
        global: &mut Cell,
        id: HoldId,
        actual: Usage,
        drawn: bool,
    ) -> Result<Settled> {
        self.expire(books, now, global);
        let Some(record) = self.holds.get(&id).cloned() else { return gone(drawn) };
        let HoldState::Estimated { charged, .. } = record.state else {
            return Err(Error::new(ErrorKind::Conflict, "the hold is open: its call has not ended yet"));
        };
        // An invoice says nothing of time.
        let used = Totals::new(actual, charged.wall, 0);
        let excess_tokens = actual.total_tokens().saturating_sub(record.granted.tokens());
        let mut settled = Settled { excess_tokens, ..Settled::default() };
        self.enter(books, now, global, record.global);
        self.correct(books, global, &record, &charged, &used, &mut settled.warnings);
        self.leave(id, None, record.window);
        Ok(settled)
    }

    /// Closes the holds whose lease ran out, each as of the moment it did.
    pub fn expire(&mut self, books: &Books, now: Timestamp, global: &mut Cell) {
        let due = |record: &HoldRecord| record.is_open() && record.expires <= now;
        let due: Vec<(HoldId, HoldRecord)> =
            self.holds.iter().filter(|(_, r)| due(r)).map(|(id, r)| (*id, r.clone())).collect();
        if due.is_empty() {
            return;
        }
        self.enter(books, now, global, due.iter().any(|(_, record)| record.global));
        for (id, mut record) in due {
            let charged = match record.state {
                HoldState::Sent => Totals::estimate(&record.granted),
                _ => Totals::default(),
            };
            // Not before the hold was made: a clock that was set back must not carry the charge into an ended window.
            let window = books.periods.number(record.expires).max(record.window);
            self.settle(books, global, &record, &charged, window, None);
            self.open_holds = self.open_holds.saturating_sub(1);
            (record.state, record.window) = (HoldState::Estimated { charged, expired: true }, window);
            self.holds.insert(id, record);
        }
    }

    /// The charges among the loaded holds that are estimates and that an invoice can correct, in the order of their ids.
    #[must_use]
    pub fn estimates(&self) -> Vec<EstimatedCharge> {
        let estimate = |(id, record): (&HoldId, &HoldRecord)| match record.state {
            HoldState::Estimated { charged, expired } if charged.usage != Usage::default() => {
                Some(EstimatedCharge::new(*id, record.key, charged.usage, expired))
            }
            _ => None,
        };
        self.holds.iter().filter_map(estimate).collect()
    }

    /// [`Ledger::usage`](crate::Ledger::usage). Expired holds that were loaded count as what they are; the account itself
    /// stays as it is.
    #[must_use]
    pub fn report(&self, books: &Books, now: Timestamp) -> UsageReport {
        let mut seen = self.clone();
        // A counter that leads into no window: what all users together have is not looked at.
        seen.expire(books, now, &mut Cell::new(i64::MIN));
        seen.user.roll(&books.periods, &books.user, books.periods.number(now));
        let mut report = report_of(&seen.user, &books.user, books, now);
        report.open_holds = seen.open_holds;
        report
    }

    /// [`Ledger::namespace_usage`](crate::Ledger::namespace_usage), of a counter of all users together.
    #[must_use]
    pub fn report_global(books: &Books, now: Timestamp, global: &Cell) -> UsageReport {
        let mut cell = global.clone();
        cell.roll(&books.periods, &books.global, books.periods.number(now));
        report_of(&cell, &books.global, books, now)
    }

    /// Moves both counters on to the present window. A clock that was set back leads into no old one. `counted` says that a
    /// hold is among all users together although they may have no caps by now.
    fn enter(&mut self, books: &Books, now: Timestamp, global: &mut Cell, counted: bool) -> i64 {
        let mut window = books.periods.number(now).max(self.user.window);
        if counted || !books.global.is_empty() {
            window = window.max(global.window);
            global.roll(&books.periods, &books.global, window);
        }
        self.user.roll(&books.periods, &books.user, window);
        window
    }

    fn open(
        &mut self,
        books: &Books,
        now: Timestamp,
        global: &mut Cell,
        id: HoldId,
    ) -> Result<&mut HoldRecord> {
        self.expire(books, now, global);
        self.holds
            .get_mut(&id)
            .filter(|record| record.is_open())
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such open hold"))
    }

    /// Takes a hold out, or keeps it with the estimate it was closed with.
    fn leave(&mut self, id: HoldId, estimate: Option<Totals>, window: i64) {
        match (estimate, self.holds.get_mut(&id)) {
            (Some(charged), Some(record)) => {
                (record.state, record.window) = (HoldState::Estimated { charged, expired: false }, window);
            }
            _ => {
                self.holds.remove(&id);
            }
        }
    }

    /// Gives a hold back and counts what was used, everywhere it was held.
    fn settle(
        &mut self,
        books: &Books,
        global: &mut Cell,
        record: &HoldRecord,
        used: &Totals,
        window: i64,
        warnings: Option<&mut Vec<Warning>>,
    ) {
        self.everywhere(books, global, record, warnings, |cell, periods, windowed| {
            cell.release(&record.granted);
            cell.charge(periods, if windowed { window } else { 0 }, used);
        });
    }

    /// Puts `used` in the place of what was charged, in the window it was charged in.
    fn correct(
        &mut self,
        books: &Books,
        global: &mut Cell,
        record: &HoldRecord,
        charged: &Totals,
        used: &Totals,
        warnings: &mut Vec<Warning>,
    ) {
        self.everywhere(books, global, record, Some(warnings), |cell, periods, windowed| {
            let window = if windowed { record.window } else { 0 };
            cell.uncharge(periods, window, charged);
            cell.charge(periods, window, used);
        });
    }

    /// Changes every counter that the hold is in.
    fn everywhere(
        &mut self,
        books: &Books,
        global: &mut Cell,
        record: &HoldRecord,
        mut warnings: Option<&mut Vec<Warning>>,
        change: impl Fn(&mut Cell, &Periods, bool),
    ) {
        let mut on = |cell: &mut Cell, bounds: &Bounds, periods: &Periods, windowed: bool| {
            change(cell, periods, windowed);
            if let Some(warnings) = &mut warnings {
                cell.warn(bounds, warnings);
            }
        };
        if record.global {
            on(global, &books.global, &books.periods, true);
        }
        on(&mut self.user, &books.user, &books.periods, true);
        if let Some(run) = self.runs.get_mut(&record.key.run).filter(|run| Some(run.life) == record.life) {
            on(&mut run.cell, &books.run, &RUN, false);
        }
    }
}

fn granted(id: HoldId, record: &HoldRecord, warnings: Vec<Warning>) -> Reserve {
    let wall = Duration::from_micros(record.granted.wall);
    Reserve::Held(Granted::new(id, record.granted.output, wall).with_warnings(warnings))
}

/// The answer about a hold that is not here: closed long ago, or never there.
fn gone(drawn: bool) -> Result<Settled> {
    if !drawn {
        return Err(Error::new(ErrorKind::NotFound, "there is no such hold"));
    }
    Ok(Settled { duplicate: true, ..Settled::default() })
}

fn report_of(cell: &Cell, bounds: &Bounds, books: &Books, now: Timestamp) -> UsageReport {
    UsageReport {
        used: cell.used.usage,
        held_tokens: cell.held.tokens(),
        estimated_tokens: cell.used.estimated,
        wall_clock: Duration::from_micros(cell.used.wall),
        windows: cell.lines(bounds, &books.periods, now),
        ..UsageReport::default()
    }
}
