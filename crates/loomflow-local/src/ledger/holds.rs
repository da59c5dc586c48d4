//! The holds of one shard: found by id or by key in O(1), and by the end of their lease.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use loomflow_core::rules::quota::{Amounts, Ask, Totals};
use loomflow_core::{HoldKey, RunId};

/// The low bits of a hold's id name its place.
pub(super) const PLACE_BITS: u32 = 24;

/// Where a hold stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Set aside; the request has not left.
    Held,
    /// The request may have left.
    Sent,
    /// Closed with an estimate: this was charged in the hold's `window`. Kept for a while so that the truth can be put in
    /// its place.
    Estimated {
        charged: Totals,
        /// Whether the lease ran out; otherwise the caller estimated.
        expired: bool,
    },
}

/// One hold.
#[derive(Clone, Debug)]
pub(super) struct HoldRecord {
    pub(super) id: u128,
    pub(super) key: HoldKey,
    /// The owner's place in the shard's table.
    pub(super) user: u32,
    /// Which counter of the run it is held in; `None` when runs are not counted.
    pub(super) run: Option<u32>,
    /// The place of its namespace's counter; means nothing when there are no caps of all users together.
    pub(super) space: u32,
    pub(super) state: State,
    /// What was asked for: the same key again must ask for the same.
    pub(super) ask: Ask,
    pub(super) granted: Amounts,
    /// The end of the lease.
    pub(super) expires: u64,
    /// The window it was reserved in; of an estimated one, the window it was charged in.
    pub(super) window: i64,
}

impl HoldRecord {
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state, State::Estimated { .. })
    }

    pub(super) fn run_id(&self) -> RunId {
        self.key.run
    }
}

/// The holds of one shard.
#[derive(Debug, Default)]
pub(super) struct HoldTable {
    slots: Vec<Option<HoldRecord>>,
    free: Vec<u32>,
    /// Open holds by owner and key.
    keys: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Ends of leases. An entry whose hold was closed or extended since is stale, and passed over.
    due: BinaryHeap<Reverse<(u64, u32)>>,
}

impl HoldTable {
    /// Whether one more hold fits.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < 1 << PLACE_BITS
    }

    /// The place the next hold gets.
    pub(super) fn next_place(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.slots.len() as u32)
    }

    /// Puts an open hold at [`HoldTable::next_place`].
    pub(super) fn insert(&mut self, record: HoldRecord) -> u32 {
        let (hash, expires) = (self.hash(record.user, &record.key), record.expires);
        let place = if let Some(place) = self.free.pop() {
            self.slots[place as usize] = Some(record);
            place
        } else {
            self.slots.push(Some(record));
            u32::try_from(self.slots.len() - 1).expect("room was asked for first")
        };
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.keys.insert_unique(hash, place, |place| {
            slots[*place as usize].as_ref().map_or(0, |r| hash_of(hasher, r.user, &r.key))
        });
        self.wake(place, expires);
        place
    }

    /// The hold at a place, when it is the one with this id.
    pub(super) fn find(&self, id: u128) -> Option<(u32, &HoldRecord)> {
        let place = (id & ((1 << PLACE_BITS) - 1)) as u32;
        let record = self.slots.get(place as usize)?.as_ref()?;
        (record.id == id).then_some((place, record))
    }

    /// The open hold of `user` with this key.
    pub(super) fn by_key(&self, user: u32, key: &HoldKey) -> Option<&HoldRecord> {
        let place = self.keys.find(self.hash(user, key), |place| {
            self.slots[*place as usize].as_ref().is_some_and(|r| r.user == user && r.key == *key)
        })?;
        self.slots[*place as usize].as_ref()
    }

    pub(super) fn get_mut(&mut self, place: u32) -> &mut HoldRecord {
        self.slots[place as usize].as_mut().expect("places are only handed out while occupied")
    }

    /// Moves the end of a lease.
    pub(super) fn extend(&mut self, place: u32, expires: u64) {
        self.get_mut(place).expires = expires;
        self.wake(place, expires);
    }

    /// Ends a hold with an estimate: its key is free again. The record stays at its place.
    pub(super) fn end(&mut self, place: u32, charged: Totals, expired: bool, window: i64) {
        if self.get_mut(place).is_open() {
            self.unkey(place);
        }
        let record = self.get_mut(place);
        (record.state, record.window) = (State::Estimated { charged, expired }, window);
    }

    /// Removes a hold.
    pub(super) fn remove(&mut self, place: u32) {
        if self.get_mut(place).is_open() {
            self.unkey(place);
        }
        self.slots[place as usize] = None;
        self.free.push(place);
    }

    /// An open hold whose lease ran out by `now`.
    pub(super) fn pop_due(&mut self, now: u64) -> Option<u32> {
        let (_, place) = self.next_due().filter(|(expires, _)| *expires <= now)?;
        self.due.pop();
        Some(place)
    }

    /// The open hold whose lease ends first, and when.
    pub(super) fn next_due(&mut self) -> Option<(u64, u32)> {
        while let Some(Reverse((expires, place))) = self.due.peek().copied() {
            if self.is_due(expires, place) {
                return Some((expires, place));
            }
            self.due.pop();
        }
        None
    }

    /// Whether a lease may have run out by `now`: one comparison, for every operation.
    pub(super) fn may_be_due(&self, now: u64) -> bool {
        self.due.peek().is_some_and(|Reverse((expires, _))| *expires <= now)
    }

    fn is_due(&self, expires: u64, place: u32) -> bool {
        self.slots[place as usize].as_ref().is_some_and(|r| r.is_open() && r.expires == expires)
    }

    fn wake(&mut self, place: u32, expires: u64) {
        // Stale entries never outnumber the living by more than two to one, for O(1) amortised.
        if self.due.len() > 64 + 2 * self.keys.len() {
            let mut all = std::mem::take(&mut self.due).into_vec();
            all.retain(|Reverse((expires, place))| self.is_due(*expires, *place));
            self.due = all.into();
        }
        self.due.push(Reverse((expires, place)));
    }

    fn unkey(&mut self, place: u32) {
        let Some(record) = &self.slots[place as usize] else { return };
        let hash = self.hash(record.user, &record.key);
        if let Ok(entry) = self.keys.find_entry(hash, |other| *other == place) {
            entry.remove();
        }
    }

    fn hash(&self, user: u32, key: &HoldKey) -> u64 {
        hash_of(&self.hasher, user, key)
    }
}

fn hash_of(hasher: &DefaultHashBuilder, user: u32, key: &HoldKey) -> u64 {
    hasher.hash_one((user, key.seq, key.run.as_u128()))
}
