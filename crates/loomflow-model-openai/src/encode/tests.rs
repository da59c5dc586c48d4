//! What goes over the wire.

use std::sync::Arc;

use loomflow_core::{Effect, Image};
use serde_json::json;

use super::*;

fn body_of(options: &EncodeOptions, request: &ModelRequest) -> Value {
    serde_json::from_slice(&encode(options, request, None).unwrap()).unwrap()
}

fn body(request: &ModelRequest) -> Value {
    body_of(&EncodeOptions::new("m"), request)
}

fn schema() -> Value {
    json!({"$schema": "x", "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false})
}

#[test]
fn a_conversation_is_written_as_the_provider_reads_it() {
    let calls = [
        ToolCall::new("c1", "billing.refund", "{\"id\": 7}"),
        ToolCall::new("c2", "get", ""),
        ToolCall::new("c3", "get", "[oops"),
    ];
    let messages = vec![
        Message::system("Be brief."),
        Message::user("Hi \u{1F600}\n"),
        Message::assistant_calls("", calls.clone())
            .with_provider_state(Some(r#"{"reasoning_content":"hm","content":"no","reasoning":7}"#.into())),
        Message::tool("c1", "done"),
        Message::assistant_calls("Let me look.", [calls[1].clone()]),
        Message::tool("c2", ""),
        Message::assistant(""),
    ];
    assert_eq!(
        body(&ModelRequest::new(messages, 100)),
        json!({
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi \u{1F600}\n"},
                {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "billing__refund", "arguments": "{\"id\": 7}"}},
                    {"id": "c2", "type": "function", "function": {"name": "get", "arguments": "{}"}},
                    {"id": "c3", "type": "function", "function": {"name": "get", "arguments": "{\"invalid_arguments\":\"[oops\"}"}},
                ]},
                {"role": "tool", "content": "done", "tool_call_id": "c1"},
                {"role": "assistant", "content": "Let me look.", "tool_calls": [
                    {"id": "c2", "type": "function", "function": {"name": "get", "arguments": "{}"}},
                ]},
                {"role": "tool", "content": "", "tool_call_id": "c2"},
                {"role": "assistant", "content": ""},
            ],
            "max_completion_tokens": 100,
            "stream": true,
            "stream_options": {"include_usage": true},
        })
    );
}

#[test]
fn images_are_parts() {
    let png = Image::from_bytes(&b"\x89PNG\r\n\x1a\n.."[..]).unwrap();
    let there = Image::from_url("https://example.com/a.png").unwrap();
    let messages = vec![
        Message::user("What is this?").with_images([png, there.clone()]),
        Message::user("").with_images([there]),
    ];
    let body = body(&ModelRequest::new(messages, 1));
    assert_eq!(
        body["messages"][0]["content"],
        json!([
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgouLg=="}},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        ])
    );
    assert_eq!(body["messages"][1]["content"].as_array().unwrap().len(), 1);
}

#[test]
fn tools_travel_under_their_wire_names() {
    let spec = Arc::new(
        ToolSpec::new("billing.refund", "Pays back.", Effect::External, json!({"type": "object"})).unwrap(),
    );
    let request = ModelRequest::new(vec![], 1).with_tools(Arc::from([spec]));
    let mut options = EncodeOptions::new("m");
    options.parallel_tool_calls = Some(false);
    let sent = body_of(&options, &request);
    assert_eq!(
        sent["tools"],
        json!([{"type": "function", "function": {
            "name": "billing__refund", "description": "Pays back.", "parameters": {"type": "object"},
        }}])
    );
    assert_eq!(sent["parallel_tool_calls"], json!(false));
    let without = body_of(&options, &ModelRequest::new(vec![], 1));
    assert!(without.get("tools").is_none() && without.get("parallel_tool_calls").is_none());
}

#[test]
fn a_schema_is_asked_for_as_the_server_knows_it() {
    let ask = |mode, schema: Value| {
        let mut options = EncodeOptions::new("m");
        options.structured_output = mode;
        let request = ModelRequest::new(vec![], 1).with_output_schema(Some(Arc::new(schema)));
        body_of(&options, &request).get("response_format").cloned()
    };
    let strict = ask(StructuredOutput::JsonSchema, schema()).unwrap();
    assert_eq!(strict["type"], "json_schema");
    assert_eq!(strict["json_schema"]["name"], "answer");
    assert_eq!(strict["json_schema"]["strict"], json!(true));
    assert!(strict["json_schema"]["schema"].get("$schema").is_none());
    let open = ask(StructuredOutput::JsonSchema, json!({"type": "object"})).unwrap();
    assert_eq!(open["json_schema"]["strict"], json!(false));
    assert_eq!(ask(StructuredOutput::JsonObject, schema()), Some(json!({"type": "json_object"})));
    assert_eq!(ask(StructuredOutput::None, schema()), None);
}

#[test]
fn options_are_written_and_bounds_kept() {
    let mut options = EncodeOptions::new("m");
    options.stream = false;
    options.max_tokens = MaxTokensField::MaxTokens;
    options.reasoning_effort = Some("low".to_owned());
    options.service_tier = Some(ServiceTier::Flex);
    options.temperature = Some(0.5);
    options.seed = Some(-7);
    options.extra.insert("top_k".to_owned(), json!(40));
    let request = ModelRequest::new(vec![], u64::MAX);
    let sent: Value = serde_json::from_slice(&encode(&options, &request, Some("key")).unwrap()).unwrap();
    assert_eq!(
        sent,
        json!({
            "model": "m", "messages": [], "max_tokens": 2_147_483_647, "reasoning_effort": "low", "service_tier": "flex",
            "temperature": 0.5, "seed": -7, "prompt_cache_key": "key", "stream": false, "top_k": 40,
        })
    );
    assert_eq!(
        encode(&options, &request, None).unwrap(),
        encode(&options.clone(), &request.clone(), None).unwrap()
    );
}

#[test]
fn further_members_can_neither_lift_a_bound_nor_multiply_the_cost() {
    for name in RESERVED {
        let mut options = EncodeOptions::new("m");
        options.extra.insert(name.to_owned(), json!(2));
        assert!(options.check().unwrap_err().message().contains(name));
    }
    let written =
        body(&ModelRequest::new(vec![Message::user("x")], 1).with_output_schema(Some(Arc::new(schema()))));
    for name in written.as_object().unwrap().keys() {
        assert!(RESERVED.contains(&name.as_str()), "{name} could be written twice");
    }
    let mut options = EncodeOptions::new("m");
    options.temperature = Some(f64::NAN);
    assert!(options.check().is_err());
}
