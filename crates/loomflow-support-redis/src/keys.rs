//! Where a partition becomes the name of a key, for every backend on Redis.

use std::fmt;

use loomflow_core::{Error, ErrorKind, Owner, Result};

/// The names of one program's keys: they all begin with its prefix, so that several may share a server.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// Keys that begin with `prefix`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] unless it is 1 to 32 of `A-Z a-z 0-9 _ . -`: a brace or a colon would change what the rest of a
    /// name means.
    pub fn new(prefix: &str) -> Result<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if prefix.is_empty() || prefix.len() > 32 || !prefix.bytes().all(allowed) {
            let message =
                format!("{prefix:?} cannot begin the names of keys: use 1 to 32 of A-Z a-z 0-9 _ . -");
            return Err(Error::new(ErrorKind::Config, message).with_operation("connect"));
        }
        Ok(Self { prefix: prefix.to_owned() })
    }

    /// The prefix.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A key that belongs to no tenant, such as the version of a schema. `name` is the program's own word.
    #[must_use]
    pub fn shared(&self, name: &'static str) -> String {
        format!("{}:{name}", self.prefix)
    }

    /// The keys of a tenant.
    #[must_use]
    pub fn of(&self, owner: &Owner) -> TenantKeys {
        self.of_partition(owner.partition_hex())
    }

    /// The keys of the tenant with this partition in 64 lower-case hex digits.
    #[must_use]
    pub fn of_partition(&self, hex: String) -> TenantKeys {
        TenantKeys { base: format!("{}:{{{hex}}}", self.prefix), partition: hex }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.prefix)
    }
}

/// The names of one tenant's keys: `prefix:{<hex of the partition>}:<kind>`. The braces make the partition the hash tag, so
/// that all keys of a tenant lie in one slot of a cluster and one script may use them together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantKeys {
    base: String,
    partition: String,
}

impl TenantKeys {
    /// What all of the tenant's keys begin with.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The partition in hex, for where a store needs it as a text that nothing folds or splits.
    #[must_use]
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// The key of `kind`, the program's own word.
    #[must_use]
    pub fn key(&self, kind: &str) -> String {
        format!("{}:{kind}", self.base)
    }
}

#[cfg(test)]
mod tests {
    use loomflow_core::{Identity, Namespace, UserId};

    use super::*;

    fn owner(namespace: &str, user: &str) -> Owner {
        Owner::new(Namespace::new(namespace).unwrap(), Identity::User(UserId::new(user).unwrap()))
    }

    #[test]
    fn nothing_a_user_chose_is_in_a_key() {
        let keys = Keys::new("lf").unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for user in ["a", "A", "a,b", "}", "{x}", "a:b", "*", "[a]", "a\\", "b} ep {a", "\u{e9}", "e\u{301}"]
        {
            let key = keys.of(&owner("n:{", user)).key("ep");
            let hex = key.strip_prefix("lf:{").and_then(|k| k.strip_suffix("}:ep")).unwrap();
            assert!(hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
            assert!(seen.insert(key), "{user:?} shares a key");
        }
    }

    #[test]
    fn a_prefix_cannot_change_the_form_of_a_key() {
        for bad in ["", "a:b", "{", "a}", "a b", "\u{e9}", "x*", &"x".repeat(33)] {
            assert_eq!(Keys::new(bad).unwrap_err().kind(), ErrorKind::Config, "{bad:?}");
        }
        assert_eq!(Keys::new("my-app_1.0").unwrap().shared("schema"), "my-app_1.0:schema");
    }
}
