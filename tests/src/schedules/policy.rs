//! The policies of a schedule, watched.

use std::sync::Arc;

use async_trait::async_trait;
use loomflow::local::{Argument, PerUserPermissions, Rule, StandardPermissions};
use loomflow_core::{Decision, Effect, Judged, Permissions, Result, RunContext, ToolCall};
use tokio::task::yield_now;

use super::history::{Answer, Fact, History};
use crate::fixture::user;

/// What a policy says about paying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// It asks, for this reason.
    AsksAbout(u8),
    /// It asks, and denies more than this.
    DeniesAbove(u32),
    Denies,
    Allows,
}

impl Content {
    pub(super) fn policies(self) -> PerUserPermissions {
        let standard = StandardPermissions::default();
        let own = match self {
            Self::AsksAbout(why) => Ok(standard.with_reason(format!("reason {why}"))),
            Self::DeniesAbove(limit) => {
                standard.rule(Rule::deny("pay").when(Argument::at("/cents").above(limit.into())))
            }
            Self::Denies => standard.denied_tools(["pay"]),
            Self::Allows => Ok(StandardPermissions::bypass()),
        };
        let own = own.expect("the schedule's policies are good ones");
        PerUserPermissions::new(StandardPermissions::default()).policy(user("alice"), own)
    }
}

/// Number and amount of a payment.
pub(super) fn payment(arguments: &serde_json::Value) -> (u64, u64) {
    let number = |name: &str| arguments[name].as_u64().unwrap_or(u64::MAX);
    (number("call"), number("cents"))
}

/// Writes down what a policy answers, and under which version.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) policies: Arc<PerUserPermissions>,
    pub(super) history: History,
}

#[async_trait]
impl Permissions for Watched {
    async fn check(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Decision> {
        self.judge(ctx, call, effect).await.map(|judged| judged.decision)
    }

    async fn judge(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Judged> {
        yield_now().await;
        let version = self.policies.version();
        let judged = self.policies.judge(ctx, call, effect).await?;
        let answer = match &judged.decision {
            Decision::Allow => Answer::Allow,
            Decision::Ask { .. } => Answer::Ask,
            Decision::Deny { .. } => Answer::Deny,
        };
        let (number, cents) = payment(&call.parse_arguments()?);
        self.history.add(Fact::Judged { call: number, cents, answer, version, at: ctx.now() });
        yield_now().await;
        Ok(judged)
    }

    fn version(&self) -> u64 {
        self.policies.version()
    }
}
