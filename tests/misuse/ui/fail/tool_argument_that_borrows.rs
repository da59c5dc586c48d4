//! A tool that would borrow its argument from the model.

use loomflow::prelude::*;

/// Finds an order.
#[tool(effect = read)]
pub async fn find(ctx: &RunContext, words: &str) -> String {
    format!("{words} for {:?}", ctx.user_id())
}

fn main() {}
