//! Who a partition belongs to: validated names, minted once at the edge and never normalised.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use crate::error::{Error, Result};

/// The name the Python predecessor reserved for its anonymous bucket. Refused as a user id, so that data
/// brought over from it can never collide with a real user.
pub const LEGACY_ANONYMOUS_SENTINEL: &str = "__jeeves_anon_user__";

const MAX_ID_BYTES: usize = 256;
const MAX_NAMESPACE_BYTES: usize = 64;

/// A tenant: the partition key of everything LoomFlow keeps, spends, decides and logs.
///
/// 1..=256 bytes of UTF-8 without control, format, line- or paragraph-separator, private-use or unassigned
/// characters (Unicode general categories Cc, Cf, Zl, Zp, Co, Cn) and without surrounding blanks. Compared
/// bytewise: never normalised, never case-folded, so `Ada` and `ada` are two tenants.
///
/// There is no `From<&str>`, no `Default` and no anonymous value: anonymous is [`Identity::Anonymous`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Validates `id`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput), naming the rule that was broken and where.
    pub fn new(id: impl AsRef<str>) -> Result<Self> {
        validate("user_id", id.as_ref(), MAX_ID_BYTES).map(Self)
    }

    /// The id exactly as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One application's share of a store: several applications on one database never see each other.
///
/// The same characters as [`UserId`], 1..=64 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Validates `name`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput), naming the rule that was broken.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        validate("namespace", name.as_ref(), MAX_NAMESPACE_BYTES).map(Self)
    }

    /// The name exactly as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Namespace {
    /// The namespace `default`.
    fn default() -> Self {
        Self(Arc::from("default"))
    }
}

/// A conversation of one tenant. Two tenants may use the same session id without ever meeting.
///
/// The same rules as [`UserId`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// Validates `id`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput), naming the rule that was broken.
    pub fn new(id: impl AsRef<str>) -> Result<Self> {
        validate("session_id", id.as_ref(), MAX_ID_BYTES).map(Self)
    }

    /// The id exactly as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn fresh() -> Self {
        Self(Arc::from(format!("sess_{}", crate::ids::Base32(rand::random::<u128>()))))
    }
}

macro_rules! id_traits {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), &*self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self> {
                Self::new(s)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}
id_traits!(UserId);
id_traits!(Namespace);
id_traits!(SessionId);

/// Whose data it is: a user, or the anonymous bucket.
///
/// Anonymous is a partition of its own that no user id can name, and it is opted into with
/// [`Agent::anonymous`](crate::Agent::anonymous).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "a third kind of identity would change every partition key")]
pub enum Identity {
    /// A named tenant.
    User(UserId),
    /// The anonymous bucket.
    Anonymous,
}

impl Identity {
    /// The user id, or `None` for the anonymous bucket.
    #[must_use]
    pub fn user_id(&self) -> Option<&UserId> {
        match self {
            Self::User(id) => Some(id),
            Self::Anonymous => None,
        }
    }
}

fn validate(what: &'static str, text: &str, max: usize) -> Result<Arc<str>> {
    let refuse = |why: String| Err(Error::invalid_input(format!("{what} {why}")));
    if text.is_empty() {
        return refuse("is empty; give 1 or more characters".into());
    }
    if text.len() > max {
        return refuse(format!("is {} bytes long; at most {max} are allowed", text.len()));
    }
    if text == LEGACY_ANONYMOUS_SENTINEL {
        return refuse("is the reserved anonymous sentinel; use the anonymous entry instead".into());
    }
    // ASCII graphic bytes need no table look-up, and nearly every id consists of them alone.
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        if text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace) {
            return refuse("begins or ends with a blank; trim it where it is made".into());
        }
        if let Some((at, c)) = text.char_indices().find(|(_, c)| forbidden(*c)) {
            return refuse(format!(
                "has a forbidden character U+{:04X} ({:?}) at byte {at}; control, format, separator, \
                 private-use and unassigned characters are refused",
                u32::from(c),
                c.general_category()
            ));
        }
    }
    Ok(Arc::from(text))
}

fn forbidden(c: char) -> bool {
    matches!(
        c.general_category(),
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
            | GeneralCategory::PrivateUse
            | GeneralCategory::Unassigned
            | GeneralCategory::Surrogate
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused_and_say_why() {
        let long = "x".repeat(257);
        for (bad, why) in [
            ("", "empty"),
            (long.as_str(), "257 bytes"),
            (LEGACY_ANONYMOUS_SENTINEL, "sentinel"),
            (" a", "blank"),
            ("a\u{a0}", "blank"),
            ("a\nb", "U+000A"),
            ("a\u{0}b", "U+0000"),
            ("a\u{200d}b", "U+200D"),
            ("a\u{202e}b", "U+202E"),
            ("a\u{2028}b", "U+2028"),
            ("a\u{2029}b", "U+2029"),
            ("a\u{e000}b", "U+E000"),
            ("a\u{378}b", "U+0378"),
            ("a\u{fdd0}b", "U+FDD0"),
        ] {
            let error = UserId::new(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
    }

    #[test]
    fn names_are_compared_bytewise() {
        let composed = UserId::new("caf\u{e9}").unwrap();
        let decomposed = UserId::new("cafe\u{301}").unwrap();
        assert_ne!(composed, decomposed);
        assert_ne!(UserId::new("Ada").unwrap(), UserId::new("ada").unwrap());
        assert_ne!(UserId::new("user_1").unwrap(), UserId::new("user_10").unwrap());
        assert!(UserId::new("a b:c{d}|e\\f'--").is_ok(), "separators are data, not syntax");
    }

    #[test]
    fn an_id_cannot_be_deserialised_around_its_validation() {
        assert!(serde_json::from_str::<UserId>("\"a\\u0000\"").is_err());
        assert!(serde_json::from_str::<UserId>("1").is_err());
        assert_eq!(serde_json::from_str::<UserId>("\"ok\"").unwrap().as_str(), "ok");
    }
}
