//! A tool whose answer is not something the model can be told.

use loomflow::prelude::*;

/// Says what an order costs.
#[tool(effect = read)]
pub async fn price(order: u64) -> Json<u64> {
    Json(order * 2)
}

fn main() {}
