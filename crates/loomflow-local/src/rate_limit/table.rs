//! Entries that may be dropped when they say nothing any more, and never before.

use std::hash::Hash;

use hashbrown::HashMap;
use loomflow_core::Tats;

/// Entries that are kept before it is worth looking which may go.
const FEW: usize = 64;

/// The arrival times of users (or namespaces), bounded. An entry whose times have all passed is as good as none.
#[derive(Debug)]
pub(super) struct Table<K> {
    entries: HashMap<K, Tats>,
    max: usize,
    /// At how many entries those that may go are looked for next.
    look_at: usize,
    /// Before this moment none may go that was there when it was looked.
    none_before: u64,
}

/// No room, and nothing that may go.
#[derive(Debug)]
pub(super) struct Full {
    pub(super) kept: usize,
    /// In how many nanoseconds, at the soonest, one may go.
    pub(super) first_free: u64,
}

impl<K: Eq + Hash> Table<K> {
    /// An empty table for at most `max` entries.
    pub(super) fn new(max: usize) -> Self {
        Self { entries: HashMap::new(), max, look_at: FEW.min(max), none_before: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The times of `key`; zeros for one that never was, or was dropped.
    pub(super) fn get(&self, key: &K) -> Tats {
        self.entries.get(key).copied().unwrap_or_default()
    }

    /// Makes sure that `key` can be put.
    pub(super) fn make_room(&mut self, key: &K, now: u64) -> Result<(), Full> {
        if self.entries.len() < self.look_at || self.entries.contains_key(key) {
            return Ok(());
        }
        if now >= self.none_before {
            self.drop_passed(now);
        }
        if self.entries.len() < self.max {
            // Half of what is kept may come before all of it is looked at again, so that nobody pays for all.
            self.look_at = (2 * self.entries.len()).clamp(FEW.min(self.max), self.max);
            self.look_at = self.look_at.max(self.entries.len() + 1);
            return Ok(());
        }
        Err(Full { kept: self.entries.len(), first_free: self.none_before.saturating_sub(now).max(1) })
    }

    /// Writes the times of `key`. Room was made.
    pub(super) fn put(&mut self, key: K, times: Tats) {
        // What is there is changed in place, and can then pass sooner than was known.
        self.none_before = self.none_before.min(passes(&times));
        self.entries.insert(key, times);
    }

    fn drop_passed(&mut self, now: u64) {
        let mut next = u64::MAX;
        self.entries.retain(|_, times| {
            let passes = passes(times);
            let stays = passes > now;
            if stays {
                next = next.min(passes);
            }
            stays
        });
        self.none_before = next;
        if self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to_fit();
        }
    }
}

/// When the last of an entry's limits is whole.
fn passes(times: &Tats) -> u64 {
    times.iter().copied().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a list that drops nothing: what the table says is what the list says, as far as it lies ahead; and it
        /// refuses only when it is full of what lies ahead.
        #[test]
        fn what_lies_ahead_is_never_dropped(
            max in 1_usize..9,
            ops in prop::collection::vec((0_u8..24, 0_u64..4, 0_u64..60), 1..300),
        ) {
            let mut table = Table::new(max);
            let (mut all, mut now) = (BTreeMap::<u8, u64>::new(), 0_u64);
            for (key, passed, ahead) in ops {
                now += passed;
                let ahead_of = |all: &BTreeMap<u8, u64>| all.values().filter(|tat| **tat > now).count();
                match table.make_room(&key, now) {
                    Ok(()) => {
                        table.put(key, [0, now + ahead, 0]);
                        all.insert(key, now + ahead);
                    }
                    Err(full) => {
                        prop_assert_eq!(ahead_of(&all), max);
                        prop_assert!(all.get(&key).is_none_or(|tat| *tat <= now));
                        let first = all.values().filter(|tat| **tat > now).min().unwrap();
                        prop_assert!((1..=first - now).contains(&full.first_free));
                    }
                }
                prop_assert!(table.len() <= max);
                for (key, tat) in &all {
                    let kept = table.get(key)[1];
                    prop_assert!(kept == *tat || (kept == 0 && *tat <= now), "{key} at {now}: {kept} for {tat}");
                }
            }
        }
    }

    #[test]
    fn passed_entries_give_their_room_back() {
        let mut table = Table::new(usize::MAX);
        for key in 0..100_000_u64 {
            table.make_room(&key, key).unwrap();
            table.put(key, [key + 10, 0, 0]);
        }
        assert!(table.len() < 1_000, "{} entries for ten that lie ahead", table.len());
    }
}
