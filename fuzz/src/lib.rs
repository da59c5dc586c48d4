//! What the targets' decoders were asked: a conversation with two tools, one of a name that the wire does not take.

#![forbid(unsafe_code)]

use std::sync::{Arc, LazyLock};

use loomflow_core::{Effect, Message, ModelRequest, ToolSpec};

/// The request whose reply is decoded.
pub static REQUEST: LazyLock<ModelRequest> = LazyLock::new(|| {
    let tool = |name| {
        let schema = serde_json::json!({"type": "object"});
        Arc::new(ToolSpec::new(name, "Does it.", Effect::Read, schema).expect("it is a tool's name"))
    };
    ModelRequest::new(vec![Message::user("hi")], 100)
        .with_tools([tool("get_weather"), tool("files.read")].into())
});
