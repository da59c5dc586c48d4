//! The codec against recorded replies, whole and cut at every byte, and against replies that nobody should send.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use loomflow_core::{
    Delta, Done, Effect, Error, ErrorKind, Message, ModelRequest, Result, StopReason, ToolCall, ToolSpec,
    Usage,
};
use loomflow_model_anthropic::codec::{PlainDecoder, StreamDecoder};
use loomflow_support_model::Decode;
use proptest::prelude::*;
use serde_json::{Value, json};

const TEXT: &[u8] = include_bytes!("recorded/text.sse");
const PARALLEL_TOOLS: &[u8] = include_bytes!("recorded/parallel_tools.sse");
const THINKING: &[u8] = include_bytes!("recorded/thinking.sse");
const REFUSAL: &[u8] = include_bytes!("recorded/refusal.sse");
const OVERLOADED: &[u8] = include_bytes!("recorded/overloaded.sse");
const CACHE: &[u8] = include_bytes!("recorded/cache.sse");
const SERVER_TOOL: &[u8] = include_bytes!("recorded/server_tool.sse");
const GATEWAY: &[u8] = include_bytes!("recorded/gateway.sse");
const CUT_CALL: &[u8] = include_bytes!("recorded/cut_call.sse");
const SHORT: &[u8] = include_bytes!("recorded/short.sse");
const ALL: [&[u8]; 10] =
    [TEXT, PARALLEL_TOOLS, THINKING, REFUSAL, OVERLOADED, CACHE, SERVER_TOOL, GATEWAY, CUT_CALL, SHORT];

/// A reply, put together.
#[derive(Debug, Default, PartialEq)]
struct Reply {
    text: String,
    reasoning: String,
    arguments: String,
    calls: Vec<ToolCall>,
    state: Option<Arc<str>>,
    done: Option<Done>,
    error: Option<(ErrorKind, String)>,
}

impl Reply {
    fn add(&mut self, deltas: Vec<Delta>) {
        for delta in deltas {
            assert!(self.done.is_none(), "something follows the end");
            match delta {
                Delta::Text(piece) => self.text.push_str(&piece),
                Delta::Reasoning(piece) => self.reasoning.push_str(&piece),
                Delta::Arguments(piece) => self.arguments.push_str(&piece),
                Delta::ToolCall(call) => self.calls.push(call),
                Delta::ProviderState(state) => assert!(self.state.replace(state).is_none()),
                Delta::Done(done) => self.done = Some(done),
                other => panic!("{other:?}"),
            }
        }
    }

    fn done(&self) -> &Done {
        self.done.as_ref().unwrap_or_else(|| panic!("no end: {self:?}"))
    }

    fn usage(&self) -> Option<Usage> {
        self.done().usage
    }
}

fn request() -> ModelRequest {
    let tool = |name| {
        let schema = json!({"type": "object"});
        Arc::new(ToolSpec::new(name, "", Effect::Read, schema).unwrap())
    };
    ModelRequest::new(vec![Message::user("hi")], 100)
        .with_tools([tool("weather.lookup"), tool("clock")].into())
}

/// Feeds the pieces as a client does: until the end was seen, or the body is over.
fn decode(mut decoder: impl Decode, pieces: &[&[u8]]) -> Reply {
    let mut reply = Reply::default();
    let mut run = || -> Result<()> {
        for piece in pieces {
            let mut out = Vec::new();
            let pushed = decoder.push(piece, &mut out);
            reply.add(out);
            pushed?;
            if decoder.ended() {
                break;
            }
        }
        let mut out = Vec::new();
        let finished = decoder.finish(&mut out);
        reply.add(out);
        finished
    };
    let error: Option<Error> = run().err();
    reply.error = error.map(|error| (error.kind(), error.to_string()));
    reply
}

fn streamed(pieces: &[&[u8]]) -> Reply {
    decode(StreamDecoder::new(&request()), pieces)
}

fn plain(body: &[u8]) -> Reply {
    decode(PlainDecoder::new(&request()), &[body])
}

fn events(events: &[Value]) -> Reply {
    let text: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    streamed(&[text.as_bytes()])
}

fn ended(reason: &str) -> [Value; 2] {
    [
        json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 9}}),
        json!({"type": "message_stop"}),
    ]
}

fn start(index: u64, block: &Value) -> Value {
    json!({"type": "content_block_start", "index": index, "content_block": block})
}

fn piece(index: u64, delta: &Value) -> Value {
    json!({"type": "content_block_delta", "index": index, "delta": delta})
}

fn arguments(index: u64, text: &str) -> Value {
    piece(index, &json!({"type": "input_json_delta", "partial_json": text}))
}

fn call(id: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": "clock", "input": {}})
}

#[test]
fn text_is_decoded() {
    let reply = streamed(&[TEXT]);
    assert_eq!(reply.text, "Grüß dich, 世界! \"quoted\"\n");
    assert_eq!(*reply.done(), Done::new(Usage::new(25, 12), StopReason::End));
}

#[test]
fn parallel_calls_keep_their_arguments_and_get_their_names_back() {
    let reply = streamed(&[PARALLEL_TOOLS]);
    assert_eq!(reply.text, "I'll look both up.");
    assert_eq!(
        reply.calls,
        [
            ToolCall::new(
                "toolu_01T1x1fJ34qAmk2tNTrN7Up6",
                "weather.lookup",
                r#"{"city": "San Francisco", "unit": "é\"C"}"#
            ),
            ToolCall::new("toolu_02A9", "clock", "{}"),
        ]
    );
    assert_eq!(reply.arguments, &*reply.calls[0].arguments);
    assert_eq!(*reply.done(), Done::new(Usage::new(472, 89), StopReason::ToolUse));
    assert_eq!(reply.state, None);
}

#[test]
fn reasoning_is_kept_for_the_provider() {
    let reply = streamed(&[THINKING]);
    assert_eq!(reply.reasoning, "Let me think: 27 * 453 is 12231.");
    assert_eq!(reply.usage(), Some(Usage::new(300, 140).with_reasoning(90)));
    let state: Value = serde_json::from_str(reply.state.as_deref().unwrap()).unwrap();
    assert_eq!(
        state,
        json!({"provider": "anthropic", "blocks": [
            {"type": "thinking", "thinking": "Let me think: 27 * 453 is 12231.",
             "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds"},
            {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIwxtE3rAFBa8cr3qpP"},
        ]})
    );
}

#[test]
fn a_refusal_is_a_stop_reason() {
    let reply = streamed(&[REFUSAL]);
    assert_eq!((reply.text.as_str(), &reply.done().stop), ("I could", &StopReason::Refusal));
}

#[test]
fn an_error_within_the_stream_is_typed() {
    let reply = streamed(&[OVERLOADED]);
    assert_eq!(reply.text, "Half an ans");
    assert_eq!(reply.done, None);
    let (kind, text) = reply.error.unwrap();
    assert_eq!(kind, ErrorKind::Overloaded);
    assert!(text.contains("req_011CPnBw"), "{text}");
}

#[test]
fn cached_tokens_are_counted_once() {
    assert_eq!(streamed(&[CACHE]).usage(), Some(Usage::new(2_611, 4).with_cache(2_048, 556)));
}

#[test]
fn what_a_server_does_by_itself_is_skipped() {
    let reply = streamed(&[SERVER_TOOL]);
    assert_eq!((reply.text.as_str(), reply.calls.len(), reply.arguments.as_str()), ("Found.", 0, ""));
    assert_eq!(reply.done().stop, StopReason::Other("pause_turn".to_owned()));
}

#[test]
fn a_gateway_that_leaves_everything_out_is_understood() {
    let reply = streamed(&[GATEWAY]);
    let calls = [r#"{"zone":"UTC"}"#, r#"{"zone":"CET"}"#].map(|a| ToolCall::new("call_1", "clock", a));
    assert_eq!(reply.calls, calls);
    assert_eq!(*reply.done(), Done::without_usage(StopReason::ToolUse));
}

#[test]
fn a_call_that_was_cut_off_is_not_made() {
    let reply = streamed(&[CUT_CALL]);
    assert_eq!(reply.calls, [ToolCall::new("toolu_1", "clock", r#"{"zone":"UTC"}"#)]);
    assert_eq!(reply.done().stop, StopReason::MaxTokens);
    let empty = events(&[vec![start(0, &call("a"))], ended("max_tokens").to_vec()].concat());
    assert_eq!(empty.calls, [], "nor is one whose arguments did not begin");
    let broken =
        events(&[vec![start(0, &call("a")), arguments(0, "{\"x")], ended("tool_use").to_vec()].concat());
    assert_eq!(&*broken.calls[0].arguments, "{\"x", "what the model wrote to its end is the model's");
}

#[test]
fn every_split_decodes_to_the_same_reply() {
    for stream in ALL {
        let whole = streamed(&[stream]);
        for at in 0..=stream.len() {
            assert_eq!(streamed(&[&stream[..at], &stream[at..]]), whole, "split at {at}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(streamed(&bytes), whole, "byte by byte");
    }
}

#[test]
fn every_pair_of_splits_of_a_short_stream_decodes_to_the_same_reply() {
    let whole = streamed(&[SHORT]);
    assert_eq!(whole.calls, [ToolCall::new("é", "clock", "{}")]);
    for a in 0..=SHORT.len() {
        for b in a..=SHORT.len() {
            assert_eq!(streamed(&[&SHORT[..a], &SHORT[a..b], &SHORT[b..]]), whole, "split at {a} and {b}");
        }
    }
}

/// A stream that is cut at any byte is whole, or is known not to be: never a reply that lost its end in silence.
#[test]
fn every_cut_is_an_end_or_an_error() {
    for stream in ALL {
        let whole = streamed(&[stream]);
        let told = stream.windows(13).rposition(|window| window == b"\"stop_reason\"".as_slice());
        for at in 0..stream.len() {
            let cut = streamed(&[&stream[..at]]);
            match &cut.error {
                Some((ErrorKind::Truncated, _)) => assert!(cut.calls.is_empty() && cut.state.is_none()),
                Some(_) => assert_eq!(cut, whole, "the provider's own error"),
                None => {
                    assert!(told.is_none_or(|told| at > told), "cut at {at}, and nothing was noticed");
                    assert_eq!(cut, whole);
                }
            }
        }
    }
}

#[test]
fn bytes_behind_the_end_do_not_matter() {
    let mut longer = TEXT.to_vec();
    longer.extend(b"data: \xff\n\ndata: {\"type\":\"error\"}\n\n");
    assert_eq!(streamed(&[&longer]), streamed(&[TEXT]));
}

#[test]
fn a_plain_body_decodes_to_what_its_stream_does() {
    let body = |content: Value, stop: &str, usage: Value| {
        let message = json!({"type": "message", "role": "assistant", "content": content, "stop_reason": stop, "usage": usage});
        plain(message.to_string().as_bytes())
    };
    let text = body(
        json!([{"type": "text", "text": "Grüß dich, 世界! \"quoted\"\n"}]),
        "end_turn",
        json!({"input_tokens": 25, "output_tokens": 12}),
    );
    assert_eq!(text, streamed(&[TEXT]));
    let thinking = body(
        json!([
            {"type": "thinking", "thinking": "Let me think: 27 * 453 is 12231.",
             "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds"},
            {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIwxtE3rAFBa8cr3qpP"},
            {"type": "text", "text": "12231"},
            {"type": "tool_use", "id": "toolu_3", "name": "clock", "input": {"zone": "UTC"}},
        ]),
        "tool_use",
        json!({"input_tokens": 300, "output_tokens": 140, "output_tokens_details": {"thinking_tokens": 90}}),
    );
    assert_eq!(thinking, streamed(&[THINKING]));
    let tools = body(
        json!([
            {"type": "text", "text": "I'll look both up."},
            {"type": "tool_use", "id": "toolu_01T1x1fJ34qAmk2tNTrN7Up6", "name": "weather__lookup",
             "input": {"city": "San Francisco", "unit": "é\"C"}},
            {"type": "tool_use", "id": "toolu_02A9", "name": "clock", "input": {}},
        ]),
        "tool_use",
        json!({"input_tokens": 472, "output_tokens": 89}),
    );
    let stream = streamed(&[PARALLEL_TOOLS]);
    assert_eq!(tools.done, stream.done);
    for (plain, streamed) in tools.calls.iter().zip(&stream.calls) {
        assert_eq!((&plain.id, &plain.name), (&streamed.id, &streamed.name));
        assert_eq!(plain.parse_arguments().unwrap(), streamed.parse_arguments().unwrap());
    }
    assert_eq!(tools.calls.len(), 2);
}

#[test]
fn a_plain_body_that_is_none_is_a_typed_error() {
    for (body, kind) in [
        (&b""[..], ErrorKind::Truncated),
        (br#"{"type":"message","content":[{"type":"te"#, ErrorKind::Truncated),
        (b"<html><body>502 Bad Gateway</body></html>", ErrorKind::Transport),
        (br#"{"type":"message"}"#, ErrorKind::Transport),
        (br#"{"content":[{"type":"text","text":7}]}"#, ErrorKind::Transport),
        (b"\xff\xfe", ErrorKind::Transport),
        (format!(r#"{{"content":[{{"type":"text"}}{}]}}"#, r#",{"type":"text"}"#.repeat(5_000)).as_bytes(), ErrorKind::Transport),
        (br#"{"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}"#, ErrorKind::RateLimited),
        (
            br#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 > 8"}}"#,
            ErrorKind::ContextTooLong,
        ),
    ] {
        let reply = plain(body);
        let (got, text) = reply.error.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(body)));
        assert_eq!(got, kind, "{text}");
        assert_eq!(reply.done, None);
    }
    let mut decoder = PlainDecoder::new(&request());
    let megabyte = vec![b' '; 1 << 20];
    let refused = (0..100).find_map(|_| decoder.push(&megabyte, &mut Vec::new()).err());
    assert_eq!(refused.map(|error| error.kind()), Some(ErrorKind::Transport));
}

#[test]
fn a_used_index_opens_a_call_of_its_own() {
    let reply = events(
        &[
            vec![
                start(0, &call("a")),
                arguments(0, "{\"n\":1}"),
                start(0, &call("b")),
                arguments(0, "{\"n\":2}"),
            ],
            ended("tool_use").to_vec(),
        ]
        .concat(),
    );
    let calls = [("a", "{\"n\":1}"), ("b", "{\"n\":2}")].map(|(id, a)| ToolCall::new(id, "clock", a));
    assert_eq!(reply.calls, calls);
}

#[test]
fn pieces_replace_arguments_that_were_given_whole() {
    let whole = json!({"type": "tool_use", "id": "a", "name": "clock", "input": {"n": 1}});
    let reply = events(
        &[vec![start(0, &whole), arguments(0, "{\"n\""), arguments(0, ":2}")], ended("tool_use").to_vec()]
            .concat(),
    );
    assert_eq!(reply.calls, [ToolCall::new("a", "clock", "{\"n\":2}")]);
}

#[test]
fn an_absurd_index_is_only_a_number() {
    let reply = events(
        &[vec![start(40_000_000, &call("a")), arguments(40_000_000, "{}")], ended("tool_use").to_vec()]
            .concat(),
    );
    assert_eq!(reply.calls, [ToolCall::new("a", "clock", "{}")]);
    let huge = events(&[start(u64::MAX, &call("a"))]);
    assert_eq!(huge.error.unwrap().0, ErrorKind::Truncated);
}

#[test]
fn interleaved_blocks_stay_apart() {
    let reply = events(
        &[
            vec![
                start(5, &call("a")),
                start(2, &call("b")),
                arguments(5, "{\"n\":"),
                arguments(2, "{\"n\":2"),
                piece(9, &json!({"type": "text_delta", "text": "said anyway"})),
                arguments(5, "1}"),
                arguments(2, "}"),
            ],
            ended("tool_use").to_vec(),
        ]
        .concat(),
    );
    let calls = [("a", "{\"n\":1}"), ("b", "{\"n\":2}")].map(|(id, a)| ToolCall::new(id, "clock", a));
    assert_eq!(reply.calls, calls);
    assert_eq!(reply.text, "said anyway");
}

#[test]
fn what_cannot_be_understood_is_refused() {
    let text = json!({"type": "text", "text": ""});
    let nameless = json!({"type": "tool_use", "id": "a", "input": {}});
    for (events, what) in [
        (vec![arguments(0, "{}")], "arguments outside a tool call"),
        (vec![start(0, &text), arguments(0, "{}")], "arguments outside a tool call"),
        (
            vec![start(0, &call("a")), json!({"type": "content_block_stop", "index": 0}), arguments(0, "{}")],
            "arguments outside a tool call",
        ),
        (vec![start(0, &nameless)], "without a name"),
        (vec![json!({"type": "content_block_start", "index": 0})], "not as the Messages API has it"),
        (vec![piece(0, &json!({"type": "text_delta", "text": 7}))], "not as the Messages API has it"),
        (
            vec![json!({"type": "content_block_delta", "index": -1, "delta": {"type": "text_delta"}})],
            "not as the",
        ),
        ((0..129).map(|i| start(i, &call("a"))).collect(), "more than 128 tool calls"),
        ((0..300).map(|i| start(i, &text)).collect(), "256 blocks open"),
    ] {
        let stream: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
        let (kind, message) = streamed(&[stream.as_bytes()]).error.unwrap();
        assert_eq!(kind, ErrorKind::Transport, "{message}");
        assert!(message.contains(what), "{message} / {what}");
    }
    for stream in ["data: <html>\n\n", "data: {\"type\":\n\n", "data: \u{0}\n\n"] {
        let (kind, message) = streamed(&[stream.as_bytes()]).error.unwrap();
        assert_eq!(kind, ErrorKind::Transport);
        assert!(message.contains("not JSON"), "{message}");
    }
    assert_eq!(streamed(&[b"<html>502</html>\n\n"]).error.unwrap().0, ErrorKind::Truncated);
}

#[test]
fn a_parser_does_not_repeat_what_it_read() {
    let secret = "sk-ant-".repeat(100);
    let event = piece(0, &json!({"type": "text_delta", "text": {"x": secret}}));
    let (_, message) = events(&[event]).error.unwrap();
    assert!(!message.contains("sk-ant-"), "{message}");
}

#[test]
fn arguments_and_what_is_kept_are_bounded() {
    let chunk = "x".repeat(64 << 10);
    let push = |block: Value, delta: Value| {
        let mut decoder = StreamDecoder::new(&request());
        let mut out = Vec::new();
        let begin = format!("data: {}\n\n", start(0, &block));
        decoder.push(begin.as_bytes(), &mut out).unwrap();
        let event = format!("data: {}\n\n", piece(0, &delta));
        (1..1_000_usize).find_map(|n| {
            out.clear();
            decoder.push(event.as_bytes(), &mut out).err().map(|error| (n * chunk.len(), error.kind()))
        })
    };
    let call_bytes = push(call("a"), json!({"type": "input_json_delta", "partial_json": chunk}));
    assert_eq!(call_bytes, Some(((1 << 20) + chunk.len(), ErrorKind::Transport)));
    let thought = push(json!({"type": "thinking"}), json!({"type": "thinking_delta", "thinking": chunk}));
    assert!(thought.is_some_and(|(bytes, _)| bytes <= 9 << 20), "{thought:?}");
    let said = push(json!({"type": "text"}), json!({"type": "text_delta", "text": chunk}));
    assert_eq!(said, None, "text is handed on, not kept");
}

#[test]
fn unsigned_reasoning_is_not_handed_back() {
    let thinking = json!({"type": "thinking", "thinking": "hm", "signature": ""});
    let reply = events(&[vec![start(0, &thinking)], ended("end_turn").to_vec()].concat());
    assert_eq!((reply.reasoning.as_str(), reply.state), ("hm", None));
}

#[test]
fn an_end_without_a_reason_is_an_end() {
    let stop = json!({"type": "message_stop"});
    assert_eq!(events(std::slice::from_ref(&stop)).done().stop, StopReason::Other("none".to_owned()));
    assert_eq!(events(&[start(0, &call("a")), stop]).done().stop, StopReason::ToolUse);
}

/// Events as a server in disorder might send them.
fn any_event() -> impl Strategy<Value = Value> {
    let index = prop_oneof![(0_u64..4).prop_map(|i| json!(i)), Just(json!(40_000_000)), Just(Value::Null)];
    let block = prop_oneof![
        Just(json!({"type": "text", "text": "a"})),
        Just(call("x")),
        Just(json!({"type": "tool_use", "name": "clock", "input": {"a": 1}})),
        Just(json!({"type": "thinking", "thinking": "t", "signature": "s"})),
        Just(json!({"type": "redacted_thinking", "data": "d"})),
        Just(json!({"type": "odd", "input": 1})),
    ];
    let delta = prop_oneof![
        "[a-z{}\"]{0,4}".prop_map(|text| json!({"type": "text_delta", "text": text})),
        "[a-z{}\":]{0,4}".prop_map(|text| json!({"type": "input_json_delta", "partial_json": text})),
        Just(json!({"type": "thinking_delta", "thinking": "t"})),
        Just(json!({"type": "signature_delta", "signature": "s"})),
        Just(json!({"type": "odd_delta"})),
    ];
    prop_oneof![
        3 => (index.clone(), block)
            .prop_map(|(i, block)| json!({"type": "content_block_start", "index": i, "content_block": block})),
        6 => (index.clone(), delta)
            .prop_map(|(i, delta)| json!({"type": "content_block_delta", "index": i, "delta": delta})),
        2 => index.prop_map(|i| json!({"type": "content_block_stop", "index": i})),
        1 => prop_oneof![Just("end_turn"), Just("tool_use"), Just("max_tokens")].prop_map(|stop| ended(stop)[0].clone()),
        1 => Just(json!({"type": "message_start", "message": {"usage": {"input_tokens": 3}}})),
        1 => Just(json!({"type": "ping"})),
        1 => Just(json!({"type": "message_stop"})),
    ]
}

proptest! {
    #[test]
    fn any_events_at_any_split_give_one_reply(
        events in prop::collection::vec(any_event(), 0..40),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let text: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
        let bytes = text.as_bytes();
        let whole = streamed(&[bytes]);
        prop_assert_eq!(whole.done.is_some(), whole.error.is_none());
        prop_assert!(whole.calls.len() <= 128);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
        prop_assert_eq!(streamed(&pieces), whole);
    }

    #[test]
    fn any_bytes_are_an_end_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let reply = streamed(&[&bytes]);
        prop_assert_eq!(reply.done.is_some(), reply.error.is_none());
        let reply = plain(&bytes);
        prop_assert_eq!(reply.done.is_some(), reply.error.is_none());
    }
}
