//! A tool that does not say what a call of it does to the world.

use loomflow::prelude::*;

/// Gives the money of an order back.
#[tool(effect = external, timeout = "5s")]
pub async fn refund(order: u64) -> String {
    format!("{order} refunded")
}

pub fn offered(
    agent: loomflow::AgentBuilder<loomflow::NoModel>,
) -> loomflow::AgentBuilder<loomflow::NoModel> {
    agent.tool(refund)
}

fn main() {}
