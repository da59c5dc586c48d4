//! One shard of the ledger: users, their holds and their spilled rows, all that changes together behind one lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use hashbrown::HashMap;
use loomflow_core::rules::quota::{Books, Bounds, Cell, Periods, Totals};
use loomflow_core::{
    Charge, Error, ErrorKind, EstimatedCharge, Granted, Hold, HoldId, Owner, Reserve, Result, RunId, Scope,
    Settled, Usage, UsageReport, Warning,
};
use parking_lot::Mutex;

use super::bounded::BoundedTable;
use super::global::Globals;
use super::holds::{HoldRecord, HoldTable, PLACE_BITS, State};
use super::keys::{Ident, Keys};
use super::spill::{Counter, Quota, SpillRows};
use super::time::{Tick, nanos};
use crate::epochs::{EpochTable, MAX_ERASED};

/// Expired holds that are remembered for each user, so that a late close can correct what the expiry charged.
const LATE_PER_USER: usize = 64;
/// Runs of one user whose counters are kept.
const RUNS_PER_USER: usize = 16_384;
/// Idle users that one operation evicts at most, so that none pays for all.
const TRIM: usize = 16;

/// What all shards share.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) keys: Keys,
    pub(super) books: Books,
    /// The counters of all users together, when they have caps. Locked after a shard, never before.
    pub(super) total: Option<Mutex<Globals>>,
    pub(super) quota: Quota,
    /// Hot users.
    pub(super) hot: AtomicUsize,
    /// Nanoseconds.
    pub(super) idle: Option<u64>,
    /// No lease of any shard ends before this.
    pub(super) next_due: AtomicU64,
    /// Up to which window all shards dropped ended rows.
    pub(super) purged: AtomicI64,
}

/// No room for a user, and nothing that may be given away.
#[derive(Debug)]
pub(super) struct Full;

#[derive(Debug)]
struct User {
    /// `None` after an erasure: the counter stays, the name goes.
    owner: Option<Owner>,
    cell: Cell,
    /// Expired holds, oldest first.
    #[allow(clippy::box_collection, reason = "a third of the size in every entry, and most have none")]
    late: Option<Box<VecDeque<u32>>>,
    runs: Option<Box<Runs>>,
}

/// Counters of the runs of one user.
#[derive(Debug, Default)]
struct Runs {
    /// Tells a run's counter from an earlier one of the same run.
    serial: u32,
    cells: HashMap<RunId, (u32, Cell)>,
}

impl User {
    fn new(owner: Option<Owner>, window: i64) -> Self {
        Self { owner, cell: Cell::new(window), late: None, runs: None }
    }

    fn run_cell(&mut self, record: &HoldRecord) -> Option<&mut Cell> {
        let serial = record.run?;
        let (found, cell) = self.runs.as_mut()?.cells.get_mut(&record.run_id())?;
        (*found == serial).then_some(cell)
    }

    /// What a row must restore.
    fn counter(&mut self, book: &Book, now: i64) -> Counter {
        self.cell.roll(&book.books.periods, &book.books.user, now);
        let runs = self.runs.iter().flat_map(|runs| runs.cells.iter());
        Counter {
            window: self.cell.window,
            warned: self.cell.warned,
            parts: self.cell.parts(),
            runs: runs
                .filter(|(_, (_, cell))| !cell.used.is_zero())
                .map(|(run, (_, cell))| (*run, cell.warned, cell.used))
                .collect(),
        }
    }

    fn restored(owner: Option<Owner>, counter: Counter, periods: &Periods) -> Self {
        let Counter { window, warned, parts, runs } = counter;
        let cell = Cell::restored(window, warned, parts, periods);
        let runs = (!runs.is_empty()).then(|| {
            let mut all = Runs::default();
            for (run, warned, used) in runs {
                all.serial += 1;
                all.cells.insert(run, (all.serial, Cell::restored(0, warned, vec![(0, used)], &RUN)));
            }
            Box::new(all)
        });
        Self { owner, cell, late: None, runs }
    }

    /// Whether dropping it gives nothing away and loses nothing a late close could need.
    fn is_blank(&self) -> bool {
        self.cell.used.is_zero()
            && self.late.as_ref().is_none_or(|late| late.is_empty())
            && self.runs.as_ref().is_none_or(|runs| runs.cells.is_empty())
    }
}

/// One shard.
#[derive(Debug)]
pub(super) struct Shard {
    users: BoundedTable<u128, User>,
    holds: HoldTable,
    spill: SpillRows,
    /// Up to which epoch users were erased: a scope from before that puts no name back.
    erased: EpochTable,
    /// Counts the holds; part of their ids, so that no id comes twice.
    serial: u64,
}

impl Shard {
    pub(super) fn new(max_users: usize, shards: usize) -> Self {
        Self {
            users: BoundedTable::new(max_users),
            holds: HoldTable::default(),
            spill: SpillRows::default(),
            erased: EpochTable::new(MAX_ERASED / shards.max(1)),
            serial: 0,
        }
    }

    /// What every operation begins with: leases that ran out are closed, rows of ended windows go (one look per row and
    /// window), and a few idle users are spilled.
    pub(super) fn tidy(&mut self, book: &Book, now: &Tick) {
        if self.holds.may_be_due(now.mono) {
            self.expire(book, now);
        }
        self.purge(book, now);
        let Some(idle) = book.idle else { return };
        for _ in 0..TRIM {
            match self.users.oldest() {
                Some((_, touched)) if touched.saturating_add(idle) <= now.mono => {
                    if !self.evict_oldest(book, now) {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    /// Closes the holds whose lease ran out, as of the moment it did.
    pub(super) fn expire(&mut self, book: &Book, now: &Tick) {
        while let Some(place) = self.holds.pop_due(now.mono) {
            let record = self.holds.get_mut(place).clone();
            let charged = match record.state {
                State::Sent => Totals::estimate(&record.granted),
                _ => Totals::default(),
            };
            let ago = i64::try_from((now.mono - record.expires) / 1_000).unwrap_or(i64::MAX);
            let moment = loomflow_core::Timestamp::from_micros(now.wall.as_micros().saturating_sub(ago));
            // Not before the hold was made: a clock that stood still must not carry the charge into an ended window.
            let window = book.books.periods.number(moment).max(record.window);
            self.settle(book, now, &record, &charged, window, None);
            self.holds.end(place, charged, true, window);
            self.remember_late(record.user, place);
            self.unpin(book, record.user, now);
        }
    }

    /// When the next lease of this shard ends.
    pub(super) fn next_due(&mut self) -> Option<u64> {
        self.holds.next_due().map(|(expires, _)| expires)
    }

    /// Drops rows of windows that ended.
    pub(super) fn purge(&mut self, book: &Book, now: &Tick) {
        let gone = self.spill.purge(&book.books.periods, now.window);
        if gone > 0 {
            book.quota.release(gone);
        }
    }

    pub(super) fn reserve(
        &mut self,
        book: &Book,
        now: &Tick,
        ident: Ident,
        scope: &Scope,
        hold: &Hold,
    ) -> Result<Result<Reserve, Full>> {
        let ask = book.books.ask(hold)?;
        let Ok(at) = self.enter(book, now, ident, scope) else { return Ok(Err(Full)) };
        if let Some(open) = at.and_then(|at| self.holds.by_key(at, &hold.key)) {
            if open.ask != ask {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "a hold of this key is open already, for other amounts or at another price",
                ));
            }
            return Ok(Ok(granted(open, Vec::new())));
        }
        if !self.holds.has_room() {
            return Err(full("too many holds are open; close some first"));
        }
        let mut fresh = at.is_none().then(|| User::new(self.name(scope), now.window));
        let user = match (&mut fresh, at) {
            (Some(user), _) => user,
            (None, Some(at)) => self.users.get_mut(at),
            (None, None) => return Err(Error::new(ErrorKind::Internal, "a user is either here or made")),
        };
        user.cell.roll(&book.books.periods, &book.books.user, now.window);

        let mut total = book.total.as_ref().map(Mutex::lock);
        let space = total.as_ref().map_or(Ok(None), |total| total.find(scope.namespace()))?;
        let counted = total.as_mut().zip(space).map(|(total, space)| total.cell(space));
        let counted = counted.map(|cell| {
            cell.roll(&book.books.periods, &book.books.global, now.window);
            &*cell
        });
        let run = user.runs.as_ref().and_then(|runs| runs.cells.get(&hold.key.run)).map(|(_, cell)| cell);
        let judged = book.books.judge(now.wall, &ask, counted, &user.cell, run);
        let amounts = match judged {
            Ok(amounts) => amounts,
            Err(refusal) => {
                if let Some(at) = at {
                    self.users.touch(at, now.mono);
                }
                return Ok(Ok(Reserve::Refused(refusal)));
            }
        };

        let run = if book.books.run.is_empty() { None } else { Some(user.open_run(hold.key.run)?) };
        let at = match (at, fresh) {
            (Some(at), _) => at,
            (None, Some(user)) => {
                if self.users.is_full() && !self.evict_oldest(book, now) {
                    return Ok(Err(Full));
                }
                book.hot.fetch_add(1, Ordering::Relaxed);
                self.users.insert(ident.hash(), ident.0, user, now.mono)
            }
            (None, None) => return Err(Error::new(ErrorKind::Internal, "a user is either here or made")),
        };
        // After the eviction, which frees places of holds.
        let place = self.holds.next_place();
        // From here on nothing fails: all counters change, or none did.
        self.users.pin(at);
        self.serial += 1;
        let id = book.keys.hold_id(ident, self.serial, place);
        let expires = now.mono.saturating_add(nanos(hold.lease));
        let mut warnings = Vec::new();
        let space = total.as_mut().map_or(0, |total| {
            let space = space.unwrap_or_else(|| total.add(scope.namespace(), now.window));
            let cell = total.cell(space);
            cell.hold(&amounts);
            cell.warn(&book.books.global, &mut warnings);
            space
        });
        let record = HoldRecord {
            id,
            key: hold.key,
            user: at,
            run,
            space,
            state: State::Held,
            ask,
            granted: amounts,
            expires,
            window: now.window,
        };
        let user = self.users.get_mut(at);
        user.cell.hold(&amounts);
        user.cell.warn(&book.books.user, &mut warnings);
        if let Some(cell) = user.run_cell(&record) {
            cell.hold(&amounts);
            cell.warn(&book.books.run, &mut warnings);
        }
        let answer = granted(&record, warnings);
        self.holds.insert(record);
        if book.total.is_some() {
            book.next_due.fetch_min(expires, Ordering::AcqRel);
        }
        Ok(Ok(answer))
    }

    pub(super) fn sent(&mut self, book: &Book, ident: Ident, owner: &Owner, id: HoldId) -> Result<()> {
        let place = self.open_hold(ident, owner, id).ok_or_else(|| not_open(book, ident, id))?;
        self.holds.get_mut(place).state = State::Sent;
        Ok(())
    }

    pub(super) fn extend(
        &mut self,
        book: &Book,
        ident: Ident,
        owner: &Owner,
        id: HoldId,
        expires: u64,
    ) -> Result<()> {
        let place = self.open_hold(ident, owner, id).ok_or_else(|| not_open(book, ident, id))?;
        self.holds.extend(place, expires);
        if book.total.is_some() {
            book.next_due.fetch_min(expires, Ordering::AcqRel);
        }
        Ok(())
    }

    pub(super) fn close(
        &mut self,
        book: &Book,
        now: &Tick,
        ident: Ident,
        owner: &Owner,
        id: HoldId,
        charge: &Charge,
    ) -> Result<Settled> {
        let used = Totals::charged(charge);
        let mut settled = Settled::default();
        let found = self.holds.find(id.as_u128()).filter(|(_, record)| self.is_of(record.user, ident, owner));
        let Some((place, record)) = found.map(|(place, record)| (place, record.clone())) else {
            // Every id that was ever granted to this user proves it by itself; one that is not open was closed.
            settled.duplicate = book.keys.granted(ident, id);
            return if settled.duplicate { Ok(settled) } else { Err(not_found()) };
        };
        settled.excess_tokens = used.usage.total_tokens().saturating_sub(record.granted.tokens());
        let estimated = matches!(charge, Charge::Used { estimated: true, .. });
        match record.state {
            State::Estimated { expired: false, .. } => {
                settled = Settled::default();
                settled.duplicate = true;
                return Ok(settled);
            }
            State::Estimated { charged, expired: true } => {
                settled.duplicate = true;
                self.correct(book, now, &record, &charged, &used, &mut settled.warnings);
                if estimated {
                    self.holds.end(place, used, false, record.window);
                } else {
                    self.forget_late(record.user, place);
                }
            }
            State::Held | State::Sent => {
                self.settle(book, now, &record, &used, now.window, Some(&mut settled.warnings));
                if estimated {
                    self.holds.end(place, used, false, now.window);
                    self.remember_late(record.user, place);
                } else {
                    self.holds.remove(place);
                }
                self.unpin(book, record.user, now);
            }
        }
        Ok(settled)
    }

    /// Puts what was really used in the place of an estimate.
    pub(super) fn reconcile(
        &mut self,
        book: &Book,
        now: &Tick,
        ident: Ident,
        owner: &Owner,
        id: HoldId,
        actual: Usage,
    ) -> Result<Settled> {
        let mut settled = Settled::default();
        let found = self.holds.find(id.as_u128()).filter(|(_, record)| self.is_of(record.user, ident, owner));
        let Some((place, record)) = found.map(|(place, record)| (place, record.clone())) else {
            settled.duplicate = book.keys.granted(ident, id);
            return if settled.duplicate { Ok(settled) } else { Err(not_found()) };
        };
        let State::Estimated { charged, .. } = record.state else {
            return Err(Error::new(ErrorKind::Conflict, "the hold is open: its call has not ended yet"));
        };
        settled.excess_tokens = actual.total_tokens().saturating_sub(record.granted.tokens());
        // An invoice says nothing of time.
        let used = Totals::new(actual, charged.wall, 0);
        self.correct(book, now, &record, &charged, &used, &mut settled.warnings);
        self.forget_late(record.user, place);
        Ok(settled)
    }

    /// The estimates of this user that can still be corrected, oldest first, and the name beside them.
    pub(super) fn estimates(&mut self, ident: Ident, owner: &Owner) -> (Option<Owner>, Vec<EstimatedCharge>) {
        let Some(at) = self.hot(ident, owner) else { return (None, Vec::new()) };
        let user = self.users.get(at);
        let places: Vec<u32> = user.late.iter().flat_map(|late| late.iter().copied()).collect();
        let name = user.owner.clone();
        let estimate = |place| {
            let record = self.holds.get_mut(place);
            match record.state {
                State::Estimated { charged, expired } if charged.usage != Usage::default() => {
                    let id = HoldId::from_u128(record.id);
                    Some(EstimatedCharge::new(id, record.key, charged.usage, expired))
                }
                _ => None,
            }
        };
        let found = places.into_iter().filter_map(estimate).collect();
        (name, found)
    }

    /// What this user used and holds, without touching them. `None` for a user who is not known.
    pub(super) fn report(
        &self,
        book: &Book,
        now: &Tick,
        ident: Ident,
        owner: &Owner,
    ) -> Option<(UsageReport, Option<Owner>)> {
        let (mut cell, pins, name) = if let Some(at) = self.hot(ident, owner) {
            let user = self.users.get(at);
            (user.cell.clone(), self.users.pins(at), user.owner.clone())
        } else {
            let counter = self.spill.get(ident.0)?;
            let user = User::restored(None, counter, &book.books.periods);
            (user.cell, 0, None)
        };
        cell.roll(&book.books.periods, &book.books.user, now.window);
        let mut report = UsageReport::default();
        report.used = cell.used.usage;
        report.held_tokens = cell.held.tokens();
        report.open_holds = u64::from(pins);
        report.estimated_tokens = cell.used.estimated;
        report.wall_clock = std::time::Duration::from_micros(cell.used.wall);
        report.windows = cell.lines(&book.books.user, &book.books.periods, now.wall);
        Some((report, name))
    }

    pub(super) fn end_run(&mut self, book: &Book, ident: Ident, owner: &Owner, run: RunId) {
        if let Some(at) = self.hot(ident, owner) {
            let user = self.users.get_mut(at);
            if let Some(runs) = &mut user.runs {
                runs.cells.remove(&run);
            }
            self.drop_if_blank(book, at);
        } else if let Some(mut counter) = self.spill.take(ident.0) {
            counter.runs.retain(|(other, ..)| *other != run);
            if counter.is_blank() {
                book.quota.release(1);
            } else {
                self.spill.insert(ident.0, &counter);
            }
        }
    }

    /// Takes the name off a user's counter. Answers (names that went, whether a counter stays).
    pub(super) fn unname(&mut self, book: &Book, now: &Tick, ident: Ident, scope: &Scope) -> (u64, bool) {
        let owner = scope.owner();
        self.erased.raise(owner, scope.epoch());
        let Some(at) = self.hot(ident, owner) else {
            return (0, self.spill.get(ident.0).is_some());
        };
        let pinned = self.users.pins(at) > 0;
        let user = self.users.get_mut(at);
        let names = u64::from(user.owner.take().is_some());
        let counter = user.counter(book, now.window);
        if pinned || user.late.as_ref().is_some_and(|late| !late.is_empty()) {
            return (names, true);
        }
        let blank = counter.is_blank();
        if blank || book.quota.take() {
            if !blank {
                self.spill.insert(ident.0, &counter);
            }
            self.remove_user(book, at);
        }
        (names, !blank)
    }

    /// The place of a user who is hot, or who was spilled and is restored; `None` for a user who is not known.
    fn enter(&mut self, book: &Book, now: &Tick, ident: Ident, scope: &Scope) -> Result<Option<u32>, Full> {
        if let Some(at) = self.hot(ident, scope.owner()) {
            if self.users.get(at).owner.is_none() {
                let name = self.name(scope);
                self.users.get_mut(at).owner = name;
            }
            return Ok(Some(at));
        }
        let Some(counter) = self.spill.take(ident.0) else { return Ok(None) };
        // The row's own right to be kept goes to whoever makes room for it, so an old user can always come back.
        if self.users.is_full() {
            let Some((oldest, _)) = self.users.oldest() else {
                self.spill.insert(ident.0, &counter);
                return Err(Full);
            };
            let other = self.users.get_mut(oldest).counter(book, now.window);
            if other.is_blank() {
                book.quota.release(1);
            } else {
                self.spill.insert(*self.users.key(oldest), &other);
            }
            self.remove_user(book, oldest);
        } else {
            book.quota.release(1);
        }
        book.hot.fetch_add(1, Ordering::Relaxed);
        let user = User::restored(self.name(scope), counter, &book.books.periods);
        Ok(Some(self.users.insert(ident.hash(), ident.0, user, now.mono)))
    }

    /// The name to keep beside a counter: none for a scope from before the user's erasure.
    fn name(&self, scope: &Scope) -> Option<Owner> {
        (scope.epoch() >= self.erased.get(scope.owner())).then(|| scope.owner().clone())
    }

    fn hot(&self, ident: Ident, owner: &Owner) -> Option<u32> {
        self.users.find(ident.hash(), |key, user| {
            *key == ident.0 && user.owner.as_ref().is_none_or(|named| named == owner)
        })
    }

    /// Whether the user at a place is this one.
    fn is_of(&self, at: u32, ident: Ident, owner: &Owner) -> bool {
        *self.users.key(at) == ident.0 && self.users.get(at).owner.as_ref().is_none_or(|named| named == owner)
    }

    fn open_hold(&self, ident: Ident, owner: &Owner, id: HoldId) -> Option<u32> {
        let (place, record) = self.holds.find(id.as_u128())?;
        (record.is_open() && self.is_of(record.user, ident, owner)).then_some(place)
    }

    /// Spills or drops the least recently used user; false when there is none, or no row may be added.
    fn evict_oldest(&mut self, book: &Book, now: &Tick) -> bool {
        let Some((at, _)) = self.users.oldest() else { return false };
        let counter = self.users.get_mut(at).counter(book, now.window);
        if !counter.is_blank() {
            if !book.quota.take() {
                return false;
            }
            self.spill.insert(*self.users.key(at), &counter);
        }
        self.remove_user(book, at);
        true
    }

    fn remove_user(&mut self, book: &Book, at: u32) {
        let (_, user) = self.users.remove(at);
        for place in user.late.into_iter().flat_map(|late| late.into_iter()) {
            self.holds.remove(place);
        }
        book.hot.fetch_sub(1, Ordering::Relaxed);
    }

    fn unpin(&mut self, book: &Book, at: u32, now: &Tick) {
        if self.users.unpin(at, now.mono) {
            self.drop_if_blank(book, at);
        }
    }

    /// A user who used nothing needs no memory: refunded holds of throw-away ids leave nothing behind.
    fn drop_if_blank(&mut self, book: &Book, at: u32) {
        if self.users.pins(at) == 0 && self.users.get(at).is_blank() {
            self.remove_user(book, at);
        }
    }

    /// Gives a hold back and counts what was used, everywhere it was held.
    fn settle(
        &mut self,
        book: &Book,
        now: &Tick,
        record: &HoldRecord,
        used: &Totals,
        window: i64,
        warnings: Option<&mut Vec<Warning>>,
    ) {
        self.everywhere(book, now, record, warnings, |cell, periods, windowed| {
            cell.release(&record.granted);
            cell.charge(periods, if windowed { window } else { 0 }, used);
        });
    }

    /// Puts what was really used in the place of what an expiry charged, in the window it was charged in.
    fn correct(
        &mut self,
        book: &Book,
        now: &Tick,
        record: &HoldRecord,
        charged: &Totals,
        used: &Totals,
        warnings: &mut Vec<Warning>,
    ) {
        self.everywhere(book, now, record, Some(warnings), |cell, periods, windowed| {
            let window = if windowed { record.window } else { 0 };
            cell.uncharge(periods, window, charged);
            cell.charge(periods, window, used);
        });
    }

    fn everywhere(
        &mut self,
        book: &Book,
        now: &Tick,
        record: &HoldRecord,
        mut warnings: Option<&mut Vec<Warning>>,
        change: impl Fn(&mut Cell, &Periods, bool),
    ) {
        let mut on = |cell: &mut Cell, bounds: &Bounds, periods: &Periods, windowed: bool| {
            cell.roll(periods, bounds, if windowed { now.window } else { 0 });
            change(cell, periods, windowed);
            if let Some(warnings) = &mut warnings {
                cell.warn(bounds, warnings);
            }
        };
        if let Some(total) = &book.total {
            on(total.lock().cell(record.space), &book.books.global, &book.books.periods, true);
        }
        let user = self.users.get_mut(record.user);
        on(&mut user.cell, &book.books.user, &book.books.periods, true);
        if let Some(cell) = user.run_cell(record) {
            on(cell, &book.books.run, &RUN, false);
        }
    }

    fn remember_late(&mut self, at: u32, place: u32) {
        let late = self.users.get_mut(at).late.get_or_insert_default();
        late.push_back(place);
        if late.len() > LATE_PER_USER
            && let Some(oldest) = late.pop_front()
        {
            self.holds.remove(oldest);
        }
    }

    fn forget_late(&mut self, at: u32, place: u32) {
        if let Some(late) = &mut self.users.get_mut(at).late {
            late.retain(|other| *other != place);
        }
        self.holds.remove(place);
    }

    /// What a hot user takes: the slot and its index entry.
    #[cfg(test)]
    pub(super) const USER_BYTES: usize = BoundedTable::<u128, User>::ENTRY_BYTES;
}

/// Runs have no window.
const RUN: Periods = Periods::LIFETIME;

impl User {
    /// The serial of the run's counter, which is made when there is none.
    fn open_run(&mut self, run: RunId) -> Result<u32> {
        let runs = self.runs.get_or_insert_default();
        if let Some((serial, _)) = runs.cells.get(&run) {
            return Ok(*serial);
        }
        if runs.cells.len() >= RUNS_PER_USER {
            return Err(full("this user has too many runs that did not end; end some first"));
        }
        runs.serial = runs.serial.wrapping_add(1);
        runs.cells.insert(run, (runs.serial, Cell::default()));
        Ok(runs.serial)
    }
}

fn granted(record: &HoldRecord, warnings: Vec<Warning>) -> Reserve {
    let wall = std::time::Duration::from_micros(record.granted.wall);
    let id = HoldId::from_u128(record.id);
    Reserve::Held(Granted::new(id, record.granted.output, wall).with_warnings(warnings))
}

fn not_open(book: &Book, ident: Ident, id: HoldId) -> Error {
    if book.keys.granted(ident, id) {
        Error::new(ErrorKind::NotFound, "the hold is closed already, or its lease ran out")
    } else {
        not_found()
    }
}

fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such hold")
}

fn full(why: &str) -> Error {
    Error::new(ErrorKind::Capacity, why)
}

const _: () = assert!(PLACE_BITS <= 32);
