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
use loomflow_model_openai::OpenAiConfig;
use loomflow_support_model::{ApiKey, Timeouts};
use serde_json::{Value, json};

#[derive(Debug)]
struct ChatCompletions;

async fn harness() -> Harness {
    Harness::new(ChatCompletions)
}

loomflow_conformance::models!(harness);

const MODEL: &str = "gpt-4.1-mini";

fn event(data: &Value) -> WireEvent {
    WireEvent::new(format!("data: {data}\n\n"))
}

fn chunk(delta: &Value, finish: &Value) -> Value {
    let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": MODEL,
        "choices": [choice], "usage": null,
    })
}

fn finish_reason(stop: &StopReason) -> &'static str {
    match stop {
        StopReason::ToolUse => "tool_calls",
        StopReason::MaxTokens => "length",
        StopReason::Refusal => "content_filter",
        _ => "stop",
    }
}

fn usage(reply: &WireReply) -> Option<Value> {
    reply.usage.map(|usage| {
        json!({
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        })
    })
}

impl Wire for ChatCompletions {
    fn model(&self, setup: &Setup) -> Arc<dyn Model> {
        let timeouts = Timeouts::default()
            .with_connect(setup.headers_timeout)
            .with_headers(setup.headers_timeout)
            .with_idle(setup.idle_timeout);
        let config = OpenAiConfig::new(MODEL, ApiKey::from(setup.key.clone()))
            .with_base_url(format!("{}/v1", setup.base_url))
            .with_timeouts(timeouts)
            .with_streaming(!setup.plain);
        Arc::new(config.build().unwrap())
    }

    fn streamed(&self, reply: &WireReply) -> Vec<WireEvent> {
        let mut events = vec![event(&chunk(&json!({"role": "assistant", "content": ""}), &Value::Null))];
        let said = |text: &String| event(&chunk(&json!({"content": text}), &Value::Null)).saying(text);
        events.extend(reply.text.iter().map(said));
        for (index, call) in reply.calls.iter().enumerate() {
            let piece = |piece: &Value| event(&chunk(&json!({"tool_calls": [piece]}), &Value::Null));
            let function = json!({"name": call.name, "arguments": ""});
            let begin = json!({"index": index, "id": call.id, "type": "function", "function": function});
            events.push(piece(&begin));
            let said =
                |json: &String| piece(&json!({"index": index, "function": {"arguments": json}})).saying(json);
            events.extend(call.arguments.iter().map(said));
        }
        // Some servers leave out all that follows.
        events.push(event(&chunk(&json!({}), &json!(finish_reason(&reply.stop)))).ending());
        if let Some(usage) = usage(reply) {
            let mut last = chunk(&json!({}), &Value::Null);
            (last["choices"], last["usage"]) = (json!([]), usage);
            events.push(event(&last));
        }
        events.push(WireEvent::new("data: [DONE]\n\n"));
        events
    }

    fn plain(&self, reply: &WireReply) -> Option<Vec<u8>> {
        let call = |call: &loomflow_conformance::models::WireCall| {
            let function = json!({"name": call.name, "arguments": call.arguments.concat()});
            json!({"id": call.id, "type": "function", "function": function})
        };
        let mut message = json!({"role": "assistant", "content": reply.text.concat(), "refusal": null});
        if !reply.calls.is_empty() {
            message["tool_calls"] = reply.calls.iter().map(call).collect();
        }
        let choice = json!({"index": 0, "message": message, "finish_reason": finish_reason(&reply.stop)});
        let mut body = json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": MODEL,
            "choices": [choice],
        });
        if let Some(usage) = usage(reply) {
            body["usage"] = usage;
        }
        Some(body.to_string().into_bytes())
    }

    fn error_body(&self, status: u16, message: &str) -> Vec<u8> {
        let (kind, code) = match status {
            401 => ("invalid_request_error", json!("invalid_api_key")),
            404 => ("invalid_request_error", json!("model_not_found")),
            429 => ("requests", json!("rate_limit_exceeded")),
            500.. => ("server_error", Value::Null),
            _ => ("invalid_request_error", Value::Null),
        };
        json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
            .to_string()
            .into_bytes()
    }

    fn error_event(&self, message: &str) -> Option<Vec<u8>> {
        Some(event(&json!({"error": {"message": message, "type": "server_error", "code": null}})).bytes)
    }
}

/// A streamed reply of these events, sent as they are.
async fn deltas_of(events: &[Value]) -> Result<Vec<Delta>> {
    let mut body: Vec<u8> = events.iter().flat_map(|data| event(data).bytes).collect();
    body.extend_from_slice(b"data: [DONE]\n\n");
    let head = Head::new(200).with_content_type("text/event-stream").chunked();
    let script = Script::new().head(&head).chunk(body).end_chunks();
    let server = ScriptedServer::start(move |_, _| script.clone()).await.unwrap();
    let model = OpenAiConfig::new(MODEL, ApiKey::none()).with_base_url(server.url()).build().unwrap();
    let ctx = detached_context(assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO));
    let request = ModelRequest::new(vec![Message::user("hi")], 100);
    let reading = async { model.stream(&ctx, admit(request)).await?.try_collect().await };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("it hangs")
}

/// The calls of a reply made of these pieces of calls.
async fn calls_of(pieces: &[Value]) -> Result<Vec<(String, String)>> {
    let mut events: Vec<Value> =
        pieces.iter().map(|piece| chunk(&json!({"tool_calls": [piece]}), &Value::Null)).collect();
    events.push(chunk(&json!({}), &json!("tool_calls")));
    let call = |delta| match delta {
        Delta::ToolCall(call) => Some((call.id.to_string(), call.arguments.to_string())),
        _ => None,
    };
    Ok(deltas_of(&events).await?.into_iter().filter_map(call).collect())
}

/// A piece of a call, with an index where there is one.
fn piece(index: &Value, id: &str, arguments: &str) -> Value {
    let name = if id.is_empty() { Value::Null } else { json!("add") };
    let mut piece = json!({"function": {"name": name, "arguments": arguments}});
    if !id.is_empty() {
        piece["id"] = json!(id);
    }
    if !index.is_null() {
        piece["index"] = index.clone();
    }
    piece
}

fn call(id: &str, arguments: &str) -> (String, String) {
    (id.to_owned(), arguments.to_owned())
}

#[tokio::test]
async fn calls_without_an_index_are_told_apart() {
    let none = Value::Null;
    let pieces = [
        piece(&none, "a", "{\"n\":"),
        piece(&none, "", "1}"),
        piece(&none, "b", "{\"m\":"),
        piece(&none, "", "2}"),
    ];
    assert_eq!(calls_of(&pieces).await.unwrap(), [call("a", "{\"n\":1}"), call("b", "{\"m\":2}")]);
}

#[tokio::test]
async fn an_index_that_is_used_again_with_another_id_is_another_call() {
    let zero = json!(0);
    let pieces = [
        piece(&zero, "a", "{\"n\":"),
        piece(&zero, "", "1}"),
        piece(&zero, "b", "{\"m\":"),
        piece(&zero, "", "2}"),
    ];
    assert_eq!(calls_of(&pieces).await.unwrap(), [call("a", "{\"n\":1}"), call("b", "{\"m\":2}")]);
}

#[tokio::test]
async fn a_huge_index_takes_no_memory() {
    for index in [json!(40_000_000), json!(u64::MAX), json!(1e300)] {
        let peak = PeakMemory::begin();
        let called = calls_of(&[piece(&index, "a", "{\"n\":1}")]).await;
        assert!(peak.growth().unwrap_or_default() < 64 << 20, "index {index}: {peak:?}");
        match called {
            Ok(calls) => assert_eq!(calls, [call("a", "{\"n\":1}")], "index {index}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Transport, "index {index}: {error}"),
        }
    }
}

#[tokio::test]
async fn pieces_that_alternate_keep_their_calls() {
    let pieces = [
        piece(&json!(5), "a", "{\"n\":"),
        piece(&json!(2), "b", "{\"m\":"),
        piece(&json!(5), "", "1}"),
        piece(&json!(2), "", "2}"),
    ];
    assert_eq!(calls_of(&pieces).await.unwrap(), [call("a", "{\"n\":1}"), call("b", "{\"m\":2}")]);
}

#[tokio::test]
async fn a_refusal_that_is_streamed_is_text_and_the_reason_to_stop() {
    let events = [
        chunk(&json!({"role": "assistant", "refusal": "I will "}), &Value::Null),
        chunk(&json!({"refusal": "not."}), &Value::Null),
        chunk(&json!({}), &json!("stop")),
    ];
    let deltas = deltas_of(&events).await.unwrap();
    let text = deltas.iter().filter_map(|delta| match delta {
        Delta::Text(text) => Some(&**text),
        _ => None,
    });
    assert_eq!(text.collect::<String>(), "I will not.");
    let Some(Delta::Done(done)) = deltas.last() else { panic!("no end: {deltas:?}") };
    assert_eq!(done.stop, StopReason::Refusal);
}
