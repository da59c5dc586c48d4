//! A double of a secret store with a value per tenant, which can be changed while calls go on.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use loomflow_core::{Error, ErrorKind, Owner, Result, Scope, Secret, SecretRef, Secrets};

/// Values by tenant and name; those without a tenant are everybody's.
type Values = HashMap<(Option<Owner>, SecretRef), Arc<Secret<String>>>;

/// A double of [`Secrets`]: each tenant's own value first, then the shared one.
#[derive(Default)]
pub struct TenantSecrets {
    values: Mutex<Values>,
    down: Mutex<Option<ErrorKind>>,
}

impl TenantSecrets {
    /// A store that has nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the value of one tenant; an earlier one is gone.
    pub fn set(&self, owner: &Owner, name: &SecretRef, value: impl Into<String>) {
        let value = Arc::new(Secret::new(value.into()));
        self.lock().insert((Some(owner.clone()), name.clone()), value);
    }

    /// Sets the value of everybody who has none.
    pub fn set_shared(&self, name: &SecretRef, value: impl Into<String>) {
        self.lock().insert((None, name.clone()), Arc::new(Secret::new(value.into())));
    }

    /// Forgets the value of everybody who has none.
    pub fn remove_shared(&self, name: &SecretRef) {
        self.lock().remove(&(None, name.clone()));
    }

    /// Fails every resolution from now on, as a store that is down does.
    pub fn fail(&self, kind: ErrorKind) {
        *self.down.lock().unwrap_or_else(PoisonError::into_inner) = Some(kind);
    }

    fn lock(&self) -> MutexGuard<'_, Values> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Secrets for TenantSecrets {
    async fn resolve(&self, scope: &Scope, reference: &SecretRef) -> Result<Arc<Secret<String>>> {
        if let Some(kind) = *self.down.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(Error::new(kind, "the double is down"));
        }
        let values = self.lock();
        let own = values.get(&(Some(scope.owner().clone()), reference.clone()));
        let found = own.or_else(|| values.get(&(None, reference.clone()))).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("the double has no secret {reference}")))
    }
}

impl fmt::Debug for TenantSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantSecrets")
    }
}
