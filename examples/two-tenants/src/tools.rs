//! The one tool of the example: it pays money out, and it knows who is asking without being told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use loomflow::prelude::*;

/// Refunds an amount to the tenant who is asking.
#[derive(Debug)]
pub(crate) struct Refund {
    spec: ToolSpec,
    executed: Arc<AtomicU64>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    cents: u64,
}

impl Refund {
    pub(crate) fn new(executed: Arc<AtomicU64>) -> Result<Self> {
        let parameters = serde_json::json!({
            "type": "object",
            "properties": {"cents": {"type": "integer", "minimum": 1}},
            "required": ["cents"],
            "additionalProperties": false,
        });
        let spec = ToolSpec::new(
            "refund",
            "Refunds an amount, in cents, to the customer.",
            Effect::External,
            parameters,
        )?;
        Ok(Self { spec, executed })
    }
}

#[async_trait]
impl Tool for Refund {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, ctx: &RunContext, call: PermittedCall) -> ToolOutcome {
        let Arguments { cents } = match call.parse() {
            Ok(arguments) => arguments,
            Err(error) => return error.into(),
        };
        self.executed.fetch_add(1, Ordering::SeqCst);
        let who = ctx.user_id().map_or("a visitor", UserId::as_str);
        ToolOutcome::ok(format!("{cents} cents refunded to {who}"))
    }
}
