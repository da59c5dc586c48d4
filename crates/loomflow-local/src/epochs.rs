//! The erasure epochs of partitions: a bounded table that fails closed when it is full.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};

use hashbrown::HashMap;
use loomflow_core::{Epoch, Error, ErrorKind, Owner, Result, Scope};

/// How many erased partitions a store remembers one by one when it is not told otherwise; about 40 bytes each.
pub(crate) const MAX_ERASED: usize = 1_000_000;

/// Remembers which epoch a partition was erased up to, for partitions whose data is not held.
///
/// - Owners are kept as 128-bit keyed digests, so no name of an erased user stays behind. A partition that was never
///   erased has no row.
/// - An epoch only grows. A row goes only when somebody else keeps the epoch from then on ([`EpochTable::take`]).
/// - When the table is full it is emptied into a floor: from then on every partition it does not know counts as erased
///   up to the highest epoch it ever held. That can refuse a late write that was innocent, and it can never let a guilty
///   one through. An erasure itself is never refused for want of room.
/// - No two erasures of a partition share an epoch ([`EpochTable::advance`]).
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

    /// Refuses a write that is older than the partition's last erasure.
    pub(crate) fn check(&self, scope: &Scope, operation: &'static str) -> Result<()> {
        scope.check_epoch(self.get(scope.owner()), operation)
    }

    /// Forgets the entry of `owner` and returns what [`EpochTable::get`] would have: somebody else keeps it now.
    pub(crate) fn take(&mut self, owner: &Owner) -> Epoch {
        if self.known.is_empty() {
            return Epoch::new(self.floor);
        }
        let known = self.known.remove(&self.digest(owner)).unwrap_or(0);
        Epoch::new(known.max(self.floor))
    }

    /// Raises the epoch of `scope`'s partition to the scope's, which an erasure carries, or refuses the erasure.
    pub(crate) fn advance(&mut self, scope: &Scope) -> Result<()> {
        check_newer(scope, self.get(scope.owner()))?;
        self.raise(scope.owner(), scope.epoch());
        Ok(())
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
}

/// Refuses an erasure whose epoch is not newer than the stored one. A run that began between two erasures of one epoch
/// would pass for newer than both, and what it writes late would outlive the second.
pub(crate) fn check_newer(scope: &Scope, stored: Epoch) -> Result<()> {
    if scope.epoch() > stored {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Conflict, "the partition was erased at the same time; try again"))
}

#[cfg(test)]
mod tests {
    use loomflow_core::danger::assume_scope;
    use loomflow_core::{ErrorKind, Identity, Namespace, UserId};

    use super::*;

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
    }

    #[test]
    fn a_row_is_never_given_up_and_older_scopes_are_refused() {
        let scope = |user: &str, epoch: u64| {
            let identity = Identity::User(UserId::new(user).unwrap());
            assume_scope(Namespace::default(), identity, Epoch::new(epoch))
        };
        let mut table = EpochTable::new(2);
        table.raise(&owner("a"), Epoch::new(3));
        table.raise(&owner("b"), Epoch::new(1));
        assert_eq!(table.check(&scope("a", 2), "x").unwrap_err().kind(), ErrorKind::Erased);
        assert!(table.check(&scope("a", 3), "x").is_ok() && table.check(&scope("c", 0), "x").is_ok());
        table.raise(&owner("a"), Epoch::new(9));
        assert!(table.check(&scope("c", 0), "x").is_ok(), "a known partition needs no further room");
        table.raise(&owner("c"), Epoch::new(1));
        for user in ["a", "b", "c", "d"] {
            assert_eq!(table.check(&scope(user, 8), "x").unwrap_err().kind(), ErrorKind::Erased, "{user}");
            assert!(table.check(&scope(user, 9), "x").is_ok(), "{user}");
        }
    }
}
