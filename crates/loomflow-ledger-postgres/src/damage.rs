//! Which accounts are refused because a row of theirs cannot be read: told by the readiness probe until it is repaired.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::accounts::Accounts;
use crate::schema::Partition;

/// How many are remembered.
const KEPT: usize = 1_000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Damage(Mutex<BTreeMap<Partition, String>>);

impl Damage {
    /// Notes which of these accounts are refused, and which are no more.
    pub(crate) fn note(&self, accounts: &Accounts) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (partition, loaded) in accounts {
            match loaded.check() {
                Ok(()) if noted.is_empty() => {}
                Ok(()) => drop(noted.remove(partition)),
                Err(why) if noted.len() < KEPT => {
                    noted.insert(*partition, why.message().to_owned());
                }
                Err(_) => {}
            }
        }
    }

    /// For a person; empty where nothing is damaged.
    pub(crate) fn detail(&self) -> String {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match noted.values().next() {
            Some(first) => {
                format!("{} account(s) refused for a row that cannot be read, such as: {first}", noted.len())
            }
            None => String::new(),
        }
    }
}
