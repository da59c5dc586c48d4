//! A tool that the model is told nothing about.

use loomflow::prelude::*;

/// Gives the money of an order back.
#[tool(effect = external)]
pub async fn refund(order: u64) -> String {
    format!("{order} refunded")
}

fn main() {}
