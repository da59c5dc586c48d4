//! A tool with an effect that no policy knows.

use loomflow::prelude::*;

/// Gives the money of an order back.
#[tool(effect = harmless)]
pub async fn refund(order: u64) -> String {
    format!("{order} refunded")
}

fn main() {}
