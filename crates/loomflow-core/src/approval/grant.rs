//! Remembered approvals: a grant covers later calls of one user that look like the call it was given for, and no others.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::identity::UserId;
use crate::ids::GrantId;
use crate::message::{Digest, ToolCall, canonical_json};
use crate::scope::Owner;
use crate::tool::{Effect, ToolSpec};

/// The most arguments that [`ArgumentPattern::Fixed`] names.
pub const MAX_FIXED_ARGUMENTS: usize = 64;

/// Which arguments a grant covers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "pattern", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ArgumentPattern {
    /// These very arguments, by the digest of their canonical text; see [`ArgumentPattern::exactly`].
    Exactly {
        /// The digest.
        digest: Digest,
    },
    /// The values at these JSON pointers (RFC 6901) are fixed, and everything else is free. At least one is named.
    Fixed {
        /// By pointer.
        values: BTreeMap<String, Value>,
    },
    /// Whatever the arguments are. It has to be said: no other pattern means it.
    Any,
}

impl ArgumentPattern {
    /// These very arguments. The order of members and the spelling of strings do not matter, everything else does.
    #[must_use]
    pub fn exactly(arguments: &Value) -> Self {
        Self::Exactly { digest: Digest::of(&[canonical_json(arguments).as_bytes()]) }
    }

    /// The values that `arguments` has at these pointers, the rest being free.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a pointer to nothing: left out, it would widen the
    /// pattern.
    pub fn fixed<'p>(arguments: &Value, pointers: impl IntoIterator<Item = &'p str>) -> Result<Self> {
        let found = |pointer: &'p str| {
            let value = arguments.pointer(pointer).ok_or_else(|| {
                Error::invalid_input(format!(
                    "the arguments have nothing at {pointer:?}; write a JSON pointer such as \"/command\""
                ))
            })?;
            Ok((pointer.to_owned(), value.clone()))
        };
        Ok(Self::Fixed { values: pointers.into_iter().map(found).collect::<Result<_>>()? })
    }

    /// Whether `arguments` are covered.
    #[must_use]
    pub fn matches(&self, arguments: &Value) -> bool {
        match self {
            Self::Exactly { .. } => *self == Self::exactly(arguments),
            Self::Fixed { values } => {
                let same = |(pointer, wanted): (&String, &Value)| {
                    let found = arguments.pointer(pointer);
                    found.is_some_and(|found| canonical_json(found) == canonical_json(wanted))
                };
                !values.is_empty() && values.iter().all(same)
            }
            Self::Any => true,
        }
    }
}

/// How far and how long an approval is remembered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GrantTerms {
    /// Which arguments. They cover the request's own.
    pub arguments: ArgumentPattern,
    /// From when on it no longer counts.
    pub expires_at: Timestamp,
}

impl GrantTerms {
    /// Remembers for these arguments until `expires_at`.
    #[must_use]
    pub fn new(arguments: ArgumentPattern, expires_at: Timestamp) -> Self {
        Self { arguments, expires_at }
    }
}

/// An approval that is remembered: calls of its owner that it covers are not asked about again.
///
/// It belongs to the user whose request it was given on, goes with that user's data, and is void as soon as the tool, its
/// effect, its schema or the policy's version is another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ApprovalGrant {
    /// Its id: the number of the request it was given on, which cannot be guessed. One request makes one grant at the most.
    pub id: GrantId,
    /// The tool.
    pub tool: Arc<str>,
    /// What a call of it does.
    pub effect: Effect,
    /// Identifies the tool as it was: [`ToolSpec::digest`].
    pub tool_digest: Digest,
    /// Which arguments.
    pub arguments: ArgumentPattern,
    /// The version of the policy that asked.
    pub policy_version: u64,
    /// Who gave it.
    pub by: UserId,
    /// Who may see and revoke it, besides its owner.
    pub approvers: Arc<[UserId]>,
    /// When the request was made that it was given on.
    pub requested_at: Timestamp,
    /// When it was given.
    pub granted_at: Timestamp,
    /// From when on it no longer counts.
    pub expires_at: Timestamp,
}

impl ApprovalGrant {
    /// Whether it counts for this call of its owner. Who gave it, and whether they still may, is for the caller to ask.
    #[must_use]
    pub fn covers(
        &self,
        spec: &ToolSpec,
        call: &ToolCall,
        arguments: &Value,
        policy_version: u64,
        now: Timestamp,
    ) -> bool {
        *self.tool == *spec.name
            && *self.tool == *call.name
            && self.effect == spec.effect
            && self.tool_digest == spec.digest()
            && self.policy_version == policy_version
            && now < self.expires_at
            && self.arguments.matches(arguments)
    }

    /// Whether `who` may see and revoke this grant of `owner`: the user it is for, and the request's approvers.
    #[must_use]
    pub fn is_known_to(&self, owner: &Owner, who: &Owner) -> bool {
        owner == who
            || (owner.namespace() == who.namespace()
                && who.user_id().is_some_and(|user| self.approvers.contains(user)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pattern_covers_what_it_says_and_nothing_else() {
        let ls = json!({"command": "ls", "opts": {"cwd": "/", "all": true}});
        let same = json!({"opts": {"all": true, "cwd": "/"}, "command": "ls"});
        let rm = json!({"command": "rm -rf /", "opts": {"cwd": "/", "all": true}});
        let elsewhere = json!({"command": "ls", "opts": {"cwd": "/etc"}});
        let exactly = ArgumentPattern::exactly(&ls);
        assert_eq!([&ls, &same, &rm, &elsewhere].map(|a| exactly.matches(a)), [true, true, false, false]);
        let fixed = ArgumentPattern::fixed(&ls, ["/command"]).unwrap();
        assert_eq!([&ls, &same, &rm, &elsewhere].map(|a| fixed.matches(a)), [true, true, false, true]);
        let nested = ArgumentPattern::fixed(&ls, ["/command", "/opts/cwd"]).unwrap();
        assert_eq!([&ls, &same, &rm, &elsewhere].map(|a| nested.matches(a)), [true, true, false, false]);
        assert!(ArgumentPattern::Any.matches(&rm));
    }

    #[test]
    fn nothing_fixed_covers_nothing() {
        let arguments = json!({"command": "ls"});
        for missing in ["/no/such", "command", "/command/0"] {
            assert!(ArgumentPattern::fixed(&arguments, ["/command", missing]).is_err(), "{missing}");
        }
        assert!(!ArgumentPattern::Fixed { values: BTreeMap::new() }.matches(&arguments));
        // What is missing is not what is null.
        let null = ArgumentPattern::Fixed { values: [("/x".to_owned(), Value::Null)].into() };
        assert!(!null.matches(&arguments) && null.matches(&json!({"x": null})));
    }

    #[test]
    fn a_pattern_is_written_as_it_is_read() {
        for pattern in [
            ArgumentPattern::exactly(&json!({"a": 1})),
            ArgumentPattern::fixed(&json!({"a": 9_007_199_254_740_993_u64}), ["/a"]).unwrap(),
            ArgumentPattern::Any,
        ] {
            let text = serde_json::to_string(&pattern).unwrap();
            assert_eq!(serde_json::from_str::<ArgumentPattern>(&text).unwrap(), pattern, "{text}");
        }
    }
}
