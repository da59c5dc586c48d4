//! A tool that is not async.

use loomflow::prelude::*;

/// Gives the money of an order back.
#[tool(effect = external)]
pub fn refund(order: u64) -> String {
    format!("{order} refunded")
}

fn main() {}
