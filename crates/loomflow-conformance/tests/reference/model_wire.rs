//! The wire of the reference model: events with a name and a JSON value, or one JSON object.

use std::sync::Arc;

use loomflow_conformance::models::{Harness, Setup, Wire, WireEvent, WireReply};
use loomflow_core::{Model, StopReason};
use serde_json::{Value, json};

use super::Bug;
use super::model::ToyModel;

#[derive(Debug)]
struct ToyWire(Bug);

pub(crate) fn harness(bug: Bug) -> Harness {
    Harness::new(ToyWire(bug))
}

fn event(name: &str, data: &Value) -> WireEvent {
    WireEvent::new(format!("event: {name}\ndata: {data}\n\n"))
}

fn stop(stop: &StopReason) -> &'static str {
    match stop {
        StopReason::MaxTokens => "limit",
        StopReason::Refusal => "refused",
        _ => "end",
    }
}

impl Wire for ToyWire {
    fn model(&self, setup: &Setup) -> Arc<dyn Model> {
        Arc::new(ToyModel::new(self.0, setup))
    }

    fn streamed(&self, reply: &WireReply) -> Vec<WireEvent> {
        let mut events = vec![event("begin", &json!({}))];
        events.extend(reply.text.iter().map(|piece| event("text", &json!(piece)).saying(piece)));
        for (slot, call) in reply.calls.iter().enumerate() {
            events.push(event("call", &json!({"slot": slot, "id": call.id, "name": call.name})));
            let piece =
                |piece: &String| event("arguments", &json!({"slot": slot, "piece": piece})).saying(piece);
            events.extend(call.arguments.iter().map(piece));
        }
        if let Some(usage) = reply.usage {
            let cached = usage.cached_input_tokens;
            let counts =
                json!({"input": usage.input_tokens, "cached": cached, "output": usage.output_tokens});
            events.push(event("usage", &counts));
        }
        events.push(event("stop", &json!(stop(&reply.stop))).ending());
        events
    }

    fn plain(&self, reply: &WireReply) -> Option<Vec<u8>> {
        let calls: Vec<Value> = reply
            .calls
            .iter()
            .map(|c| json!({"id": c.id, "name": c.name, "arguments": c.arguments.concat()}))
            .collect();
        let usage = reply.usage.map(
            |u| json!({"input": u.input_tokens, "cached": u.cached_input_tokens, "output": u.output_tokens}),
        );
        let body =
            json!({"text": reply.text.concat(), "calls": calls, "usage": usage, "stop": stop(&reply.stop)});
        Some(body.to_string().into_bytes())
    }

    fn error_body(&self, status: u16, message: &str) -> Vec<u8> {
        json!({"error": {"status": status, "message": message}}).to_string().into_bytes()
    }

    fn error_event(&self, message: &str) -> Option<Vec<u8>> {
        Some(event("error", &json!(message)).bytes)
    }

    fn endless_event(&self) -> Vec<u8> {
        b"event: text\ndata: \"".to_vec()
    }
}
