//! Tools: what an author implements, and the permit without which none can be called.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::context::RunContext;
use crate::error::{Error, Result};
use crate::ids::RunId;
use crate::message::{Digest, ToolCall, canonical_json};

/// What a call of a tool does to the world. There is no default: say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "a policy must decide about every effect")]
pub enum Effect {
    /// Looks and changes nothing.
    Read,
    /// Changes something that can be changed back.
    Write,
    /// Changes something that cannot be changed back.
    Destructive,
    /// Reaches somebody outside: a mail, a payment, a post.
    External,
}

impl Effect {
    /// The effect's stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Destructive => "destructive",
            Self::External => "external",
        }
    }
}

/// What a tool is: its name, what it is for, its arguments and its effect.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ToolSpec {
    /// The name: 1..=64 of `A-Z a-z 0-9 _ . -`.
    pub name: Arc<str>,
    /// What it is for, in words for the model.
    pub description: Arc<str>,
    /// The JSON Schema of its arguments (an object).
    pub parameters: Arc<Value>,
    /// What a call does.
    pub effect: Effect,
    /// How long a call may take; `None` takes the agent's tool timeout.
    pub timeout: Option<Duration>,
    /// Whether calling twice with the same arguments is the same as calling once.
    pub idempotent: bool,
    digest: Digest,
}

impl ToolSpec {
    /// A tool of that name and effect, with arguments that match `parameters`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a name a provider would refuse, or parameters
    /// that are not an object schema.
    pub fn new(
        name: &str,
        description: impl Into<Arc<str>>,
        effect: Effect,
        parameters: Value,
    ) -> Result<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
            return Err(Error::invalid_input(format!(
                "{name:?} is not a tool name: use 1 to 64 of A-Z a-z 0-9 _ . -"
            )));
        }
        if parameters.get("type").and_then(Value::as_str) != Some("object") {
            return Err(Error::invalid_input(format!(
                "the parameters of tool {name:?} are not an object schema: they need \"type\": \"object\""
            )));
        }
        let description = description.into();
        let digest = Digest::of(&[
            name.as_bytes(),
            description.as_bytes(),
            effect.as_str().as_bytes(),
            canonical_json(&parameters).as_bytes(),
        ]);
        Ok(Self {
            name: name.into(),
            description,
            parameters: Arc::new(parameters),
            effect,
            timeout: None,
            idempotent: effect == Effect::Read,
            digest,
        })
    }

    /// Sets how long a call may take.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Says whether calling twice is the same as calling once.
    #[must_use]
    pub fn with_idempotent(mut self, yes: bool) -> Self {
        self.idempotent = yes;
        self
    }

    /// Identifies name, description, effect and schema: an approval of one version of a tool is not one of the next.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// A tool's name as providers take it, who know no dots: `billing.refund` travels as `billing__refund`.
///
/// The agent's builder refuses two tools that would travel under one name, and a name that gets longer than 64 bytes;
/// so an adapter finds the tool of a wire name by comparing it with the wire names of the request's tools.
#[must_use]
pub fn wire_name(name: &str) -> Cow<'_, str> {
    if name.contains('.') { Cow::Owned(name.replace('.', "__")) } else { Cow::Borrowed(name) }
}

/// Binds a permit, an approval and an audit record to one call: run, place in the run, call id, tool, schema and canonical
/// arguments. `step` counts the calls of the run, so two calls that a model makes on purpose stay two, even where a
/// provider numbers its calls anew in every turn.
#[must_use]
pub fn call_digest(run: RunId, step: u32, call: &ToolCall, spec: &ToolSpec, arguments: &Value) -> Digest {
    Digest::of(&[
        &run.as_u128().to_be_bytes(),
        &step.to_be_bytes(),
        call.id.as_bytes(),
        call.name.as_bytes(),
        spec.digest().as_bytes(),
        canonical_json(arguments).as_bytes(),
    ])
}

/// A call that policy has permitted: what [`Tool::call`] takes. Only the tool door makes one, for that very call, and
/// calling consumes it.
pub struct PermittedCall {
    call: ToolCall,
    arguments: Value,
    digest: Digest,
}

impl PermittedCall {
    pub(crate) fn seal(call: ToolCall, arguments: Value, digest: Digest) -> Self {
        Self { call, arguments, digest }
    }

    /// The call's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.call.id
    }

    /// The tool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.call.name
    }

    /// The arguments: a JSON object.
    #[must_use]
    pub fn arguments(&self) -> &Value {
        &self.arguments
    }

    /// Identifies this call; the same for a repeated attempt, so that it serves as an idempotency key.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The arguments as a typed value.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput), in words the model can act on.
    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.arguments)
            .map_err(|e| Error::invalid_input(format!("the arguments of {} do not fit: {e}", self.call.name)))
    }
}

impl fmt::Debug for PermittedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PermittedCall({} {} {})", self.call.name, self.call.id, self.digest)
    }
}

/// What a tool answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolOutcome {
    /// It worked; this is what the model is told.
    Ok(Arc<str>),
    /// It did not work, and it is known that nothing was done; this is what the model is told.
    Error(Arc<str>),
    /// It was begun and nobody knows how it ended.
    Unknown(Arc<str>),
}

impl ToolOutcome {
    /// It worked.
    #[must_use]
    pub fn ok(text: impl Into<Arc<str>>) -> Self {
        Self::Ok(text.into())
    }

    /// It did not work.
    #[must_use]
    pub fn error(text: impl Into<Arc<str>>) -> Self {
        Self::Error(text.into())
    }

    /// It worked; the model is told the value as JSON.
    #[must_use]
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(text) => Self::Ok(text.into()),
            Err(e) => Self::Error(format!("the result could not be written as JSON: {e}").into()),
        }
    }

    /// What the model is told.
    #[must_use]
    pub fn text(&self) -> &Arc<str> {
        match self {
            Self::Ok(text) | Self::Error(text) | Self::Unknown(text) => text,
        }
    }
}

impl From<Error> for ToolOutcome {
    fn from(error: Error) -> Self {
        Self::Error(error.to_string().into())
    }
}

/// What a tool author implements (or lets `#[tool]` write).
///
/// The future may be dropped at any await, when the run is cancelled or the timeout passes: what it had begun is then
/// reported as unknown unless the tool only reads.
#[async_trait]
pub trait Tool: fmt::Debug + Send + Sync + 'static {
    /// What the tool is.
    fn spec(&self) -> &ToolSpec;

    /// Does it. `ctx` knows who is asking; the arguments are the model's and are not to be trusted for identity.
    ///
    /// A panic is caught and answered as an error.
    async fn call(&self, ctx: &RunContext, call: PermittedCall) -> ToolOutcome;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_binds_every_part_of_a_call() {
        let schema = serde_json::json!({"type": "object"});
        let spec = ToolSpec::new("pay", "Pays.", Effect::External, schema.clone()).unwrap();
        let other = ToolSpec::new("pay", "Pays!", Effect::External, schema).unwrap();
        let call = ToolCall::new("c1", "pay", "");
        let args = serde_json::json!({"to": "bob", "cents": 1});
        let same = serde_json::from_str::<Value>(r#"{"cents":1,"to":"bob"}"#).unwrap();
        let base = call_digest(RunId::from_u128(1), 0, &call, &spec, &args);
        assert_ne!(base, call_digest(RunId::from_u128(1), 1, &call, &spec, &args));
        assert_eq!(base, call_digest(RunId::from_u128(1), 0, &call, &spec, &same));
        assert_ne!(base, call_digest(RunId::from_u128(2), 0, &call, &spec, &args));
        assert_ne!(base, call_digest(RunId::from_u128(1), 0, &ToolCall::new("c2", "pay", ""), &spec, &args));
        assert_ne!(base, call_digest(RunId::from_u128(1), 0, &call, &other, &args));
        assert_ne!(
            base,
            call_digest(RunId::from_u128(1), 0, &call, &spec, &serde_json::json!({"to": "bob", "cents": 2}))
        );
    }
}
