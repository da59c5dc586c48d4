//! The one place where a scope becomes keys, and the version of what lies under them.
//!
//! All keys of a namespace are `prefix:{<SHA-256 of the namespace in hex>}:q:<kind>`, so that they lie in one slot of a cluster and one
//! script may use them together. `<p>` is the SHA-256 of the owner's encoding in hex. Nothing that anybody chose is part of a key.
//!
//! | kind | what | entries |
//! |---|---|---|
//! | `all` | hash | the counter of all users together |
//! | `u:<p>` | hash | a user's counter, holds and name: `c`, `s<slice>`, `h<id>`, `k<run><number>`, `n`, `u` |
//! | `r:<p>:<run>` | hash | a run's counter |
//! | `e:<p>` | sorted set | a user's estimates by when they were made |
//! | `due` | sorted set | open holds of the namespace by the end of their lease |
//! | `x:<p>` | string | the epoch of the erasure of a user's name. Never expires: nothing bounds how long a scope from before it lives |
//! | `b:<p>:<id>` | string | the charge of a hold that the server never kept is counted: of an outage, or lost in a crash |
//! | `ended` | sorted set | holds that ended, by the minute they were drawn in; those of the last quarter of an hour and some more |
//! | `past` | string | the last minute of which ends were let go |
//!
//! Rate limits have keys beside these: `prefix:{<..>}:rate:<p>` and `..:rate:all`, hashes from a resource to when its limit is whole
//! again, which expire then.
//!
//! `prefix:ledger` is the version and the secret that ids of holds are proved with; `prefix:flushed` is written by whoever waits for the
//! disk.

use std::fmt::Write as _;

use loomflow_core::resilience::Repeat;
use loomflow_core::rules::quota::HoldIds;
use loomflow_core::{Digest, Error, ErrorKind, Namespace, Owner, Result};
use loomflow_support_redis::{Keys, Link};

/// The version of the form above.
const VERSION: u32 = 2;

/// Names keys.
#[derive(Clone, Debug)]
pub(crate) struct Schema {
    keys: Keys,
}

impl Schema {
    pub(crate) fn new(prefix: &str) -> Result<Self> {
        Ok(Self { keys: Keys::new(prefix)? })
    }

    /// What all keys of a namespace begin with. A digest, because a brace in a name would move the hash tag.
    pub(crate) fn base(&self, namespace: &Namespace) -> String {
        self.of(namespace, "q")
    }

    /// What all keys of a namespace's rate limits begin with.
    pub(crate) fn rates(&self, namespace: &Namespace) -> String {
        self.of(namespace, "rate")
    }

    fn of(&self, namespace: &Namespace, kind: &str) -> String {
        let digest = Digest::of(&[namespace.as_str().as_bytes()]).to_string();
        self.keys.of_partition(digest).key(kind)
    }

    /// A key that is written to see when the disk has it.
    pub(crate) fn flushed(&self) -> String {
        self.keys.shared("flushed")
    }

    /// The tenant's part of a key.
    pub(crate) fn partition(owner: &Owner) -> String {
        owner.partition_hex()
    }

    /// Checks the version, and reads the secret of the ids; whoever is first draws it.
    pub(crate) async fn prepare(&self, link: &Link) -> Result<HoldIds> {
        let key = self.keys.shared("ledger");
        let fresh: [u8; 32] = rand::random();
        let mut text = format!("{VERSION}:");
        for byte in fresh {
            write!(text, "{byte:02x}").expect("a String takes whatever is written to it");
        }
        let mut set = redis::cmd("SET");
        set.arg(&key).arg(text).arg("NX");
        link.command::<redis::Value>("connect", Repeat::Safe, &set).await?;
        let stored: Option<String> =
            link.command("connect", Repeat::Safe, redis::cmd("GET").arg(&key)).await?;
        read(self.keys.prefix(), &stored.unwrap_or_default())
    }
}

fn read(prefix: &str, stored: &str) -> Result<HoldIds> {
    let (version, secret) = stored.split_once(':').unwrap_or_default();
    let why = match version.parse::<u32>() {
        Ok(VERSION) => match unhex(secret) {
            Some(secret) => return Ok(HoldIds::new(&secret)),
            None => "cannot be read".to_owned(),
        },
        Ok(other) => format!("is version {other}, and this program knows version {VERSION}"),
        Err(_) => "has no version".to_owned(),
    };
    let message = format!(
        "the ledger under the prefix `{prefix}` in Redis {why}: it was written by another program, and is left untouched. Set \
         another `key_prefix`, or use the program it belongs to"
    );
    Err(Error::new(ErrorKind::Config, message).with_operation("connect"))
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    #[test]
    fn nothing_that_anybody_chose_is_in_a_key() {
        let schema = Schema::new("lf").unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for name in ["a", "A", "}", "{x}", "a:b", "a}:q", "*", "b} {a", "\u{e9}", "e\u{301}"] {
            let base = schema.base(&Namespace::new(name).unwrap());
            let hex = base.strip_prefix("lf:{").and_then(|k| k.strip_suffix("}:q")).unwrap();
            assert!(hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
            assert!(seen.insert(base), "{name:?} shares its keys");
        }
    }

    #[test]
    fn a_ledger_of_another_version_is_refused() {
        let secret = "0f".repeat(32);
        assert!(read("lf", &format!("2:{secret}")).is_ok());
        for (stored, part) in
            [(format!("7:{secret}"), "version 7"), ("2:zz".to_owned(), "read"), (String::new(), "no version")]
        {
            let error = read("lf", &stored).unwrap_err();
            assert!(error.kind() == ErrorKind::Config && error.to_string().contains(part), "{error}");
            assert!(!error.to_string().contains(&secret));
        }
    }
}
