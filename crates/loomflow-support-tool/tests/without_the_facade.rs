//! A crate that does not depend on the facade writes its tools with this one.

#![forbid(unsafe_code)]

use futures_util::FutureExt as _;
use loomflow_core::danger::{assume_scope, detached_context, permit};
use loomflow_core::{Effect, Epoch, Identity, Json, Namespace, Tool as _, ToolCall, ToolOutcome};
use loomflow_macros::tool;
use serde_json::json;

/// Adds.
#[tool(crate = loomflow_support_tool, effect = read)]
async fn add(a: u32, b: u32) -> Json<u32> {
    Json(a + b)
}

#[test]
fn a_tool_stands_on_the_support_crate_alone() {
    assert_eq!(add.spec().effect, Effect::Read);
    let context = detached_context(assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO));
    let call = permit(ToolCall::new("call_1", "add", ""), json!({"a": 1, "b": 2}));
    assert_eq!(add.call(&context, call).now_or_never(), Some(ToolOutcome::ok("3")));
}
