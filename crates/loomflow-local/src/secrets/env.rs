//! Secrets from the process environment, read when they are asked for.

use std::fmt::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{Error, ErrorKind, Result, Scope, Secret, SecretRef, Secrets};

/// Resolves a name from the environment variable of that name, each time it is asked: a changed value is seen without
/// a restart where the environment can change at all.
///
/// `/`, `.` and `-` of a name are written `_` in the variable: `team/API-KEY` is read from `team_API_KEY`.
///
/// With [`with_per_tenant`](Self::with_per_tenant), a tenant's own variable comes first: the name, two underscores, and
/// the owner's encoding in hex, so that no two tenants share one.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct EnvSecrets {
    per_tenant: bool,
}

impl EnvSecrets {
    /// The same secrets for every tenant.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a tenant's own variable is looked for first. Off by default.
    #[must_use]
    pub fn with_per_tenant(mut self, yes: bool) -> Self {
        self.per_tenant = yes;
        self
    }

    /// The name of the variable that holds this tenant's own value of `reference`.
    #[must_use]
    pub fn tenant_variable(scope: &Scope, reference: &SecretRef) -> String {
        let mut name = shared_variable(reference);
        name.push_str("__");
        for byte in scope.owner().encode() {
            let _ = write!(name, "{byte:02X}");
        }
        name
    }
}

#[async_trait]
impl Secrets for EnvSecrets {
    async fn resolve(&self, scope: &Scope, reference: &SecretRef) -> Result<Arc<Secret<String>>> {
        if self.per_tenant
            && let Some(own) = read(&Self::tenant_variable(scope, reference))
        {
            return Ok(own);
        }
        let name = shared_variable(reference);
        // A shared name must not reach a tenant's variable by spelling it out.
        let found = if name.contains("__") && self.per_tenant { None } else { read(&name) };
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("secret {reference} was not found: the environment variable {name} is not set"),
            )
        })
    }
}

fn shared_variable(reference: &SecretRef) -> String {
    reference.as_str().replace(['/', '.', '-'], "_")
}

#[allow(clippy::disallowed_methods, reason = "this is the room that reads the environment")]
fn read(name: &str) -> Option<Arc<Secret<String>>> {
    let value = std::env::var(name).ok()?;
    (!value.is_empty()).then(|| Arc::new(Secret::new(value)))
}

#[cfg(test)]
mod tests {
    use loomflow_core::danger::assume_scope;
    use loomflow_core::{Epoch, Identity, Namespace, UserId};

    use super::*;

    fn scope(user: &str) -> Scope {
        assume_scope(Namespace::default(), Identity::User(UserId::new(user).unwrap()), Epoch::ZERO)
    }

    #[tokio::test]
    async fn a_name_is_read_from_its_variable() {
        let secrets = EnvSecrets::new();
        let path = secrets.resolve(&scope("a"), &SecretRef::new("PATH").unwrap()).await.unwrap();
        assert!(!path.expose().is_empty());
        let missing = SecretRef::new("team/NOT-SET-anywhere.1").unwrap();
        let error = secrets.resolve(&scope("a"), &missing).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("team_NOT_SET_anywhere_1"), "{error}");
    }

    #[test]
    fn no_two_tenants_share_a_variable() {
        let key = SecretRef::new("KEY").unwrap();
        let names: Vec<_> = ["a", "A", "a_", "ab", "ä"]
            .iter()
            .map(|u| EnvSecrets::tenant_variable(&scope(u), &key))
            .collect();
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name) && name.is_ascii());
        }
    }
}
