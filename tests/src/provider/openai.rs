//! Chat completions, as the provider reads and writes them.

use serde_json::{Value, json};

use super::{Asked, End, Reply, hang_after, words, words_within};

pub(super) fn read(request: &Value) -> Asked {
    let messages = request["messages"].as_array().expect("there are messages");
    let mut asked = Asked {
        most: request["max_completion_tokens"]
            .as_u64()
            .or(request["max_tokens"].as_u64())
            .expect("the reply is bounded"),
        streamed: request["stream"].as_bool() == Some(true),
        schema: request["response_format"]["type"] == "json_schema",
        ..Asked::default()
    };
    if asked.streamed {
        assert_eq!(request["stream_options"]["include_usage"], true, "the usage is asked for");
    }
    for message in messages {
        asked.prompt += match &message["content"] {
            Value::String(text) => {
                if message["role"] == "user" {
                    asked.hang_after = hang_after(text);
                }
                words(text)
            }
            Value::Array(parts) => parts.iter().map(|part| words_within(&part["text"])).sum(),
            _ => 0,
        };
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            let text = call["function"]["arguments"].as_str().expect("arguments are JSON text");
            asked.prompt += words_within(&serde_json::from_str(text).expect("the double wrote them"));
        }
        asked.outcomes += usize::from(message["role"] == "tool");
    }
    for tool in request["tools"].as_array().into_iter().flatten() {
        asked.tools.push(tool["function"]["name"].as_str().expect("a tool has a name").to_owned());
    }
    asked
}

fn usage(reply: &Reply) -> Value {
    json!({
        "prompt_tokens": reply.bill.input,
        "completion_tokens": reply.bill.output,
        "total_tokens": reply.bill.input + reply.bill.output,
        "prompt_tokens_details": {"cached_tokens": reply.bill.cached},
    })
}

fn stop(reply: &Reply) -> &'static str {
    if reply.calls.is_empty() { "stop" } else { "tool_calls" }
}

pub(super) fn plain(reply: &Reply) -> Vec<u8> {
    let calls: Vec<Value> = reply
        .calls
        .iter()
        .map(|call| {
            let function = json!({"name": call.name, "arguments": call.pieces.concat()});
            json!({"id": call.id, "type": "function", "function": function})
        })
        .collect();
    let mut message = json!({"role": "assistant", "content": reply.text.concat()});
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    let choice = json!({"index": 0, "message": message, "finish_reason": stop(reply)});
    let mut body = json!({"id": "c", "object": "chat.completion", "model": "double", "choices": [choice]});
    if reply.tells_usage {
        body["usage"] = usage(reply);
    }
    body.to_string().into_bytes()
}

fn event(delta: &Value, finish: Option<&str>) -> Vec<u8> {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
    let chunk = json!({"id": "c", "object": "chat.completion.chunk", "model": "double", "choices": [choice]});
    format!("data: {chunk}\n\n").into_bytes()
}

pub(super) fn stream(reply: &Reply) -> Vec<Vec<u8>> {
    let mut pieces = vec![event(&json!({"role": "assistant", "content": ""}), None)];
    pieces.extend(reply.text.iter().take(reply.sent).map(|word| event(&json!({"content": word}), None)));
    let mut left = reply.sent.saturating_sub(reply.text.len());
    for (index, call) in reply.calls.iter().enumerate().filter(|_| reply.sent >= reply.text.len()) {
        if left == 0 && reply.end != End::Clean {
            break;
        }
        let function = json!({"name": call.name, "arguments": ""});
        let opened = json!({"index": index, "id": call.id, "type": "function", "function": function});
        pieces.push(event(&json!({"tool_calls": [opened]}), None));
        for piece in call.pieces.iter().take(left) {
            let more = json!({"index": index, "function": {"arguments": piece}});
            pieces.push(event(&json!({"tool_calls": [more]}), None));
        }
        left = left.saturating_sub(call.pieces.len());
    }
    if reply.end == End::Clean {
        pieces.push(event(&json!({}), Some(stop(reply))));
        if reply.tells_usage {
            let last =
                json!({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage(reply)});
            pieces.push(format!("data: {last}\n\n").into_bytes());
        }
        pieces.push(b"data: [DONE]\n\n".to_vec());
    }
    pieces
}
