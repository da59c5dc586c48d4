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

/// What a call was let through by, where that is worth a record of its own.
///
/// The audit log's `permission_decision` has it beside the decision: `"mode":"bypass","why":"on call"`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Grounds {
    /// What let it through, as a stable name: `bypass`, `rule`.
    pub mode: &'static str,
    /// Why that was set up so, in the words of who did.
    pub why: Arc<str>,
}

impl Grounds {
    /// Let through by `mode`, because of `why`.
    #[must_use]
    pub fn new(mode: &'static str, why: impl Into<Arc<str>>) -> Self {
        Self { mode, why: why.into() }
    }
}

/// A decision, and what an allow rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Judged {
    /// The decision.
    pub decision: Decision,
    /// What an allow rests on; nothing where the policy's plain rule allowed it, and for an ask or a deny.
    pub grounds: Option<Grounds>,
}

impl Judged {
    /// An allow that rests on `grounds`.
    #[must_use]
    pub fn allowed_by(grounds: Grounds) -> Self {
        Self { decision: Decision::Allow, grounds: Some(grounds) }
    }
}

impl From<Decision> for Judged {
    fn from(decision: Decision) -> Self {
        Self { decision, grounds: None }
    }
}

/// A policy. Asked for every call, and again when an approved call is dispatched.
#[async_trait]
pub trait Permissions: fmt::Debug + Send + Sync + 'static {
    /// Decides about `call`, whose tool declares `effect`, for the user of `ctx`.
    ///
    /// An error is an audited deny. A policy must not take its subject from the call's arguments: they are the model's.
    async fn check(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Decision>;

    /// Decides like [`check`](Self::check), and says what an allow rests on. This is what the tool door asks, so that both
    /// come from one look at a policy that may be exchanged at any time. A policy with nothing to add leaves it as it is;
    /// a decorator passes it on.
    async fn judge(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Judged> {
        self.check(ctx, call, effect).await.map(Judged::from)
    }

    /// Changes whenever a decision could: an approval given under one version is not valid under another. All 64 bits count,
    /// in every store.
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
