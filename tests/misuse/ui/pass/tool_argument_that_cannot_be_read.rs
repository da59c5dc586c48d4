//! A tool with an argument that no JSON becomes.

use loomflow::prelude::*;

#[derive(loomflow::serde::Deserialize, loomflow::schemars::JsonSchema)]
#[serde(crate = "loomflow::serde")]
#[schemars(crate = "loomflow::schemars")]
pub struct OrderId(pub u64);

/// Gives the money of an order back.
#[tool(effect = external)]
pub async fn refund(order: OrderId) -> String {
    format!("{} refunded", order.0)
}

fn main() {}
