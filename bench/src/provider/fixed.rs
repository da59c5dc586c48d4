//! The peers' model: answers at once with fixed usage, after suspending once so that all tenants are in flight.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use async_trait::async_trait;
use futures_util::stream;
use loomflow_core::{
    AdmittedCall, Delta, Done, Model, ModelRequest, ModelStream, Result, Role, RunContext, StopReason,
    ToolCall, Usage,
};

use crate::provider::Invoice;

/// Prompt tokens of every call.
pub const INPUT_TOKENS: u64 = 100;
/// Generated tokens of every call.
pub const OUTPUT_TOKENS: u64 = 10;

/// Says `ack`, after one call of `add` when it was made with tools.
#[derive(Debug)]
pub struct FixedModel {
    uses_tool: bool,
    users: usize,
    invoice: Invoice,
    calls: AtomicU64,
    call_ids: AtomicU64,
    longest_prompt: AtomicUsize,
}

impl FixedModel {
    /// A model for tenants `user_0` to `user_{users - 1}`, and one more account for everybody else.
    #[must_use]
    pub fn new(users: usize, uses_tool: bool) -> Self {
        Self {
            uses_tool,
            users,
            invoice: Invoice::new(users + 1),
            calls: AtomicU64::new(0),
            call_ids: AtomicU64::new(0),
            longest_prompt: AtomicUsize::new(0),
        }
    }

    /// What tenants owe; the last account is everybody else's.
    #[must_use]
    pub fn invoice(&self) -> &Invoice {
        &self.invoice
    }

    /// Calls answered so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The most messages any call got: shows that history is replayed.
    #[must_use]
    pub fn longest_prompt(&self) -> usize {
        self.longest_prompt.load(Ordering::Relaxed)
    }

    fn account(&self, ctx: &RunContext) -> usize {
        let number = ctx.user_id().and_then(|id| id.as_str().strip_prefix("user_")?.parse().ok());
        number.filter(|n| *n < self.users).unwrap_or(self.users)
    }
}

#[async_trait]
impl Model for FixedModel {
    fn name(&self) -> &str {
        "fake"
    }

    fn count_tokens(&self, _request: &ModelRequest) -> u64 {
        INPUT_TOKENS
    }

    async fn stream(&self, ctx: &RunContext, call: AdmittedCall) -> Result<ModelStream> {
        let request = call.into_request();
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.longest_prompt.fetch_max(request.messages.len(), Ordering::Relaxed);
        let account = self.account(ctx);
        let answered = request.messages.last().is_some_and(|message| message.role == Role::Tool);
        drop(request);
        tokio::task::yield_now().await;
        self.invoice.received(account, INPUT_TOKENS);
        self.invoice.generated(account, OUTPUT_TOKENS);
        let usage = Usage::new(INPUT_TOKENS, OUTPUT_TOKENS);
        let (said, stop) = if self.uses_tool && !answered {
            let id = self.call_ids.fetch_add(1, Ordering::Relaxed);
            let call = ToolCall::new(format!("c{id}"), "add", r#"{"a":1,"b":2}"#);
            (Delta::ToolCall(call), StopReason::ToolUse)
        } else {
            (Delta::Text("ack".into()), StopReason::End)
        };
        Ok(Box::pin(stream::iter([Ok(said), Ok(Delta::Done(Done::new(usage, stop)))])))
    }
}
