//! What is said: messages, tool calls and the parts they are made of.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::image::Image;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// The operator's instructions. Never anything a user, a tool or a memory said.
    System,
    /// The user, and recalled data (escaped and delimited).
    User,
    /// The model.
    Assistant,
    /// The outcome of a tool call.
    Tool,
}

/// One message. Cheap to clone: the text is shared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; empty for an assistant message that only calls tools.
    pub text: Arc<str>,
    /// The calls an assistant message asks for, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Arc<[ToolCall]>>,
    /// The call a tool message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<Arc<str>>,
    /// What a provider wants back, unread and unchanged, with this message of its model: signed reasoning, for one. JSON
    /// that the adapter which made it understands, and every other ignores. Not serialised: it is neither journaled nor remembered.
    #[serde(skip)]
    pub provider_state: Option<Arc<str>>,
    /// The images a user shows with the text. Not serialised: they are neither journaled nor remembered.
    #[serde(skip)]
    pub images: Option<Arc<[Image]>>,
}

impl Message {
    /// A message of `role` saying `text`.
    #[must_use]
    pub fn new(role: Role, text: impl Into<Arc<str>>) -> Self {
        Self {
            role,
            text: text.into(),
            tool_calls: None,
            tool_call_id: None,
            provider_state: None,
            images: None,
        }
    }

    /// The operator's instructions.
    #[must_use]
    pub fn system(text: impl Into<Arc<str>>) -> Self {
        Self::new(Role::System, text)
    }

    /// The user's words.
    #[must_use]
    pub fn user(text: impl Into<Arc<str>>) -> Self {
        Self::new(Role::User, text)
    }

    /// The model's words.
    #[must_use]
    pub fn assistant(text: impl Into<Arc<str>>) -> Self {
        Self::new(Role::Assistant, text)
    }

    /// The model's words together with the calls it asks for.
    #[must_use]
    pub fn assistant_calls(text: impl Into<Arc<str>>, calls: impl Into<Arc<[ToolCall]>>) -> Self {
        Self { tool_calls: Some(calls.into()), ..Self::new(Role::Assistant, text) }
    }

    /// The outcome of the call `id`.
    #[must_use]
    pub fn tool(id: impl Into<Arc<str>>, text: impl Into<Arc<str>>) -> Self {
        Self { tool_call_id: Some(id.into()), ..Self::new(Role::Tool, text) }
    }

    /// Shows images with the text. None at all leaves the message as it is.
    #[must_use]
    pub fn with_images(mut self, images: impl Into<Arc<[Image]>>) -> Self {
        self.images = Some(images.into()).filter(|images| !images.is_empty());
        self
    }

    /// Attaches what the provider wants back with this message.
    #[must_use]
    pub fn with_provider_state(mut self, state: Option<Arc<str>>) -> Self {
        self.provider_state = state;
        self
    }

    /// The message as it is remembered: without what only its own run needed.
    pub(crate) fn remembered(mut self) -> Self {
        self.provider_state = None;
        self.images = None;
        self
    }

    /// The images shown with this message; empty for most messages.
    #[must_use]
    pub fn images(&self) -> &[Image] {
        self.images.as_deref().unwrap_or_default()
    }

    /// The calls this message asks for; empty for most messages.
    #[must_use]
    pub fn calls(&self) -> &[ToolCall] {
        self.tool_calls.as_deref().unwrap_or_default()
    }
}

/// A call of a tool, as the model asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ToolCall {
    /// The id the outcome is answered under; unique within its turn.
    pub id: Arc<str>,
    /// The tool's name.
    pub name: Arc<str>,
    /// The arguments as the model wrote them: JSON text, not yet known to be valid.
    pub arguments: Arc<str>,
}

impl ToolCall {
    /// A call of `name` with `arguments` as JSON text.
    #[must_use]
    pub fn new(id: impl Into<Arc<str>>, name: impl Into<Arc<str>>, arguments: impl Into<Arc<str>>) -> Self {
        Self { id: id.into(), name: name.into(), arguments: arguments.into() }
    }

    /// The arguments, parsed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when they are not one JSON object; the message is
    /// meant for the model.
    pub fn parse_arguments(&self) -> Result<Value> {
        let text = if self.arguments.trim().is_empty() { "{}" } else { &*self.arguments };
        match serde_json::from_str::<Value>(text) {
            Ok(value @ Value::Object(_)) => Ok(value),
            Ok(_) => Err(Error::invalid_input(
                "the arguments are not a JSON object; send an object with named members",
            )),
            Err(e) => Err(Error::invalid_input(format!(
                "the arguments are not valid JSON ({e}); send one JSON object"
            ))),
        }
    }
}

/// SHA-256 of what identifies something, used to bind a permit or an approval to that very thing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of length-delimited `parts`, so that no two lists of parts share one by shifting a border.
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest with these bytes: what a store read back.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl std::str::FromStr for Digest {
    type Err = Error;

    /// Reads 64 hex digits in lower case.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid_input("a digest is 64 hex digits in lower case");
        let nibble = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != bytes.len() || !rest.is_empty() {
            return Err(bad());
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = nibble(*high).zip(nibble(*low)).map(|(high, low)| high << 4 | low).ok_or_else(bad)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// Writes a JSON value with the members of every object sorted by their bytes, so that equal values give equal text.
///
/// Independent of how `serde_json` keeps its maps (a feature elsewhere in the build could change that).
#[must_use]
pub fn canonical_json(value: &Value) -> String {
    let mut out = String::new();
    canonical(value, &mut out);
    out
}

fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_unstable_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (i, (key, item)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                crate::redact::write_string(out, key);
                out.push(':');
                canonical(item, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        Value::String(text) => crate::redact::write_string(out, text),
        Value::Null | Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_arguments_have_one_canonical_text() {
        let a: Value =
            serde_json::from_str(r#"{"b":[1,{"y":2,"x":9007199254740993}],"a":"q\"\u00e9"}"#).unwrap();
        let b: Value =
            serde_json::from_str(r#" { "a" : "q\"é", "b":[1,{"x":9007199254740993,"y":2}]}"#).unwrap();
        assert_eq!(canonical_json(&a), canonical_json(&b));
        assert!(canonical_json(&a).contains("9007199254740993"), "a large number keeps its last digit");
    }

    #[test]
    fn a_digest_cannot_be_shifted() {
        assert_ne!(Digest::of(&[b"ab", b"c"]), Digest::of(&[b"a", b"bc"]));
        assert_ne!(Digest::of(&[b"ab"]), Digest::of(&[b"ab", b""]));
    }

    #[test]
    fn bad_arguments_are_explained() {
        for (bad, why) in [("[1]", "object"), ("{", "valid JSON"), ("1", "object")] {
            let error = ToolCall::new("c", "t", bad).parse_arguments().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(
            ToolCall::new("c", "t", "").parse_arguments().is_ok(),
            "no arguments at all are an empty object"
        );
    }
}
