//! Policy: whether a tool call may run, must be asked about, or is denied.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::context::RunContext;
use crate::error::Result;
use crate::message::ToolCall;
use crate::tool::{Effect, ToolOutcome};

/// A decision about a call. Ordered, so that the strictest of several is their maximum: deny > ask > allow.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "every caller must decide what each of the three means")]
pub enum Decision {
    /// It may run.
    Allow,
    /// Somebody must approve it first; without anybody to ask, it is denied.
    Ask {
        /// Why, for the approver.
        why: Arc<str>,
    },
    /// It must not run.
    Deny {
        /// Why, for the model and the audit log.
        why: Arc<str>,
    },
}

impl Decision {
    /// Ask, because of `why`.
    #[must_use]
    pub fn ask(why: impl Into<Arc<str>>) -> Self {
        Self::Ask { why: why.into() }
    }

    /// Deny, because of `why`.
    #[must_use]
    pub fn deny(why: impl Into<Arc<str>>) -> Self {
        Self::Deny { why: why.into() }
    }

    /// The stricter of the two; of two equally strict, this one.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if other.strictness() > self.strictness() { other } else { self }
    }

    /// The decision's stable name.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask { .. } => "ask",
            Self::Deny { .. } => "deny",
        }
    }

    fn strictness(&self) -> u8 {
        match self {
            Self::Allow => 0,
            Self::Ask { .. } => 1,
            Self::Deny { .. } => 2,
        }
    }
}

/// A policy. Asked for every call, and again when an approved call is dispatched.
#[async_trait]
pub trait Permissions: fmt::Debug + Send + Sync + 'static {
    /// Decides about `call`, whose tool declares `effect`, for the user of `ctx`.
    ///
    /// An error is an audited deny. A policy must not take its subject from the call's arguments: they are the model's.
    async fn check(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Decision>;

    /// Changes whenever a decision could: an approval given under one version is not valid under another.
    fn version(&self) -> u64 {
        0
    }
}

/// The policy of an agent that was given none: what only reads runs, everything else asks.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit that is what its name says")]
pub struct ReadOnlyRuns;

#[async_trait]
impl Permissions for ReadOnlyRuns {
    async fn check(&self, _ctx: &RunContext, _call: &ToolCall, effect: Effect) -> Result<Decision> {
        Ok(match effect {
            Effect::Read => Decision::Allow,
            _ => Decision::ask(format!("a {} call needs approval", effect.as_str())),
        })
    }
}

/// A gate that runs before a tool. It can only make things stricter.
#[async_trait]
pub trait PreToolHook: fmt::Debug + Send + Sync + 'static {
    /// Decides about `call`. An error, a panic or taking too long is a deny.
    async fn before_tool(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Decision>;
}

/// An observer that runs after a tool. It cannot change the outcome; an error is counted and logged.
#[async_trait]
pub trait PostToolHook: fmt::Debug + Send + Sync + 'static {
    /// Sees what became of `call`.
    async fn after_tool(&self, ctx: &RunContext, call: &ToolCall, outcome: &ToolOutcome) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strictest_wins_whatever_the_order() {
        let all = [Decision::Allow, Decision::ask("a"), Decision::deny("d")];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(a.clone().and(b.clone()), all[i.max(j)], "{a:?} and {b:?}");
            }
        }
    }
}
