<<<<<<< HEAD
//! Erasure epochs of partitions whose data is not held: a bounded table that fails closed when it is full.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};

use hashbrown::HashMap;
use loomflow_core::{Epoch, Owner};

/// Remembers which epoch a partition was erased up to, at 24 bytes a partition.
///
/// Owners are kept as 128-bit keyed digests, so no name of an erased user stays behind. When the table is full it is
/// emptied into a floor: from then on every partition it does not know counts as erased up to the highest epoch it
/// ever held. That can refuse a late write that was innocent, and it can never let a guilty one through.
#[derive(Debug)]
pub(crate) struct EpochTable {
    known: HashMap<u128, u64>,
    floor: u64,
    capacity: usize,
    keys: [RandomState; 2],
}

impl EpochTable {
    /// An empty table for at most `capacity` partitions.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            known: HashMap::new(),
            floor: 0,
            capacity: capacity.max(1),
            keys: [RandomState::new(), RandomState::new()],
        }
    }

    /// The epoch up to which `owner` is erased, as far as this table knows.
    pub(crate) fn get(&self, owner: &Owner) -> Epoch {
        if self.known.is_empty() {
            return Epoch::new(self.floor);
        }
        let known = self.known.get(&self.digest(owner)).copied().unwrap_or(0);
        Epoch::new(known.max(self.floor))
    }

    /// Forgets the entry of `owner` and returns what [`EpochTable::get`] would have: somebody else keeps it now.
    pub(crate) fn take(&mut self, owner: &Owner) -> Epoch {
        if self.known.is_empty() {
            return Epoch::new(self.floor);
        }
        let known = self.known.remove(&self.digest(owner)).unwrap_or(0);
        Epoch::new(known.max(self.floor))
    }

    /// Raises the epoch of `owner` to at least `epoch`.
    pub(crate) fn raise(&mut self, owner: &Owner, epoch: Epoch) {
        if epoch.get() <= self.floor {
            return;
        }
        let digest = self.digest(owner);
        if let Some(known) = self.known.get_mut(&digest) {
            *known = epoch.get().max(*known);
            return;
        }
        if self.known.len() >= self.capacity {
            let highest = self.known.values().copied().max().unwrap_or(0);
            self.floor = self.floor.max(highest).max(epoch.get());
            self.known = HashMap::new();
            return;
        }
        self.known.insert(digest, epoch.get());
    }

    fn digest(&self, owner: &Owner) -> u128 {
        let [high, low] = self.keys.each_ref().map(|key| {
            let mut hasher = key.build_hasher();
            owner.hash(&mut hasher);
            u128::from(std::hash::Hasher::finish(&hasher))
        });
        (high << 64) | low
    }
=======
//! The erasure epochs of partitions: small rows that are never given up.

use hashbrown::HashMap;
use loomflow_core::{Epoch, Error, ErrorKind, Owner, Result, Scope};
use sha2::{Digest as _, Sha256};

/// About 40 bytes each.
const MAX_ERASED: usize = 1_000_000;

/// Which partitions were erased, and how often. Only erased ones have a row.
#[derive(Debug)]
pub(crate) struct Epochs {
    rows: HashMap<[u8; 16], Epoch>,
    max: usize,
}

impl Epochs {
    pub(crate) fn new() -> Self {
        Self { rows: HashMap::new(), max: MAX_ERASED }
    }

    pub(crate) fn get(&self, owner: &Owner) -> Epoch {
        if self.rows.is_empty() {
            Epoch::ZERO
        } else {
            self.rows.get(&key(owner)).copied().unwrap_or_default()
        }
    }

    /// Refuses a write that is older than the partition's last erasure.
    pub(crate) fn check(&self, scope: &Scope, operation: &'static str) -> Result<()> {
        scope.check_epoch(self.get(scope.owner()), operation)
    }

    /// Raises the partition's epoch to the scope's. Called before anything is erased: when there is no room for the
    /// row, nothing is done, because an erasure that a late write could undo is none.
    pub(crate) fn raise(&mut self, scope: &Scope) -> Result<()> {
        if scope.epoch() == Epoch::ZERO {
            return Ok(());
        }
        let key = key(scope.owner());
        if self.rows.len() >= self.max && !self.rows.contains_key(&key) {
            return Err(Error::new(
                ErrorKind::Capacity,
                format!("{} partitions were erased, and no more can be remembered in process", self.max),
            ));
        }
        let epoch = self.rows.entry(key).or_default();
        *epoch = (*epoch).max(scope.epoch());
        Ok(())
    }
}

/// 128 bits of the owner's hash: nobody can find a second owner for a row.
fn key(owner: &Owner) -> [u8; 16] {
    let hash: [u8; 32] = Sha256::digest(owner.encode()).into();
    let mut key = [0; 16];
    key.copy_from_slice(&hash[..16]);
    key
>>>>>>> govern
}

#[cfg(test)]
mod tests {
<<<<<<< HEAD
=======
    use loomflow_core::danger::assume_scope;
>>>>>>> govern
    use loomflow_core::{Identity, Namespace, UserId};

    use super::*;

<<<<<<< HEAD
    fn owner(user: &str) -> Owner {
        Owner::new(Namespace::default(), Identity::User(UserId::new(user).unwrap()))
    }

    #[test]
    fn epochs_are_kept_apart_and_only_rise() {
        let mut table = EpochTable::new(8);
        table.raise(&owner("a"), Epoch::new(3));
        table.raise(&owner("a"), Epoch::new(2));
        assert_eq!(table.get(&owner("a")), Epoch::new(3));
        assert_eq!(table.get(&owner("A")), Epoch::ZERO);
        assert_eq!(table.take(&owner("a")), Epoch::new(3));
        assert_eq!(table.get(&owner("a")), Epoch::ZERO);
    }

    #[test]
    fn a_full_table_fails_closed() {
        let mut table = EpochTable::new(2);
        table.raise(&owner("a"), Epoch::new(5));
        table.raise(&owner("b"), Epoch::new(1));
        table.raise(&owner("c"), Epoch::new(2));
        for user in ["a", "b", "c", "never-erased"] {
            assert_eq!(table.get(&owner(user)), Epoch::new(5), "{user}");
        }
        table.raise(&owner("d"), Epoch::new(6));
        assert_eq!(table.get(&owner("d")), Epoch::new(6), "and goes on counting above the floor");
=======
    fn scope(user: &str, epoch: u64) -> Scope {
        let identity = Identity::User(UserId::new(user).unwrap());
        assume_scope(Namespace::default(), identity, Epoch::new(epoch))
    }

    #[test]
    fn an_epoch_only_grows_and_is_never_given_up() {
        let mut epochs = Epochs { max: 2, ..Epochs::new() };
        epochs.raise(&scope("a", 3)).unwrap();
        epochs.raise(&scope("a", 2)).unwrap();
        assert_eq!(epochs.get(scope("a", 0).owner()), Epoch::new(3));
        assert_eq!(epochs.check(&scope("a", 2), "x").unwrap_err().kind(), ErrorKind::Erased);
        epochs.raise(&scope("b", 1)).unwrap();
        assert_eq!(epochs.raise(&scope("c", 1)).unwrap_err().kind(), ErrorKind::Capacity);
        assert!(epochs.raise(&scope("a", 9)).is_ok() && epochs.check(&scope("c", 0), "x").is_ok());
>>>>>>> govern
    }
}
