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
}

#[cfg(test)]
mod tests {
    use loomflow_core::danger::assume_scope;
    use loomflow_core::{Identity, Namespace, UserId};

    use super::*;

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
    }
}
