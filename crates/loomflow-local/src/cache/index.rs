//! Which cached values belong to whom, so that a tenant's can be emptied at once and counted.
//!
//! A cache drops entries in its own time. A value therefore lives in a [`Slot`], the cache holds the slot, and this
//! index knows every live slot of an owner: clearing empties the slots, whatever the cache still does with them.

use std::hash::BuildHasher;
use std::sync::{Arc, Weak};

use hashbrown::{DefaultHashBuilder, HashMap};
use loomflow_core::{Epoch, Owner, Result, Scope};
use parking_lot::Mutex;

use crate::epochs::EpochTable;

const SHARDS: usize = 16;

/// One cached value, until it is emptied.
#[derive(Debug)]
pub(super) struct Slot {
    owner: Owner,
    epoch: Epoch,
    number: u64,
    key: Arc<[u8]>,
    value: Mutex<Option<Arc<str>>>,
    index: Weak<Index>,
}

impl Slot {
    pub(super) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The key it is cached under.
    pub(super) fn key(&self) -> &Arc<[u8]> {
        &self.key
    }

    pub(super) fn value(&self) -> Option<Arc<str>> {
        self.value.lock().clone()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(index) = self.index.upgrade() {
            index.remove(self);
        }
    }
}

/// See the module. Holds exactly the slots that are alive.
#[derive(Debug)]
pub(super) struct Index {
    shards: [Mutex<Shard>; SHARDS],
    hasher: DefaultHashBuilder,
}

#[derive(Debug)]
struct Shard {
    slots: HashMap<Owner, HashMap<u64, Weak<Slot>>>,
    cleared: EpochTable,
    next: u64,
}

impl Index {
    /// An empty index that remembers about `max_cleared` erasures one by one.
    pub(super) fn new(max_cleared: usize) -> Arc<Self> {
        let shard = || Shard {
            slots: HashMap::new(),
            cleared: EpochTable::new(max_cleared.div_ceil(SHARDS)),
            next: 0,
        };
        Arc::new(Self {
            shards: std::array::from_fn(|_| Mutex::new(shard())),
            hasher: DefaultHashBuilder::default(),
        })
    }

    /// A slot of `scope` with `value`, unless a newer epoch was cleared: refused under the same lock that clears.
    pub(super) fn open(self: &Arc<Self>, scope: &Scope, key: Arc<[u8]>, value: &str) -> Result<Arc<Slot>> {
        let mut shard = self.shard(scope.owner()).lock();
        shard.cleared.check(scope, "tool_cache.put")?;
        shard.next += 1;
        let slot = Arc::new(Slot {
            owner: scope.owner().clone(),
            epoch: scope.epoch(),
            number: shard.next,
            key,
            value: Mutex::new(Some(value.into())),
            index: Arc::downgrade(self),
        });
        let number = slot.number;
        shard.slots.entry(scope.owner().clone()).or_default().insert(number, Arc::downgrade(&slot));
        Ok(slot)
    }

    /// Empties every slot of `scope` of its epoch and before, and refuses older ones from now on. Returns how many
    /// held a value, and the slots, for their keys to be dropped too.
    ///
    /// A clear whose epoch was cleared before empties all the same, and from then on puts of that very epoch are refused
    /// as well: a run that began between the two clears must not write back after the second.
    pub(super) fn clear(&self, scope: &Scope) -> (u64, Vec<Arc<Slot>>) {
        // A slot may die by our last reference; its drop takes this lock, so all outlive it.
        let (mut cleared, mut younger) = (Vec::new(), Vec::new());
        let mut shard = self.shard(scope.owner()).lock();
        let again = scope.epoch() <= shard.cleared.get(scope.owner()) && scope.epoch() > Epoch::ZERO;
        let refused = if again { Epoch::new(scope.epoch().get().saturating_add(1)) } else { scope.epoch() };
        shard.cleared.raise(scope.owner(), refused);
        let mut emptied = 0;
        for slot in shard.slots.get(scope.owner()).into_iter().flat_map(HashMap::values) {
            let Some(slot) = slot.upgrade() else { continue };
            if slot.epoch > scope.epoch() {
                younger.push(slot);
                continue;
            }
            emptied += u64::from(slot.value.lock().take().is_some());
            cleared.push(slot);
        }
        drop(shard);
        drop(younger);
        (emptied, cleared)
    }

    fn remove(&self, slot: &Slot) {
        let mut shard = self.shard(&slot.owner).lock();
        if let Some(slots) = shard.slots.get_mut(&slot.owner) {
            slots.remove(&slot.number);
            if slots.is_empty() {
                shard.slots.remove(&slot.owner);
            }
        }
    }

    fn shard(&self, owner: &Owner) -> &Mutex<Shard> {
        let hash = usize::try_from(self.hasher.hash_one(owner) >> 40).unwrap_or(0);
        &self.shards[hash % SHARDS]
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().slots.values().map(HashMap::len).sum::<usize>()).sum()
    }
}
