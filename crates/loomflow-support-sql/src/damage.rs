//! Which accounts are refused because a row of theirs cannot be read: told by the readiness probe until it is repaired.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many are remembered.
const KEPT: usize = 1_000;

/// Which partitions are refused because a row of theirs cannot be read, as far as a process came across them: the first
/// 1,000.
#[derive(Debug, Default)]
pub struct Damage(Mutex<BTreeMap<[u8; 32], String>>);

impl Damage {
    /// A row of this partition cannot be read. `why` says which, and names nobody.
    pub fn found(&self, partition: &[u8; 32], why: &str) {
        let mut noted = self.lock();
        if noted.len() < KEPT || noted.contains_key(partition) {
            noted.insert(*partition, why.to_owned());
        }
    }

    /// The rows of this partition could be read.
    pub fn sound(&self, partition: &[u8; 32]) {
        self.lock().remove(partition);
    }

    /// For a person: how many are refused, and why the first is. Empty where none is.
    #[must_use]
    pub fn detail(&self) -> String {
        let noted = self.lock();
        let first = |why| format!("{} account(s) refused for a damaged row, such as: {why}", noted.len());
        noted.values().next().map(first).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<[u8; 32], String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a key, for a person or a statement: nothing but `0-9 a-f`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes what is written");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_told_until_it_is_sound() {
        let damage = Damage::default();
        damage.sound(&[1; 32]);
        assert_eq!(damage.detail(), "");
        damage.found(&[1; 32], "one");
        damage.found(&[1; 32], "one, again");
        damage.found(&[2; 32], "two");
        assert_eq!(damage.detail(), "2 account(s) refused for a damaged row, such as: one, again");
        damage.sound(&[1; 32]);
        assert_eq!(damage.detail(), "1 account(s) refused for a damaged row, such as: two");
        (0..2_000_u16).for_each(|n| {
            let mut partition = [9; 32];
            partition[..2].copy_from_slice(&n.to_be_bytes());
            damage.found(&partition, "many");
        });
        assert!(damage.detail().starts_with("1000 account(s)"));
    }

    #[test]
    fn a_key_is_shown_in_hex() {
        assert_eq!(hex(&[0, 9, 0xab, 0xff]), "0009abff");
    }
}
