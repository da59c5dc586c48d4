//! Writing a permit oneself.

use loomflow_core::{PermittedCall, ToolCall};
use serde_json::Value;

pub fn permit(call: ToolCall, arguments: Value) -> PermittedCall {
    loomflow_core::danger::permit(call, arguments)
}

fn main() {}
