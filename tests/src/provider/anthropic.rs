//! Messages, as the provider reads and writes them.

use serde_json::{Value, json};

use super::{Asked, End, Reply, hang_after, words, words_within};

pub(super) fn read(request: &Value) -> Asked {
    let mut asked = Asked {
        most: request["max_tokens"].as_u64().expect("the reply is bounded"),
        streamed: request["stream"].as_bool() == Some(true),
        schema: request["output_config"]["format"]["type"] == "json_schema",
        prompt: text_of(&request["system"], &mut 0),
        ..Asked::default()
    };
    let mut before = "assistant";
    for message in request["messages"].as_array().expect("there are messages") {
        let role = message["role"].as_str().expect("a message has a role");
        assert_ne!(role, before, "roles alternate");
        before = role;
        asked.prompt += text_of(&message["content"], &mut asked.outcomes);
        if let Some(text) = last_text(message).filter(|_| role == "user") {
            asked.hang_after = hang_after(text);
        }
    }
    for tool in request["tools"].as_array().into_iter().flatten() {
        asked.tools.push(tool["name"].as_str().expect("a tool has a name").to_owned());
    }
    asked
}

fn last_text(message: &Value) -> Option<&str> {
    match &message["content"] {
        Value::Array(blocks) => blocks.last()?["text"].as_str(),
        content => content.as_str(),
    }
}

fn text_of(content: &Value, outcomes: &mut usize) -> u64 {
    let blocks = match content {
        Value::String(text) => return words(text),
        Value::Array(blocks) => blocks,
        _ => return 0,
    };
    let mut count = 0;
    for block in blocks {
        count += match block["type"].as_str().expect("a block has a type") {
            "text" => {
                let text = block["text"].as_str().expect("a text block has text");
                assert!(!text.trim().is_empty(), "an empty text block is refused");
                words(text)
            }
            "tool_use" => words_within(&block["input"]),
            "tool_result" => {
                *outcomes += 1;
                text_of(&block["content"], &mut 0)
            }
            other => panic!("a block of type {other}"),
        };
    }
    count
}

/// Anthropic counts cached prompt tokens apart from the others.
fn usage(reply: &Reply) -> Value {
    json!({
        "input_tokens": reply.bill.input - reply.bill.cached,
        "cache_read_input_tokens": reply.bill.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": reply.bill.output,
    })
}

fn stop(reply: &Reply) -> &'static str {
    if reply.calls.is_empty() { "end_turn" } else { "tool_use" }
}

pub(super) fn plain(reply: &Reply) -> Vec<u8> {
    let mut content = vec![json!({"type": "text", "text": reply.text.concat()})];
    for call in &reply.calls {
        let input: Value = serde_json::from_str(&call.pieces.concat()).expect("the double writes JSON");
        content.push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input}));
    }
    let mut body = json!({
        "id": "m", "type": "message", "role": "assistant", "model": "double", "content": content,
        "stop_reason": stop(reply), "stop_sequence": null,
    });
    if reply.tells_usage {
        body["usage"] = usage(reply);
    }
    body.to_string().into_bytes()
}

fn event(name: &str, mut data: Value) -> Vec<u8> {
    data["type"] = name.into();
    format!("event: {name}\ndata: {data}\n\n").into_bytes()
}

pub(super) fn stream(reply: &Reply) -> Vec<Vec<u8>> {
    let mut message =
        json!({"id": "m", "type": "message", "role": "assistant", "model": "double", "content": []});
    if reply.tells_usage && reply.end == End::Clean {
        message["usage"] = json!({"input_tokens": reply.bill.input - reply.bill.cached,
            "cache_read_input_tokens": reply.bill.cached, "output_tokens": 1});
    }
    let mut pieces = vec![event("message_start", json!({"message": message}))];
    let block = |index: usize, block: Value| {
        event("content_block_start", json!({"index": index, "content_block": block}))
    };
    let delta =
        |index: usize, delta: Value| event("content_block_delta", json!({"index": index, "delta": delta}));
    let stopped = |index: usize| event("content_block_stop", json!({"index": index}));
    pieces.push(block(0, json!({"type": "text", "text": ""})));
    for word in reply.text.iter().take(reply.sent) {
        pieces.push(delta(0, json!({"type": "text_delta", "text": word})));
    }
    let mut left = reply.sent.saturating_sub(reply.text.len());
    if left > 0 || reply.end == End::Clean {
        pieces.push(stopped(0));
    }
    for (at, call) in reply.calls.iter().enumerate() {
        if left == 0 && reply.end != End::Clean {
            break;
        }
        pieces
            .push(block(at + 1, json!({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})));
        for piece in call.pieces.iter().take(left) {
            pieces.push(delta(at + 1, json!({"type": "input_json_delta", "partial_json": piece})));
        }
        if left >= call.pieces.len() {
            pieces.push(stopped(at + 1));
        }
        left = left.saturating_sub(call.pieces.len());
    }
    if reply.end == End::Clean {
        let mut last = json!({"delta": {"stop_reason": stop(reply), "stop_sequence": null}});
        if reply.tells_usage {
            last["usage"] = usage(reply);
        }
        pieces.push(event("message_delta", last));
        pieces.push(event("message_stop", json!({})));
    }
    pieces
}
