//! Calling a tool twice with one permit.

use loomflow_core::{PermittedCall, RunContext, Tool, ToolOutcome};

pub async fn twice(
    tool: &dyn Tool,
    ctx: &RunContext,
    first: PermittedCall,
    _second: PermittedCall,
) -> [ToolOutcome; 2] {
    let one = tool.call(ctx, first).await;
    let two = tool.call(ctx, _second).await;
    [one, two]
}

fn main() {}
