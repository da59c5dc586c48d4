//! Calling a tool with a call that no policy has looked at.

use loomflow_core::{PermittedCall, RunContext, Tool, ToolCall, ToolOutcome};

pub async fn run(tool: &dyn Tool, ctx: &RunContext, _asked: ToolCall, _permit: PermittedCall) -> ToolOutcome {
    tool.call(ctx, _permit).await
}

fn main() {}
