//! What a process remembers between writes: accounts that it found damaged, and how far it looked for users who are gone.

use std::sync::{Mutex, PoisonError};

use loomflow_support_sql::Damage;

use crate::schema::Key;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    pub(crate) damage: Damage,
    looked: Mutex<Option<Key>>,
}

impl Keeping {
    /// Up to which user it was looked; nowhere yet is `None`.
    pub(crate) fn looked(&self) -> Option<Key> {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_looked(&self, key: Option<Key>) {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = key;
    }
}
