//! Ids of holds that prove by themselves whose they are.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::clock::Timestamp;
use crate::ids::HoldId;
use crate::scope::Owner;

/// Draws ids of holds, and tells those it drew for an owner from all others, without remembering any.
///
/// An id is 80 random bits and, above them, 48 bits of an HMAC of them and the owner under a secret that all processes on
/// one store share. So a second close of a hold that is long gone is recognised as one, and a guessed id is not.
#[derive(Clone)]
pub struct HoldIds {
    mac: Hmac<Sha256>,
}

const BODY: u128 = (1 << 80) - 1;

impl HoldIds {
    /// Ids under `secret`, which a store draws once at random and keeps.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self { mac: Hmac::new_from_slice(secret).expect("an HMAC takes a key of any length") }
    }

    /// A fresh id of a hold of `owner`.
    #[must_use]
    pub fn draw(&self, owner: &Owner) -> HoldId {
        let body = rand::random::<u128>() & BODY;
        HoldId::from_u128(self.proof(owner, body) << 80 | body)
    }

    /// A fresh id of a hold of `owner` that says when it was drawn: the first 32 of the 80 bits are the second since 1970 (0
    /// for a time before, the largest for one after 2106), and the other 48 are random.
    #[must_use]
    pub fn draw_at(&self, owner: &Owner, now: Timestamp) -> HoldId {
        let second = u32::try_from(now.as_micros().max(0) / 1_000_000).unwrap_or(u32::MAX);
        let body = u128::from(second) << 48 | (rand::random::<u128>() & (BODY >> 32));
        HoldId::from_u128(self.proof(owner, body) << 80 | body)
    }

    /// Whether this id was drawn for a hold of `owner`, ever.
    #[must_use]
    pub fn granted(&self, owner: &Owner, id: HoldId) -> bool {
        let id = id.as_u128();
        id >> 80 == self.proof(owner, id & BODY)
    }

    fn proof(&self, owner: &Owner, body: u128) -> u128 {
        let mut mac = self.mac.clone();
        mac.update(&owner.partition());
        mac.update(&body.to_be_bytes());
        let tag = mac.finalize().into_bytes();
        tag[..6].iter().fold(0, |proof, byte| proof << 8 | u128::from(*byte))
    }
}

impl fmt::Debug for HoldIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HoldIds(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Identity, Namespace, UserId};

    #[test]
    fn an_id_proves_itself_to_its_own_owner_alone() {
        let ids = HoldIds::new(&[7; 32]);
        let owner = |user: &str| Owner::new(Namespace::default(), Identity::User(UserId::new(user).unwrap()));
        let id = ids.draw(&owner("user_1"));
        assert!(ids.granted(&owner("user_1"), id) && HoldIds::new(&[7; 32]).granted(&owner("user_1"), id));
        assert!(!ids.granted(&owner("user_10"), id));
        assert!(!HoldIds::new(&[8; 32]).granted(&owner("user_1"), id), "another store has another secret");
        let second = |micros| ids.draw_at(&owner("user_1"), Timestamp::from_micros(micros));
        for (micros, says) in [(-1, 0), (1_999_999, 1), (1_772_000_000_000_000, 1_772_000_000)] {
            let dated = second(micros);
            assert_eq!(dated.as_u128() >> 48 & 0xffff_ffff, says);
            assert!(ids.granted(&owner("user_1"), dated) && !ids.granted(&owner("user_10"), dated));
            assert_ne!(dated, second(micros));
        }
        for bit in 0..128 {
            let forged = HoldId::from_u128(id.as_u128() ^ (1 << bit));
            assert!(!ids.granted(&owner("user_1"), forged), "{bit}");
        }
    }
}
