//! Requests against the rules of the Messages API, written down a second time and naively.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashSet;
use std::sync::Arc;

use loomflow_core::{Delta, Effect, ErrorKind, Image, Message, ModelRequest, ToolCall, ToolSpec};
use loomflow_model_anthropic::codec::{PlainDecoder, Settings, encode};
use loomflow_model_anthropic::{CacheTtl, Effort, ServiceTier, Thinking};
use loomflow_support_model::Decode as _;
use proptest::prelude::*;
use serde_json::{Value, json};

fn state() -> Option<Arc<str>> {
    let block = json!({"type": "thinking", "thinking": "", "signature": "c2ln"});
    let hidden = json!({"type": "redacted_thinking", "data": "ZGF0YQ=="});
    Some(json!({"provider": "anthropic", "blocks": [block, hidden]}).to_string().into())
}

fn settings() -> Settings {
    Settings::new("claude-sonnet-4-5")
}

fn body_of(request: &ModelRequest, settings: &Settings) -> Value {
    let bytes = encode(request, settings).unwrap();
    assert_eq!(encode(request, settings).unwrap(), bytes, "the same request gives the same bytes");
    serde_json::from_slice(&bytes).unwrap()
}

fn body(messages: Vec<Message>) -> Value {
    body_of(&ModelRequest::new(messages, 100), &settings())
}

fn call(id: &str, arguments: &str) -> ToolCall {
    ToolCall::new(id, "billing.refund", arguments)
}

fn tools() -> Arc<[Arc<ToolSpec>]> {
    let tool = |name, about| {
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}});
        Arc::new(ToolSpec::new(name, about, Effect::Read, schema).unwrap())
    };
    [tool("clock", ""), tool("billing.refund", "Pays back.")].into()
}

#[test]
fn a_conversation_with_tools_looks_like_this() {
    let messages = vec![
        Message::system("Be brief."),
        Message::user("Remembered."),
        Message::user("Refund both!"),
        Message::assistant_calls(
            "On it.",
            [call("toolu_1", r#"{ "n": 12345678901234567890.10 }"#), call("toolu_2", "[1]")],
        ),
        Message::tool("toolu_1", "done"),
        Message::tool("toolu_2", ""),
        Message::user("Thanks."),
    ];
    let request = ModelRequest::new(messages, 77).with_tools(tools());
    let bytes = encode(&request, &settings()).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("12345678901234567890.10"), "arguments keep every digit");
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}});
    assert_eq!(
        serde_json::from_str::<Value>(&text).unwrap(),
        json!({
            "model": "claude-sonnet-4-5", "max_tokens": 77, "stream": true,
            "tools": [
                {"name": "clock", "input_schema": schema},
                {"name": "billing__refund", "description": "Pays back.", "input_schema": schema},
            ],
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Remembered."}, {"type": "text", "text": "Refund both!"}]},
                {"role": "assistant", "content": [
                    {"type": "text", "text": "On it."},
                    {"type": "tool_use", "id": "toolu_1", "name": "billing__refund", "input": {"n": 12_345_678_901_234_567_890.1}},
                    {"type": "tool_use", "id": "toolu_2", "name": "billing__refund", "input": {}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "done"}]},
                    {"type": "tool_result", "tool_use_id": "toolu_2"},
                    {"type": "text", "text": "Thanks."},
                ]},
            ],
        })
    );
}

#[test]
fn ids_and_names_are_made_fit() {
    let odd = ToolCall::new("a.b/ü", "no such tool!", "{}");
    let again = [
        call("c#1", "{}"),
        call("c#1", "{}"),
        call("c_1", "{}"),
        call("", "{}"),
        ToolCall::new("e", "", "{}"),
        odd,
    ];
    let results = ["c#1", "c#1", "c_1", "", "e", "a.b/ü"].map(|id| Message::tool(id, id));
    let messages = [vec![Message::user("x"), Message::assistant_calls("", again)], results.to_vec()].concat();
    let body = body(messages);
    let calls = body["messages"][1]["content"].as_array().unwrap();
    let ids: Vec<_> = calls.iter().map(|call| call["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["c_1", "c_1_2", "c_1_3", "call", "e", "a_b__"]);
    assert_eq!((&calls[4]["name"], &calls[5]["name"]), (&json!("_"), &json!("_no_such_tool_")));
    let results = body["messages"][2]["content"].as_array().unwrap();
    let answered: Vec<_> = results.iter().map(|result| result["tool_use_id"].as_str().unwrap()).collect();
    assert_eq!(answered, ids);
    check(&body);
}

#[test]
fn every_call_is_answered_and_no_other() {
    let body = body(vec![
        Message::tool("nobody", "asked"),
        Message::assistant_calls("", [call("a", "{}"), call("b", "{}")]),
        Message::tool("b", "2"),
        Message::tool("b", "twice"),
        Message::assistant("So."),
        Message::tool("a", "too late"),
        Message::assistant(" \n"),
        Message::assistant_calls("", [call("a", "{}")]),
    ]);
    check(&body);
    let turns = body["messages"].as_array().unwrap();
    assert_eq!(turns.len(), 5);
    let answers = turns[2]["content"].as_array().unwrap();
    let ids: Vec<_> =
        answers.iter().map(|a| (a["tool_use_id"].as_str().unwrap(), a["is_error"] == true)).collect();
    assert_eq!(ids, [("b", false), ("a", true)]);
    assert_eq!(turns[4]["content"][0]["tool_use_id"], "a_2");
    assert!(!body.to_string().contains("asked") && !body.to_string().contains("too late"));
}

#[test]
fn images_are_shown() {
    let images =
        [Image::from_bytes(&b"GIF89a"[..]).unwrap(), Image::from_url("https://example.com/a.png").unwrap()];
    let body = body(vec![Message::user("Look.").with_images(images)]);
    assert_eq!(
        body["messages"][0]["content"],
        json!([
            {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "R0lGODlh"}},
            {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
            {"type": "text", "text": "Look."},
        ])
    );
}

#[test]
fn nothing_to_say_is_refused() {
    for messages in [vec![], vec![Message::system("x")], vec![Message::user(" \n"), Message::tool("a", "b")]]
    {
        let error = encode(&ModelRequest::new(messages, 1), &settings()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

/// A run in the middle of its calls.
fn in_the_middle(state: Option<Arc<str>>) -> Vec<Message> {
    vec![
        Message::user("x"),
        Message::assistant_calls("", [call("a", "{}")]).with_provider_state(state),
        Message::tool("a", "1"),
    ]
}

#[test]
fn a_budget_is_asked_for_where_it_can_be() {
    let budget = settings().with_thinking(Thinking::Budget(2_000)).with_temperature(0.5);
    let ask = |messages: Vec<Message>, max| body_of(&ModelRequest::new(messages, max), &budget);
    let reasons = json!({"type": "enabled", "budget_tokens": 2_000});
    let fresh = || vec![Message::user("x")];
    let asked = ask(fresh(), 2_001);
    assert_eq!((&asked["thinking"], &asked["temperature"]), (&reasons, &Value::Null));
    let small = ask(fresh(), 2_000);
    assert_eq!(
        (&small["thinking"], &small["temperature"]),
        (&Value::Null, &json!(0.5)),
        "no room for an answer"
    );

    let middle = ask(in_the_middle(state()), 9_000);
    assert_eq!(middle["thinking"], reasons);
    let kinds: Vec<_> =
        middle["messages"][1]["content"].as_array().unwrap().iter().map(|b| b["type"].clone()).collect();
    assert_eq!(kinds, ["thinking", "redacted_thinking", "tool_use"]);
    assert_eq!(
        middle["messages"][1]["content"][0],
        json!({"type": "thinking", "thinking": "", "signature": "c2ln"})
    );

    let foreign: Option<Arc<str>> = state().map(|own| own.replace("anthropic", "another").into());
    for unknown in [None, foreign, Some("not JSON".into()), Some("[]".into())] {
        let without = ask(in_the_middle(unknown), 9_000);
        assert_eq!(without["thinking"], Value::Null, "the API would refuse it");
        check(&without);
    }
    let next_turn = [in_the_middle(None), vec![Message::assistant("1."), Message::user("y")]].concat();
    assert_eq!(ask(next_turn, 9_000)["thinking"], reasons, "an earlier run does not matter");

    let clamped = ask(in_the_middle(state()), 500);
    assert_eq!(clamped["thinking"], Value::Null);
    assert!(!clamped.to_string().contains("c2ln"), "reasoning is not handed back to a call without it");
}

/// What a model says that reasons again between its calls, as a stream and as the blocks that the API wants back.
fn interleaved() -> (Vec<Value>, String) {
    let thinking =
        |n: u8| json!({"type": "thinking", "thinking": format!("t{n}"), "signature": format!("s{n}")});
    let blocks = vec![
        thinking(1),
        json!({"type": "text", "text": "é, first"}),
        json!({"type": "tool_use", "id": "a", "name": "billing__refund", "input": {"n": 1}}),
        thinking(2),
        thinking(3),
        json!({"type": "tool_use", "id": "b", "name": "billing__refund", "input": {"n": 2}}),
    ];
    let usage = json!({"input_tokens": 1, "output_tokens": 1});
    let body = json!({"type": "message", "content": &blocks, "stop_reason": "tool_use", "usage": usage});
    (blocks, body.to_string())
}

#[test]
fn reasoning_between_calls_goes_back_where_it_was_signed() {
    let (blocks, body) = interleaved();
    let asked = ModelRequest::new(vec![Message::user("x")], 9_000).with_tools(tools());
    let (mut decoder, mut deltas) = (PlainDecoder::new(&asked), Vec::new());
    decoder.push(body.as_bytes(), &mut deltas).unwrap();
    decoder.finish(&mut deltas).unwrap();
    let (mut text, mut calls, mut state) = (String::new(), Vec::new(), None);
    for delta in deltas {
        match delta {
            Delta::Text(piece) => text.push_str(&piece),
            Delta::ToolCall(call) => calls.push(call),
            Delta::ProviderState(kept) => state = Some(kept),
            _ => {}
        }
    }
    let answered = |text: &str| {
        let said = Message::assistant_calls(text, calls.clone()).with_provider_state(state.clone());
        let messages = vec![Message::user("x"), said, Message::tool("a", "1"), Message::tool("b", "2")];
        let adaptive = Settings::new("claude-opus-4-6").with_thinking(Thinking::Adaptive);
        body_of(&ModelRequest::new(messages, 9_000), &adaptive)["messages"][1]["content"].clone()
    };
    assert_eq!(answered(&text), Value::Array(blocks));
    let changed = answered("e");
    assert_eq!(
        changed.as_array().unwrap().len(),
        3,
        "reasoning that has lost its place stays away: {changed}"
    );
}

#[test]
fn arguments_that_nobody_can_read_do_not_have_every_later_request_refused() {
    for arguments in
        [r#"{"n":"\ud800"}"#, r#"{"n":1e999}"#, &format!("{{\"n\":{}1{}}}", "[".repeat(200), "]".repeat(200))]
    {
        let said = Message::assistant_calls("", [call("a", arguments)]);
        let body = body(vec![Message::user("x"), said, Message::tool("a", "error: not valid JSON")]);
        assert_eq!(body["messages"][1]["content"][0]["input"], json!({}), "{arguments}");
    }
}

#[test]
fn the_other_ways_to_reason() {
    let new = || Settings::new("claude-opus-4-7");
    let request = |messages| ModelRequest::new(messages, 500);
    let adaptive = body_of(
        &request(in_the_middle(None)),
        &new().with_thinking(Thinking::Adaptive).with_effort(Effort::Low).with_temperature(1.0),
    );
    assert_eq!(adaptive["thinking"], json!({"type": "adaptive"}), "it may begin a turn without reasoning");
    assert_eq!(adaptive["output_config"], json!({"effort": "low"}));
    assert_eq!(adaptive["temperature"], Value::Null);
    let off = body_of(&request(in_the_middle(state())), &new().with_thinking(Thinking::Off));
    assert_eq!(off["thinking"], json!({"type": "disabled"}));
    assert!(!off.to_string().contains("c2ln"));
    let default = body_of(&request(in_the_middle(state())), &new());
    assert_eq!(default["thinking"], Value::Null);
    assert!(default.to_string().contains("c2ln"), "a model that reasons unasked wants it back, too");
    let older = body_of(
        &ModelRequest::new(vec![Message::user("x")], 9_000),
        &Settings::new("claude-sonnet-4-5").with_effort(Effort::Medium),
    );
    assert_eq!(older["thinking"], json!({"type": "enabled", "budget_tokens": 8_192}));
    assert_eq!(older["output_config"], Value::Null);
}

#[test]
fn the_ends_of_what_is_cached_are_marked() {
    let messages = vec![
        Message::system("One."),
        Message::system("Two."),
        Message::user("x"),
        Message::assistant("y"),
        Message::user("z"),
        Message::user("last"),
    ];
    for (ttl, text) in [(CacheTtl::FiveMinutes, "5m"), (CacheTtl::OneHour, "1h")] {
        let request = ModelRequest::new(messages.clone(), 9).with_tools(tools());
        let body = body_of(&request, &settings().with_cache(Some(ttl)));
        let mark = json!({"type": "ephemeral", "ttl": text});
        assert_eq!(body.to_string().matches("cache_control").count(), 3);
        assert_eq!(body["tools"][1]["cache_control"], mark);
        assert_eq!(body["system"][1]["cache_control"], mark);
        assert_eq!(body["messages"][2]["content"][1]["cache_control"], mark);
    }
    let off = body_of(&ModelRequest::new(messages, 9).with_tools(tools()), &settings());
    assert!(!off.to_string().contains("cache_control"));
}

#[test]
fn a_schema_goes_where_the_model_takes_it() {
    let closed = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false});
    let open = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}});
    let ask = |schema: &Value, settings: &Settings| {
        let request = ModelRequest::new(vec![Message::system("Be brief."), Message::user("x")], 9);
        body_of(&request.with_output_schema(Some(Arc::new(schema.clone()))), settings)
    };
    let native = ask(&closed, &settings());
    assert_eq!(native["output_config"], json!({"format": {"type": "json_schema", "schema": closed}}));
    assert_eq!(native["system"].as_array().unwrap().len(), 1);
    for (schema, settings) in [
        (&open, settings()),
        (&closed, Settings::new("claude-3-5-haiku-20241022")),
        (&closed, Settings::new("somebody-elses")),
        (&closed, settings().with_native_schema(false)),
    ] {
        let instructed = ask(schema, &settings.with_cache(Some(CacheTtl::FiveMinutes)));
        assert_eq!(instructed["output_config"], Value::Null);
        let system = instructed["system"].as_array().unwrap();
        assert_eq!(system.len(), 2);
        assert!(system[1]["text"].as_str().unwrap().ends_with(&loomflow_core::canonical_json(schema)));
        assert!(system[1]["cache_control"].is_object(), "the mark is at the end of the instructions");
    }
    let both = ask(&closed, &Settings::new("claude-opus-4-5").with_effort(Effort::High));
    assert_eq!(both["output_config"]["effort"], "high");
    assert!(both["output_config"]["format"].is_object());
}

#[test]
fn the_remaining_settings_are_sent() {
    let settings = settings()
        .with_stream(false)
        .with_service_tier(ServiceTier::StandardOnly)
        .with_temperature(0.25)
        .with_extra("metadata", json!({"user_id": "u"}))
        .with_extra("top_k", json!(5));
    let body = body_of(&ModelRequest::new(vec![Message::user("x")], 9), &settings);
    assert_eq!(body["stream"], false);
    assert_eq!(body["service_tier"], "standard_only");
    assert_eq!(body["temperature"], 0.25);
    assert_eq!((&body["metadata"], &body["top_k"]), (&json!({"user_id": "u"}), &json!(5)));
}

/// The API's rules, one after the other.
fn check(body: &Value) {
    let turns = body["messages"].as_array().unwrap();
    assert!(!turns.is_empty());
    let mut ids = HashSet::new();
    for (at, turn) in turns.iter().enumerate() {
        let is_user = at % 2 == 0;
        assert_eq!(
            turn["role"],
            if is_user { "user" } else { "assistant" },
            "roles take turns, and the user begins"
        );
        let blocks = turn["content"].as_array().unwrap();
        assert!(!blocks.is_empty());
        let mut asked = HashSet::new();
        for (place, block) in blocks.iter().enumerate() {
            match block["type"].as_str().unwrap() {
                "text" => assert!(!block["text"].as_str().unwrap().trim().is_empty()),
                "image" => assert!(is_user),
                "tool_use" => {
                    assert!(!is_user);
                    let fit = |text: &Value, max| {
                        let text = text.as_str().unwrap();
                        let ok = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                        assert!(!text.is_empty() && text.len() <= max && text.chars().all(ok), "{text}");
                    };
                    fit(&block["id"], usize::MAX);
                    fit(&block["name"], 64);
                    assert!(block["input"].is_object());
                    assert!(ids.insert(block["id"].clone()), "an id is used twice");
                    asked.insert(&block["id"]);
                }
                "tool_result" => {
                    assert!(is_user && at > 0);
                    assert!(
                        blocks[..place].iter().all(|b| b["type"] == "tool_result"),
                        "outcomes come first"
                    );
                }
                "thinking" | "redacted_thinking" => {
                    assert!(!is_user && block["cache_control"].is_null());
                    let begun =
                        blocks[..place].iter().all(|b| b["type"].as_str().unwrap().contains("thinking"));
                    assert!(begun, "reasoning comes first");
                }
                other => panic!("{other}"),
            }
        }
        if asked.is_empty() {
            if let Some(next) = turns.get(at + 1) {
                let stray = next["content"].as_array().unwrap().iter().any(|b| b["type"] == "tool_result");
                assert!(!stray || is_user, "an outcome that nobody asked for");
            }
            continue;
        }
        let next = turns.get(at + 1).expect("calls are answered")["content"].as_array().unwrap();
        let answers: Vec<_> =
            next.iter().filter(|b| b["type"] == "tool_result").map(|b| &b["tool_use_id"]).collect();
        assert_eq!(answers.len(), asked.len());
        assert_eq!(answers.into_iter().collect::<HashSet<_>>(), asked);
    }
    check_reasoning(body, turns);
    assert!(body.to_string().matches("\"cache_control\"").count() <= 4);
}

fn check_reasoning(body: &Value, turns: &[Value]) {
    let Some(budget) = body["thinking"]["budget_tokens"].as_u64() else { return };
    assert!(budget >= 1_024 && budget < body["max_tokens"].as_u64().unwrap());
    assert!(body["temperature"].is_null());
    let answers = turns.last().unwrap()["content"][0]["type"] == "tool_result";
    if answers {
        let begins = turns[turns.len() - 2]["content"][0]["type"].as_str().unwrap();
        assert!(begins.contains("thinking"), "a turn in the middle of its calls begins with reasoning");
    }
}

/// What was said, block by block, without the answers that were made up.
fn said(body: &Value) -> Vec<Value> {
    let turns = body["messages"].as_array().unwrap().iter();
    let blocks = turns.flat_map(|turn| turn["content"].as_array().unwrap().clone());
    blocks.filter(|block| block["is_error"] != true).collect()
}

fn any_message() -> impl Strategy<Value = Message> {
    let text = || prop_oneof![Just(""), Just(" \n"), Just("a"), Just("b")];
    let id = || prop_oneof![Just("a"), Just("a#1"), Just("a_1"), Just(""), Just("ü")];
    let a_call = (id(), prop_oneof![Just("{}"), Just(""), Just("{\"n\":"), Just("[]"), Just("{\"n\":1}")])
        .prop_map(|(id, arguments)| call(id, arguments));
    let any_state = prop_oneof![Just(None), Just(state()), Just(Some("{}".into()))];
    prop_oneof![
        1 => text().prop_map(Message::system),
        2 => text().prop_map(Message::user),
        4 => (text(), prop::collection::vec(a_call, 0..3), any_state).prop_map(|(text, calls, state)| {
            let said = if calls.is_empty() { Message::assistant(text) } else { Message::assistant_calls(text, calls) };
            said.with_provider_state(state)
        }),
        6 => (id(), text()).prop_map(|(id, text)| Message::tool(id, text)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn any_conversation_is_one_that_the_api_takes(
        messages in prop::collection::vec(any_message(), 0..16),
        max in prop_oneof![Just(500_u64), Just(5_000)],
        thinking in prop_oneof![Just(Thinking::ModelDefault), Just(Thinking::Off), Just(Thinking::Budget(1_024))],
        cached in any::<bool>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let users: Vec<_> = messages.iter().filter(|m| m.role == loomflow_core::Role::User).map(|m| m.text.trim().to_owned())
            .filter(|text| !text.is_empty()).collect();
        let cut = cut.index(messages.len() + 1);
        let before = ModelRequest::new(messages[..cut].to_vec(), max);
        let request = ModelRequest::new(messages, max);
        let settings = settings().with_thinking(thinking);
        let with_marks = settings.clone().with_cache(cached.then_some(CacheTtl::FiveMinutes));
        let Ok(bytes) = encode(&request, &with_marks) else {
            prop_assert!(users.is_empty());
            return Ok(());
        };
        check(&serde_json::from_slice(&bytes).unwrap());
        let whole = body_of(&request, &settings);
        let told: Vec<_> = whole["messages"].as_array().unwrap().iter().filter(|turn| turn["role"] == "user")
            .flat_map(|turn| turn["content"].as_array().unwrap().clone())
            .filter_map(|block| block["text"].as_str().map(str::to_owned))
            .filter(|text| !text.starts_with('(')).collect();
        prop_assert_eq!(told, users, "whatever the user said is said, in its order");
        if thinking == Thinking::ModelDefault && let Ok(before) = encode(&before, &settings) {
            let before = said(&serde_json::from_slice(&before).unwrap());
            prop_assert_eq!(&said(&whole)[..before.len()], &before[..], "what follows changes nothing before it");
        }
    }
}
