//! A table with strict LRU order, an idle bound and pinning: one shard of the per-user state.
//!
//! The table never evicts by itself. Its owner asks for the [oldest](BoundedTable::oldest) entry, spills it, and only then
//! [removes](BoundedTable::remove) it, all under the one lock that guards the shard, so no reader can come between an
//! entry's leaving and its counters' being kept. Sharding and locking belong to the owner, because what must change
//! together with an entry (its holds, its spilled row) lives behind the same lock.

use hashbrown::HashTable;

const NIL: u32 = u32::MAX;

/// Entries in LRU order. Pinned entries are out of the order, so the oldest one is found in O(1).
#[derive(Debug)]
pub(super) struct BoundedTable<K, V> {
    index: HashTable<u32>,
    slots: Vec<Option<Slot<K, V>>>,
    free: Vec<u32>,
    /// Most recently used.
    head: u32,
    /// Least recently used.
    tail: u32,
    max: usize,
}

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
    hash: u64,
    touched: u64,
    pins: u32,
    prev: u32,
    next: u32,
}

impl<K, V> BoundedTable<K, V> {
    /// What an entry takes.
    #[cfg(test)]
    pub(super) const ENTRY_BYTES: usize = size_of::<Option<Slot<K, V>>>() + size_of::<u32>() + 1;

    /// An empty table for at most `max` entries.
    pub(super) fn new(max: usize) -> Self {
        let max = max.min(NIL as usize);
        Self { index: HashTable::new(), slots: Vec::new(), free: Vec::new(), head: NIL, tail: NIL, max }
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no entry can be inserted before one is removed.
    pub(super) fn is_full(&self) -> bool {
        self.index.len() >= self.max
    }

    /// The place of the entry that `is` recognises.
    pub(super) fn find(&self, hash: u64, mut is: impl FnMut(&K, &V) -> bool) -> Option<u32> {
        self.index
            .find(hash, |at| {
                let slot = self.slot(*at);
                slot.hash == hash && is(&slot.key, &slot.value)
            })
            .copied()
    }

    /// The value at a place.
    pub(super) fn get(&self, at: u32) -> &V {
        &self.slot(at).value
    }

    /// The value at a place.
    pub(super) fn get_mut(&mut self, at: u32) -> &mut V {
        &mut self.slot_mut(at).value
    }

    /// How many pins an entry has.
    pub(super) fn pins(&self, at: u32) -> u32 {
        self.slot(at).pins
    }

    /// Marks an entry as used at `now`. A pinned entry is used anyway.
    pub(super) fn touch(&mut self, at: u32, now: u64) {
        if self.slot(at).pins == 0 {
            self.unlink(at);
            self.push_front(at, now);
        }
    }

    /// Takes an entry out of the LRU order until it is unpinned as often as it was pinned.
    pub(super) fn pin(&mut self, at: u32) {
        if self.slot(at).pins == 0 {
            self.unlink(at);
        }
        let slot = self.slot_mut(at);
        slot.pins = slot.pins.checked_add(1).expect("fewer holds than 2^32 fit in a shard");
    }

    /// Takes one pin away; the last one puts the entry at the young end. Says whether it was the last.
    pub(super) fn unpin(&mut self, at: u32, now: u64) -> bool {
        let slot = self.slot_mut(at);
        slot.pins = slot.pins.checked_sub(1).expect("every unpin follows its pin");
        let last = slot.pins == 0;
        if last {
            self.push_front(at, now);
        }
        last
    }

    /// Inserts an entry at the young end. The caller has made room.
    pub(super) fn insert(&mut self, hash: u64, key: K, value: V, now: u64) -> u32 {
        debug_assert!(!self.is_full(), "the caller makes room before inserting");
        let slot = Slot { key, value, hash, touched: now, pins: 0, prev: NIL, next: NIL };
        let at = if let Some(at) = self.free.pop() {
            self.slots[at as usize] = Some(slot);
            at
        } else {
            self.slots.push(Some(slot));
            u32::try_from(self.slots.len() - 1).expect("the table holds fewer than 2^32 entries")
        };
        let slots = &self.slots;
        self.index.insert_unique(hash, at, |at| slots[*at as usize].as_ref().map_or(0, |slot| slot.hash));
        self.push_front(at, now);
        at
    }

    /// Removes an entry that is not pinned.
    pub(super) fn remove(&mut self, at: u32) -> (K, V) {
        debug_assert_eq!(self.slot(at).pins, 0, "a pinned entry stays");
        self.unlink(at);
        let hash = self.slot(at).hash;
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == at) {
            entry.remove();
        }
        self.free.push(at);
        let slot = self.slots[at as usize].take().expect("an occupied place was named");
        (slot.key, slot.value)
    }

    /// The least recently used entry that is not pinned, and when it was used.
    pub(super) fn oldest(&self) -> Option<(u32, u64)> {
        (self.tail != NIL).then(|| (self.tail, self.slot(self.tail).touched))
    }

    /// The key at a place.
    pub(super) fn key(&self, at: u32) -> &K {
        &self.slot(at).key
    }

    fn slot(&self, at: u32) -> &Slot<K, V> {
        self.slots[at as usize].as_ref().expect("places are only handed out while occupied")
    }

    fn slot_mut(&mut self, at: u32) -> &mut Slot<K, V> {
        self.slots[at as usize].as_mut().expect("places are only handed out while occupied")
    }

    fn unlink(&mut self, at: u32) {
        let (prev, next) = (self.slot(at).prev, self.slot(at).next);
        if prev == NIL {
            self.head = next
        } else {
            self.slot_mut(prev).next = next
        }
        if next == NIL { self.tail = prev } else { self.slot_mut(next).prev = prev }
    }

    fn push_front(&mut self, at: u32, now: u64) {
        let head = self.head;
        let slot = self.slot_mut(at);
        (slot.prev, slot.next, slot.touched) = (NIL, head, now);
        if head == NIL {
            self.tail = at
        } else {
            self.slot_mut(head).prev = at
        }
        self.head = at;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Use(u8),
        Look(u8),
        Pin(u8),
        Unpin(u8),
        Drop(u8),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = (0_u8..5, 0_u8..12).prop_map(|(kind, key)| match kind {
            0 => Op::Use(key),
            1 => Op::Look(key),
            2 => Op::Pin(key),
            3 => Op::Unpin(key),
            _ => Op::Drop(key),
        });
        prop::collection::vec(op, 0..200)
    }

    proptest! {
        /// Against a list of (key, pins), youngest last. Hashes collide on purpose.
        #[test]
        fn behaves_like_a_list(ops in ops()) {
            let mut table = BoundedTable::<u8, u8>::new(5);
            let mut list: Vec<(u8, u32)> = Vec::new();
            let hash = |key: u8| u64::from(key % 3);
            for (now, op) in ops.into_iter().enumerate() {
                let now = now as u64;
                match op {
                    Op::Use(key) => {
                        let at = table.find(hash(key), |k, _| *k == key);
                        let model = list.iter().position(|(k, _)| *k == key);
                        prop_assert_eq!(at.is_some(), model.is_some());
                        if let (Some(at), Some(model)) = (at, model) {
                            table.touch(at, now);
                            let entry = list.remove(model);
                            list.push(entry);
                        } else {
                            if table.is_full() {
                                let oldest = table.oldest().map(|(at, _)| at);
                                let model = list.iter().position(|(_, pins)| *pins == 0);
                                prop_assert_eq!(oldest.is_some(), model.is_some());
                                let (Some(at), Some(model)) = (oldest, model) else { continue };
                                prop_assert_eq!(table.remove(at).0, list.remove(model).0);
                            }
                            table.insert(hash(key), key, key, now);
                            list.push((key, 0));
                        }
                    }
                    Op::Look(key) => {
                        let at = table.find(hash(key), |k, _| *k == key);
                        prop_assert_eq!(at.map(|at| *table.get(at)), list.iter().find(|e| e.0 == key).map(|e| e.0));
                    }
                    Op::Pin(key) => {
                        if let Some(at) = table.find(hash(key), |k, _| *k == key) {
                            table.pin(at);
                            list.iter_mut().find(|e| e.0 == key).unwrap().1 += 1;
                        }
                    }
                    Op::Unpin(key) => {
                        if let Some(at) = table.find(hash(key), |k, _| *k == key).filter(|at| table.pins(*at) > 0) {
                            let last = table.unpin(at, now);
                            let model = list.iter().position(|e| e.0 == key).unwrap();
                            list[model].1 -= 1;
                            prop_assert_eq!(last, list[model].1 == 0);
                            if last {
                                let entry = list.remove(model);
                                list.push(entry);
                            }
                        }
                    }
                    Op::Drop(key) => {
                        if let Some(at) = table.find(hash(key), |k, _| *k == key).filter(|at| table.pins(*at) == 0) {
                            table.remove(at);
                            list.retain(|e| e.0 != key);
                        }
                    }
                }
                prop_assert_eq!(table.len(), list.len());
                let oldest = table.oldest().map(|(at, _)| *table.key(at));
                prop_assert_eq!(oldest, list.iter().find(|e| e.1 == 0).map(|e| e.0));
            }
        }
    }
}
