//! A tool that does not say what a call of it does to the world.

use loomflow::prelude::*;

/// Gives the money of an order back.
#[tool(effect = external, timeout = "5s")]
pub async fn refund(order: u64) -> String {
    format!("{order} refunded")
}

/// It is used below as if nothing were wrong; only the mistake itself is reported.
pub fn name() -> &'static str {
    let _offered = Agent::builder("You help.").tool(refund);
    &refund.spec().name
}

fn main() {}
