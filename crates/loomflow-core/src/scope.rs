//! The capability every data call needs, and the proof of ownership every read comes back with.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Identity, Namespace, UserId};

/// Counts the erasures of a partition. A write that carries an older epoch than the store's is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch of a partition that was never erased.
    pub const ZERO: Self = Self(0);

    /// The epoch with this number: what a store read back.
    #[must_use]
    pub fn new(n: u64) -> Self {
        Self(n)
    }

    /// The number, for a store's column.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Whose a record is, as plain data: what a store writes beside a record and decodes from it again.
///
/// An `Owner` names a partition and grants nothing: no backend method takes one.
#[derive(Clone, Eq, Serialize, Deserialize)]
pub struct Owner(Arc<OwnerParts>);

#[derive(PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct OwnerParts {
    namespace: Namespace,
    identity: Identity,
}

impl Owner {
    /// The owner with these parts: what a store read back from a row.
    #[must_use]
    pub fn new(namespace: Namespace, identity: Identity) -> Self {
        Self(Arc::new(OwnerParts { namespace, identity }))
    }

    /// The owner whose parts a row's columns hold; no user is the anonymous bucket.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] when a column holds what can be nobody's: the row was not written by this program.
    pub fn from_columns(namespace: &str, user_id: Option<&str>) -> Result<Self> {
        let identity = user_id.map_or(Ok(Identity::Anonymous), |id| UserId::new(id).map(Identity::User));
        match (Namespace::new(namespace), identity) {
            (Ok(namespace), Ok(identity)) => Ok(Self::new(namespace, identity)),
            _ => Err(Error::new(ErrorKind::Internal, "a stored row has an owner that cannot be anybody")),
        }
    }

    /// The partition as a key of fixed length: the SHA-256 of [`Owner::encode`]. It folds nothing and splits nowhere,
    /// whatever the ids are made of, and it tells nothing about them.
    #[must_use]
    pub fn partition(&self) -> [u8; 32] {
        Sha256::digest(self.encode()).into()
    }

    /// [`Owner::partition`] in 64 lower-case hex digits, where a key has to be text.
    #[must_use]
    pub fn partition_hex(&self) -> String {
        self.partition().iter().fold(String::with_capacity(64), |mut hex, byte| {
            hex.extend(
                [byte >> 4, byte & 15].map(|n| char::from_digit(n.into(), 16).expect("a nibble is a digit")),
            );
            hex
        })
    }

    /// The application's share of the store.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// The user, or anonymous.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The user id, or `None` for the anonymous bucket.
    #[must_use]
    pub fn user_id(&self) -> Option<&UserId> {
        self.0.identity.user_id()
    }

    /// An injective, length-delimited encoding: no two owners share it, and none is a prefix of another's.
    ///
    /// A key, a hash or a row-level filter is made from this and from nothing else.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let namespace = self.0.namespace.as_str().as_bytes();
        let (tag, user) = match &self.0.identity {
            Identity::User(id) => (b'u', id.as_str().as_bytes()),
            Identity::Anonymous => (b'a', &b""[..]),
        };
        let mut out = Vec::with_capacity(namespace.len() + user.len() + 8);
        for part in [namespace, user] {
            out.extend_from_slice(
                &u16::try_from(part.len()).expect("ids are at most 256 bytes").to_be_bytes(),
            );
            out.extend_from_slice(part);
        }
        out.insert(0, tag);
        out
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        // One allocation is shared by everything a run touches, so most comparisons end here.
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl PartialOrd for Owner {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Owner {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl std::hash::Hash for Owner {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.0.namespace)?;
        match &self.0.identity {
            Identity::User(id) => write!(f, "{:?}", id.as_str()),
            Identity::Anonymous => f.write_str("(anonymous)"),
        }
    }
}

/// The partition key, as a capability: namespace, identity and erasure epoch.
///
/// Every backend method takes a `&Scope` first, and only the agent can make one, from an identity that was
/// authenticated. There is no public constructor, no `Deserialize`, no `Default`, no `From` and no `Clone`, so
/// code that was handed a scope can use it and cannot make another. [`danger`](crate::danger) holds the loud way
/// around, for conformance suites and operators' tools.
pub struct Scope {
    owner: Owner,
    epoch: Epoch,
}

impl Scope {
    pub(crate) fn mint(owner: Owner, epoch: Epoch) -> Self {
        Self { owner, epoch }
    }

    pub(crate) fn dup(&self) -> Self {
        Self { owner: self.owner.clone(), epoch: self.epoch }
    }

    /// The partition as plain data, to write beside a record.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The application's share of the store.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        self.owner.namespace()
    }

    /// The user, or anonymous.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        self.owner.identity()
    }

    /// The user id, or `None` for the anonymous bucket.
    #[must_use]
    pub fn user_id(&self) -> Option<&UserId> {
        self.owner.user_id()
    }

    /// The erasure epoch this scope was minted in.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether a record of `owner` belongs to this scope.
    #[must_use]
    pub fn owns(&self, owner: &Owner) -> bool {
        self.owner == *owner
    }

    /// Refuses a write that is older than the store's last erasure of this partition.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Erased`] when `stored` is newer than the scope's epoch.
    pub fn check_epoch(&self, stored: Epoch, operation: &'static str) -> Result<()> {
        if stored > self.epoch { Err(Error::erased(operation)) } else { Ok(()) }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({:?}@{})", self.owner, self.epoch.0)
    }
}

/// A value read from a store, with the owner that was decoded from the stored row.
///
/// Fill the owner in from the row and never from the scope that was asked with: core compares the two, and that
/// comparison is what catches a query without its filter.
#[derive(Clone, Debug, PartialEq)]
pub struct Owned<T> {
    owner: Owner,
    value: T,
}

impl<T> Owned<T> {
    /// A value and the owner decoded from its row.
    #[must_use]
    pub fn new(owner: Owner, value: T) -> Self {
        Self { owner, value }
    }

    /// Whose the value is.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The value, if it belongs to `scope`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::IsolationViolation`] when it belongs to somebody else. The error names nobody.
    pub fn open(self, scope: &Scope) -> Result<T> {
        if scope.owns(&self.owner) {
            Ok(self.value)
        } else {
            Err(Error::new(
                ErrorKind::IsolationViolation,
                "a store returned a record of another tenant; it was withheld",
            ))
        }
    }

    pub(crate) fn peek(&self) -> &T {
        &self.value
    }

    pub(crate) fn into_value(self) -> T {
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(namespace: &str, user: Option<&str>) -> Owner {
        let identity = user.map_or(Identity::Anonymous, |u| Identity::User(UserId::new(u).unwrap()));
        Owner::new(Namespace::new(namespace).unwrap(), identity)
    }

    #[test]
    fn the_encoding_is_injective_and_prefix_free() {
        let all = [
            owner("a", Some("bc")),
            owner("ab", Some("c")),
            owner("a", Some("b")),
            owner("a", None),
            owner("a", Some("bcd")),
            owner("a", Some("B")),
        ];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                if i != j {
                    assert!(!b.encode().starts_with(&a.encode()), "{a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn an_owner_is_known_again_from_its_columns_and_has_a_key_of_its_own() {
        for all in [owner("n", Some("alice")), owner("n", Some("Alice")), owner("n", None)] {
            let again = Owner::from_columns(all.namespace().as_str(), all.user_id().map(UserId::as_str));
            assert_eq!(again.unwrap(), all);
        }
        assert_eq!(
            owner("n", Some("alice")).partition_hex(),
            "b72551bd468cdd6b8e2f5eb6f97367cd08f106c17329a3688f414f51946ecc79"
        );
        assert_ne!(owner("n", Some("alice")).partition(), owner("n", Some("Alice")).partition());
        assert_eq!(Owner::from_columns("n", Some("")).unwrap_err().kind(), ErrorKind::Internal);
    }

    #[test]
    fn a_foreign_value_is_withheld() {
        let alice = Scope::mint(owner("n", Some("alice")), Epoch::ZERO);
        assert_eq!(Owned::new(owner("n", Some("alice")), 1).open(&alice).unwrap(), 1);
        for foreign in [owner("n", Some("bob")), owner("m", Some("alice")), owner("n", None)] {
            let error = Owned::new(foreign, 1).open(&alice).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::IsolationViolation);
            assert!(!error.to_string().contains("bob"));
        }
    }

    #[test]
    fn an_older_epoch_cannot_write() {
        let scope = Scope::mint(owner("n", Some("a")), Epoch::new(3));
        assert!(scope.check_epoch(Epoch::new(3), "remember").is_ok());
        assert_eq!(scope.check_epoch(Epoch::new(4), "remember").unwrap_err().kind(), ErrorKind::Erased);
    }
}
