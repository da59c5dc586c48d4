//! A tool that keeps something of its thread while it waits.

use loomflow::prelude::*;

/// Gives the money of an order back.
#[tool(effect = external)]
pub async fn refund(order: u64) -> String {
    let shared = std::sync::Arc::new(order);
    std::future::ready(()).await;
    format!("{shared} refunded")
}

fn main() {}
