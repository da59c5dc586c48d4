//! Values that must not be printed, and where they come from.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use zeroize::Zeroize;

use crate::error::{Error, Result};
use crate::scope::Scope;

/// A value that is never printed, serialised or copied, and that is wiped from memory when it is dropped.
///
/// There is no `Debug`, `Display`, `Serialize` or `Clone`: share it as `Arc<Secret<_>>`. [`Secret::expose`] is the
/// one way to the value, so a reader can search for who uses it.
#[allow(missing_debug_implementations, reason = "a secret that can be formatted will be")]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes a value into custody. Wipe or drop your other copies of it.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value. Do not keep it, log it or format it.
    #[must_use]
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The name of a secret, such as `OPENAI_API_KEY`. Naming grants nothing.
///
/// 1..=128 characters of `A-Z a-z 0-9 _ . / -`, so that a name cannot leave a store's path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretRef(Arc<str>);

impl SecretRef {
    /// Validates `name`; a leading `secret:` is taken off.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for an empty, over-long or path-like name.
    pub fn new(name: &str) -> Result<Self> {
        let name = name.strip_prefix("secret:").unwrap_or(name);
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'/' | b'-');
        let climbs = name.split('/').any(|part| part.is_empty() || part == "." || part == "..");
        if name.is_empty() || name.len() > 128 || !name.bytes().all(allowed) || climbs {
            return Err(Error::invalid_input(format!(
                "{name:?} is not the name of a secret: use 1 to 128 of A-Z a-z 0-9 _ . / - without empty or dot parts"
            )));
        }
        Ok(Self(Arc::from(name)))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Resolves names to secrets, per scope, so that a tenant can bring a key of its own.
#[async_trait]
pub trait Secrets: fmt::Debug + Send + Sync + 'static {
    /// The secret of that name for this scope.
    ///
    /// - A name nobody has is [`ErrorKind::NotFound`](crate::ErrorKind::NotFound); the message names the secret and
    ///   where it was looked for, never a value.
    /// - A store keyed by tenant answers with the tenant's own value first, then with the shared one, and never
    ///   with another tenant's.
    async fn resolve(&self, scope: &Scope, reference: &SecretRef) -> Result<Arc<Secret<String>>>;
}

/// Resolves nothing: the default of an agent that needs no secret.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit that is what its name says")]
pub struct NoSecrets;

#[async_trait]
impl Secrets for NoSecrets {
    async fn resolve(&self, _scope: &Scope, reference: &SecretRef) -> Result<Arc<Secret<String>>> {
        Err(Error::new(
            crate::ErrorKind::NotFound,
            format!(
                "no secret store is configured, so {reference} cannot be resolved; set one with .secrets(..)"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_cannot_leave_its_path() {
        for bad in ["", "../etc/passwd", "a//b", "/a", "a/", "a b", "a\n", "./x", "a/../b"] {
            assert!(SecretRef::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(SecretRef::new("secret:team/KEY-1").unwrap().as_str(), "team/KEY-1");
    }
}
