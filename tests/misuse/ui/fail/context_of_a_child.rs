//! Making a child's context from outside.

use loomflow_core::RunContext;

pub fn child(ctx: &RunContext) -> RunContext {
    RunContext { ..ctx.clone() }
}

fn main() {}
