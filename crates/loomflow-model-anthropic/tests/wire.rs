//! The adapter against a server that does what a script says: the suite of model adapters, and faults of this wire alone.

#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use std::time::Duration;

use futures_util::TryStreamExt as _;
use loomflow_conformance::doubles::{Head, PeakMemory, Script, ScriptedServer};
use loomflow_conformance::models::{Harness, Setup, Wire, WireEvent, WireReply};
use loomflow_core::danger::{admit, assume_scope, detached_context};
use loomflow_core::{
    Delta, Epoch, ErrorKind, Identity, Message, Model, ModelRequest, Namespace, Result, StopReason,
};
use loomflow_model_anthropic::AnthropicModel;
use loomflow_support_model::{ApiKey, Timeouts};
use serde_json::{Value, json};

#[derive(Debug)]
struct Messages;

async fn harness() -> Harness {
    Harness::new(Messages)
}

loomflow_conformance::models!(harness);

fn event(data: &Value) -> WireEvent {
    WireEvent::new(format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap()))
}

fn stop_reason(stop: &StopReason) -> &'static str {
    match stop {
        StopReason::ToolUse => "tool_use",
        StopReason::MaxTokens => "max_tokens",
        StopReason::Refusal => "refusal",
        _ => "end_turn",
    }
}

/// What a call costs as this provider says it: tokens from its cache are no part of `input_tokens`.
fn usage(reply: &WireReply, output: u64) -> Value {
    reply.usage.map_or(Value::Null, |usage| {
        json!({
            "input_tokens": usage.input_tokens - usage.cached_input_tokens,
            "cache_read_input_tokens": usage.cached_input_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": output,
        })
    })
}

fn started(index: usize, block: &Value) -> WireEvent {
    event(&json!({"type": "content_block_start", "index": index, "content_block": block}))
}

fn piece(index: usize, delta: &Value) -> WireEvent {
    event(&json!({"type": "content_block_delta", "index": index, "delta": delta}))
}

fn stopped(index: usize) -> WireEvent {
    event(&json!({"type": "content_block_stop", "index": index}))
}

impl Wire for Messages {
    fn model(&self, setup: &Setup) -> Arc<dyn Model> {
        let timeouts = Timeouts::default()
            .with_connect(setup.headers_timeout)
            .with_headers(setup.headers_timeout)
            .with_idle(setup.idle_timeout);
        let model = AnthropicModel::builder("claude-sonnet-4-5", setup.key.clone())
            .with_base_url(&setup.base_url)
            .with_timeouts(timeouts)
            .with_streaming(!setup.plain);
        Arc::new(model.build().unwrap())
    }

    fn streamed(&self, reply: &WireReply) -> Vec<WireEvent> {
        let message = json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": [],
            "stop_reason": null, "usage": usage(reply, 1),
        });
        let mut events = vec![event(&json!({"type": "message_start", "message": message}))];
        let mut index = 0;
        if !reply.text.is_empty() {
            events.push(started(0, &json!({"type": "text", "text": ""})));
            let said = |text: &String| piece(0, &json!({"type": "text_delta", "text": text})).saying(text);
            events.extend(reply.text.iter().map(said));
            events.push(stopped(0));
            index = 1;
        }
        for (index, call) in (index..).zip(&reply.calls) {
            let block = json!({"type": "tool_use", "id": call.id, "name": call.name, "input": {}});
            events.push(started(index, &block));
            events.push(piece(index, &json!({"type": "input_json_delta", "partial_json": ""})));
            let said = |json: &String| {
                piece(index, &json!({"type": "input_json_delta", "partial_json": json})).saying(json)
            };
            events.extend(call.arguments.iter().map(said));
            events.push(stopped(index));
        }
        let output = reply.usage.map_or(Value::Null, |usage| json!({"output_tokens": usage.output_tokens}));
        let delta = json!({"stop_reason": stop_reason(&reply.stop), "stop_sequence": null});
        // Once the reason is told, and with it the last count, nothing is missing.
        events.push(event(&json!({"type": "message_delta", "delta": delta, "usage": output})).ending());
        events.push(event(&json!({"type": "message_stop"})));
        events
    }

    fn plain(&self, reply: &WireReply) -> Option<Vec<u8>> {
        let mut content = vec![json!({"type": "text", "text": reply.text.concat()})];
        content.extend(reply.calls.iter().map(|call| {
            let input: Value = serde_json::from_str(&call.arguments.concat()).unwrap();
            json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input})
        }));
        let body = json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": content,
            "stop_reason": stop_reason(&reply.stop),
            "usage": usage(reply, reply.usage.map_or(0, |usage| usage.output_tokens)),
        });
        Some(body.to_string().into_bytes())
    }

    fn error_body(&self, status: u16, message: &str) -> Vec<u8> {
        let kind = match status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            529 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": message}}).to_string().into_bytes()
    }

    fn error_event(&self, message: &str) -> Option<Vec<u8>> {
        let error = json!({"type": "overloaded_error", "message": message});
        Some(event(&json!({"type": "error", "error": error})).bytes)
    }

    fn noise(&self) -> Vec<u8> {
        event(&json!({"type": "ping"})).bytes
    }

    fn request_id_header(&self) -> &str {
        "request-id"
    }
}

/// The calls of a streamed reply of these events, sent as they are.
async fn calls_of(events: &[Value]) -> Result<Vec<(String, String)>> {
    let body: Vec<u8> = events.iter().flat_map(|data| event(data).bytes).collect();
    let head = Head::new(200).with_content_type("text/event-stream").chunked();
    let script = Script::new().head(&head).chunk(body).end_chunks();
    let server = ScriptedServer::start(move |_, _| script.clone()).await.unwrap();
    let model = AnthropicModel::builder("claude-sonnet-4-5", ApiKey::none());
    let model = model.with_base_url(server.url()).build().unwrap();
    let ctx = detached_context(assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO));
    let request = ModelRequest::new(vec![Message::user("hi")], 100);
    let reading = async { model.stream(&ctx, admit(request)).await?.try_collect::<Vec<_>>().await };
    let deltas = tokio::time::timeout(Duration::from_secs(20), reading).await.expect("it hangs")?;
    let call = |delta| match delta {
        Delta::ToolCall(call) => Some((call.id.to_string(), call.arguments.to_string())),
        _ => None,
    };
    Ok(deltas.into_iter().filter_map(call).collect())
}

/// The events of one call whose block has this index, or none.
fn call_at(index: &Value, id: &str, json: &str) -> Vec<Value> {
    let block = json!({"type": "tool_use", "id": id, "name": "add", "input": {}});
    let delta = json!({"type": "input_json_delta", "partial_json": json});
    let mut events = vec![
        json!({"type": "content_block_start", "index": index, "content_block": block}),
        json!({"type": "content_block_delta", "index": index, "delta": delta}),
        json!({"type": "content_block_stop", "index": index}),
    ];
    if index.is_null() {
        events.iter_mut().for_each(|event| drop(event.as_object_mut().unwrap().remove("index")));
    }
    events
}

fn end() -> Value {
    json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}})
}

fn call(id: &str, json: &str) -> (String, String) {
    (id.to_owned(), json.to_owned())
}

#[tokio::test]
async fn blocks_without_an_index_are_told_apart() {
    let events =
        [call_at(&Value::Null, "a", "{\"n\":1}"), call_at(&Value::Null, "b", "{\"n\":2}"), vec![end()]];
    assert_eq!(calls_of(&events.concat()).await.unwrap(), [call("a", "{\"n\":1}"), call("b", "{\"n\":2}")]);
}

#[tokio::test]
async fn an_index_that_is_used_again_is_another_block() {
    let events = [call_at(&json!(0), "a", "{\"n\":1}"), call_at(&json!(0), "b", "{\"n\":2}"), vec![end()]];
    assert_eq!(calls_of(&events.concat()).await.unwrap(), [call("a", "{\"n\":1}"), call("b", "{\"n\":2}")]);
}

#[tokio::test]
async fn a_huge_index_takes_no_memory() {
    for index in [json!(40_000_000), json!(u64::MAX)] {
        let peak = PeakMemory::begin();
        let called = calls_of(&[call_at(&index, "a", "{\"n\":1}"), vec![end()]].concat()).await;
        assert!(peak.growth().unwrap_or_default() < 64 << 20, "index {index}: {peak:?}");
        match called {
            Ok(calls) => assert_eq!(calls, [call("a", "{\"n\":1}")], "index {index}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Transport, "index {index}: {error}"),
        }
    }
}

#[tokio::test]
async fn an_index_that_is_no_number_is_refused_or_ignored() {
    for index in [json!(-1), json!("0"), json!(1.5)] {
        match calls_of(&[call_at(&index, "a", "{\"n\":1}"), vec![end()]].concat()).await {
            Ok(calls) => assert_eq!(calls, [call("a", "{\"n\":1}")], "index {index}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Transport, "index {index}: {error}"),
        }
    }
}

/// Two blocks at once, their pieces one in the other: each piece belongs to its index.
#[tokio::test]
async fn blocks_that_overlap_keep_their_pieces() {
    let piece = |index: u64, json: &str| json!({"type": "content_block_delta", "index": index, "delta": {"type": "input_json_delta", "partial_json": json}});
    let (a, b) = (call_at(&json!(0), "a", "{\"n\":"), call_at(&json!(7), "b", "{\"m\":"));
    let mut events = vec![a[0].clone(), b[0].clone(), b[1].clone(), a[1].clone()];
    events.extend([piece(7, "2}"), piece(0, "1}"), a[2].clone(), b[2].clone(), end()]);
    assert_eq!(calls_of(&events).await.unwrap(), [call("a", "{\"n\":1}"), call("b", "{\"m\":2}")]);
}
