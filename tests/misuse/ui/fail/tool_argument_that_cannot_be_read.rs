//! A tool with an argument that no JSON becomes.

use loomflow::prelude::*;

#[derive(loomflow::schemars::JsonSchema)]
#[schemars(crate = "loomflow::schemars")]
pub struct OrderId(pub u64);

/// Gives the money of an order back.
#[tool(effect = external)]
pub async fn refund(order: OrderId) -> String {
    format!("{} refunded", order.0)
}

fn main() {}
