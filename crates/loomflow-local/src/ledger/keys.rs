//! The one place where a scope becomes a key: the keyed hash of a partition, and the ids of its holds.

use std::hash::{BuildHasher, Hasher, RandomState};

use loomflow_core::{HoldId, Owner};

use super::holds::PLACE_BITS;

/// The keyed hash of a partition: 128 bits of SipHash under a key that never leaves the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ident(pub(crate) u128);

impl Ident {
    /// For a table's index.
    pub(super) fn hash(self) -> u64 {
        self.0 as u64
    }

    /// Which of `shards` (a power of two) keeps the partition.
    pub(crate) fn shard(self, shards: usize) -> usize {
        (self.0 >> 64) as usize & (shards - 1)
    }
}

/// The process's random key.
#[derive(Debug, Default)]
pub(crate) struct Keys(RandomState);

impl Keys {
    /// The key of a partition, made from its injective encoding.
    pub(crate) fn ident(&self, owner: &Owner) -> Ident {
        let encoded = owner.encode();
        let mut hasher = self.0.build_hasher();
        hasher.write(&encoded);
        // Two halves that a keyed hash makes as unlike each other as two keys would.
        hasher.write_u8(0);
        let low = hasher.finish();
        hasher.write_u8(1);
        Ident(u128::from(low) | u128::from(hasher.finish()) << 64)
    }

    /// The id of a hold: 48 bits that prove it was granted to this partition, 56 bits that count, and its place.
    ///
    /// The proof is what makes a second close recognisable without remembering every hold that ever was.
    pub(super) fn hold_id(&self, ident: Ident, serial: u64, place: u32) -> u128 {
        let body = u128::from(serial) << PLACE_BITS | u128::from(place);
        let body = body & BODY;
        u128::from(self.proof(ident, body)) << 80 | body
    }

    /// Whether this ledger granted this id to this partition, ever.
    pub(super) fn granted(&self, ident: Ident, id: HoldId) -> bool {
        let id = id.as_u128();
        (id >> 80) as u64 == self.proof(ident, id & BODY)
    }

    fn proof(&self, ident: Ident, body: u128) -> u64 {
        self.0.hash_one((b'h', ident.0, body)) >> 16
    }
}

const BODY: u128 = (1 << 80) - 1;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use loomflow_core::{Identity, Namespace, UserId};

    #[test]
    fn an_id_proves_itself_to_its_own_partition_alone() {
        let keys = Keys::default();
        let ident = |user: &str| {
            keys.ident(&Owner::new(Namespace::default(), Identity::User(UserId::new(user).unwrap())))
        };
        let (one, ten) = (ident("user_1"), ident("user_10"));
        assert_ne!(one, ten);
        let id = keys.hold_id(one, 77, 5);
        assert_eq!(id & 0xff_ffff, 5);
        assert!(keys.granted(one, HoldId::from_u128(id)));
        assert!(!keys.granted(ten, HoldId::from_u128(id)));
        assert!(!keys.granted(one, HoldId::from_u128(id ^ 1)));
        assert!(!Keys::default().granted(one, HoldId::from_u128(id)), "another process has another key");
    }
}
