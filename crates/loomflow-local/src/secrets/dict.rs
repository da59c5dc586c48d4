//! Secrets from a table in memory: shared ones, and a tenant's own.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use hashbrown::HashMap;
use loomflow_core::{
    Error, ErrorKind, Identity, Namespace, Owner, Result, Scope, Secret, SecretRef, Secrets,
};
use parking_lot::RwLock;

/// Resolves a name to the tenant's own value, or else to the shared one. Never to another tenant's.
///
/// Values can be set while runs go on; the next resolution sees them. Nothing of it is ever printed.
#[derive(Default)]
pub struct DictSecrets(RwLock<Tables>);

#[derive(Default)]
struct Tables {
    shared: HashMap<SecretRef, Arc<Secret<String>>>,
    own: HashMap<Owner, HashMap<SecretRef, Arc<Secret<String>>>>,
}

impl DictSecrets {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value for every tenant that has none of its own.
    #[must_use]
    pub fn with(self, name: SecretRef, value: Secret<String>) -> Self {
        self.set(name, value);
        self
    }

    /// Adds a value for one tenant of one namespace.
    #[must_use]
    pub fn with_own(
        self,
        namespace: Namespace,
        identity: Identity,
        name: SecretRef,
        value: Secret<String>,
    ) -> Self {
        self.set_own(namespace, identity, name, value);
        self
    }

    /// Sets the value for every tenant that has none of its own.
    pub fn set(&self, name: SecretRef, value: Secret<String>) {
        self.0.write().shared.insert(name, Arc::new(value));
    }

    /// Sets the value for one tenant of one namespace.
    pub fn set_own(&self, namespace: Namespace, identity: Identity, name: SecretRef, value: Secret<String>) {
        let owner = Owner::new(namespace, identity);
        self.0.write().own.entry(owner).or_default().insert(name, Arc::new(value));
    }

    /// Takes away everything that was set for one tenant of one namespace.
    pub fn remove_own(&self, namespace: Namespace, identity: Identity) {
        self.0.write().own.remove(&Owner::new(namespace, identity));
    }
}

impl fmt::Debug for DictSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.0.read();
        f.debug_struct("DictSecrets")
            .field("shared", &tables.shared.len())
            .field("tenants", &tables.own.len())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Secrets for DictSecrets {
    async fn resolve(&self, scope: &Scope, reference: &SecretRef) -> Result<Arc<Secret<String>>> {
        let tables = self.0.read();
        let own = tables.own.get(scope.owner()).and_then(|own| own.get(reference));
        own.or_else(|| tables.shared.get(reference)).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("secret {reference} was not found: neither for this user nor for all in the table"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use loomflow_core::danger::assume_scope;
    use loomflow_core::{Epoch, UserId};

    use super::*;

    fn user(id: &str) -> Identity {
        Identity::User(UserId::new(id).unwrap())
    }

    #[tokio::test]
    async fn a_tenants_own_value_comes_first_and_is_nobody_elses() {
        let name = |n: &str| SecretRef::new(n).unwrap();
        let value = |v: &str| Secret::new(v.to_owned());
        let ns = Namespace::default;
        let secrets = DictSecrets::new()
            .with(name("KEY"), value("shared"))
            .with_own(ns(), user("user_1"), name("KEY"), value("one"))
            .with_own(ns(), user("user_1"), name("ONLY"), value("mine"));
        let get = |namespace: Namespace, identity, key| {
            let (secrets, name) = (&secrets, name(key));
            async move {
                let scope = assume_scope(namespace, identity, Epoch::ZERO);
                secrets.resolve(&scope, &name).await.map(|s| s.expose().clone()).map_err(|e| e.kind())
            }
        };
        assert_eq!(get(ns(), user("user_1"), "KEY").await.unwrap(), "one");
        for (namespace, other) in [
            (ns(), user("user_10")),
            (ns(), user("User_1")),
            (ns(), Identity::Anonymous),
            (Namespace::new("n2").unwrap(), user("user_1")),
        ] {
            assert_eq!(get(namespace.clone(), other.clone(), "KEY").await.unwrap(), "shared");
            assert_eq!(get(namespace, other, "ONLY").await.unwrap_err(), ErrorKind::NotFound);
        }
        let debug = format!("{secrets:?}");
        assert!(!debug.contains("one") && !debug.contains("mine") && !debug.contains("KEY"), "{debug}");
        secrets.remove_own(ns(), user("user_1"));
        assert_eq!(get(ns(), user("user_1"), "KEY").await.unwrap(), "shared");
    }
}
