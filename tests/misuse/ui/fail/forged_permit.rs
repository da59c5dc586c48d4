//! Writing a permit oneself.

use loomflow_core::{PermittedCall, ToolCall};
use serde_json::Value;

pub fn permit(call: ToolCall, arguments: Value) -> PermittedCall {
    PermittedCall { digest: loomflow_core::Digest::of(&[]), call, arguments }
}

fn main() {}
