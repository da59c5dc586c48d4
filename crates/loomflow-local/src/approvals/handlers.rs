//! Handlers: who is told about a request.

use std::fmt;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use loomflow_core::{ApprovalDecision, ApprovalHandler, ApprovalRequest, Notified, Result, RunContext};

/// Denies every request, at once: what an agent without anybody to ask does.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct DenyAll;

#[async_trait]
impl ApprovalHandler for DenyAll {
    async fn notify(&self, _ctx: &RunContext, _ask: &ApprovalRequest) -> Result<Notified> {
        let reason = "this call needs an approval, and nobody is configured to give one".to_owned();
        Ok(Notified::Decided { decision: ApprovalDecision::Deny { reason }, by: None })
    }
}

type Callback = dyn Fn(RunContext, ApprovalRequest) -> BoxFuture<'static, Result<Notified>> + Send + Sync;

/// Hands every request to a function of yours, which decides at once or says that somebody is on it.
///
/// An error, a panic, or taking longer than the agent allows is a deny.
pub struct CallbackApprovals(Box<Callback>);

impl CallbackApprovals {
    /// Calls `callback` with the run's context and the request.
    pub fn new<F, Fut>(callback: F) -> Self
    where
        F: Fn(RunContext, ApprovalRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Notified>> + Send + 'static,
    {
        Self(Box::new(move |ctx, ask| Box::pin(callback(ctx, ask))))
    }
}

impl fmt::Debug for CallbackApprovals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallbackApprovals(..)")
    }
}

#[async_trait]
impl ApprovalHandler for CallbackApprovals {
    async fn notify(&self, ctx: &RunContext, ask: &ApprovalRequest) -> Result<Notified> {
        (self.0)(ctx.clone(), ask.clone()).await
    }
}
