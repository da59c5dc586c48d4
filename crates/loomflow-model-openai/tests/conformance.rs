//! The codec over recorded replies: what each says, and that it says so however it is cut.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use loomflow_core::{Delta, Done, Effect, ErrorKind, Result, StopReason, ToolCall, ToolSpec, Usage};
use loomflow_model_openai::codec::{PlainDecoder, StreamDecoder};
use loomflow_support_model::Decode;
use serde_json::json;

static TOOLS: LazyLock<[Arc<ToolSpec>; 2]> = LazyLock::new(|| {
    ["get_weather", "billing.refund"]
        .map(|name| Arc::new(ToolSpec::new(name, "", Effect::Read, json!({"type": "object"})).unwrap()))
});

fn recorded(name: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recorded").join(name)).unwrap()
}

fn all_recorded(kind: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
    let names =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(kind)).collect();
    names.sort_unstable();
    names.into_iter().map(|name| (name.clone(), recorded(&name))).collect()
}

/// A reply, its adjacent pieces joined, and the error that ended it.
#[derive(Debug, Default, PartialEq)]
struct Reply {
    text: String,
    reasoning: String,
    arguments: String,
    calls: Vec<ToolCall>,
    state: Option<String>,
    done: Option<Done>,
    error: Option<(ErrorKind, String)>,
}

impl Reply {
    fn done(&self) -> &Done {
        self.done.as_ref().unwrap_or_else(|| panic!("no end: {self:?}"))
    }

    fn usage(&self) -> Option<Usage> {
        self.done().usage
    }

    /// The same reply, as it is when it comes in one body.
    fn in_one_body(mut self) -> Self {
        self.arguments = self.calls.iter().map(|call| &*call.arguments).collect();
        self
    }
}

fn decode(decoder: &mut dyn Decode, pieces: &[&[u8]]) -> Reply {
    let (mut reply, mut out) = (Reply::default(), Vec::new());
    let mut read = || -> Result<()> {
        for piece in pieces {
            decoder.push(piece, &mut out)?;
            if decoder.ended() {
                break;
            }
        }
        decoder.finish(&mut out)
    };
    reply.error = read().err().map(|error| (error.kind(), error.message().to_owned()));
    for delta in out {
        assert!(reply.done.is_none(), "something follows the end: {delta:?}");
        match delta {
            Delta::Text(text) => reply.text.push_str(&text),
            Delta::Reasoning(text) => reply.reasoning.push_str(&text),
            Delta::Arguments(text) => reply.arguments.push_str(&text),
            Delta::ToolCall(call) => reply.calls.push(call),
            Delta::ProviderState(state) => reply.state = Some(state.to_string()),
            Delta::Done(done) => reply.done = Some(done),
            other => panic!("{other:?}"),
        }
    }
    reply
}

fn streamed(pieces: &[&[u8]]) -> Reply {
    decode(&mut StreamDecoder::new(&*TOOLS), pieces)
}

fn stream(name: &str) -> Reply {
    streamed(&[&recorded(name)])
}

fn plain_of(body: &str) -> Reply {
    decode(&mut PlainDecoder::new(&*TOOLS), &[body.as_bytes()])
}

fn plain(name: &str) -> Reply {
    decode(&mut PlainDecoder::new(&*TOOLS), &[&recorded(name)])
}

#[test]
fn every_split_of_every_recorded_stream_is_the_same_reply() {
    let all = all_recorded(".sse");
    assert!(all.len() >= 12);
    for (name, bytes) in all {
        let whole = streamed(&[&bytes]);
        for at in 0..=bytes.len() {
            assert_eq!(streamed(&[&bytes[..at], &bytes[at..]]), whole, "{name} split at {at}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(streamed(&single), whole, "{name} byte by byte");
        if bytes.len() > 400 {
            continue;
        }
        for a in 0..=bytes.len() {
            for b in a..=bytes.len() {
                let split = streamed(&[&bytes[..a], &bytes[a..b], &bytes[b..]]);
                assert_eq!(split, whole, "{name} split at {a} and {b}");
            }
        }
    }
}

#[test]
fn a_stream_cut_anywhere_is_never_taken_for_whole_before_its_finish_reason() {
    for (name, bytes) in all_recorded(".sse") {
        let whole = streamed(&[&bytes]);
        let finish = bytes.windows(17).position(|window| window == b"\"finish_reason\":\"");
        for at in 0..bytes.len() {
            let cut = streamed(&[&bytes[..at]]);
            match cut.error {
                Some((ErrorKind::Truncated, _)) => {
                    assert!(cut.done.is_none() && cut.calls.is_empty(), "{name} at {at}")
                }
                Some(_) => assert!(whole.error.is_some(), "{name} at {at}: {cut:?}"),
                None => {
                    assert!(finish.is_some_and(|finish| at > finish), "{name} at {at}");
                    assert_eq!((&cut.text, &cut.calls), (&whole.text, &whole.calls), "{name} at {at}");
                    assert!(cut.usage().is_none() || cut.usage() == whole.usage(), "{name} at {at}");
                }
            }
        }
    }
}

#[test]
fn every_split_of_every_recorded_body_is_the_same_reply() {
    for (name, bytes) in all_recorded(".json") {
        let whole = plain(&name);
        assert!(whole.error.is_none(), "{name}: {whole:?}");
        for at in 0..=bytes.len() {
            let split = decode(&mut PlainDecoder::new(&*TOOLS), &[&bytes[..at], &bytes[at..]]);
            assert_eq!(split, whole, "{name} split at {at}");
        }
        for at in 0..bytes.len() - 2 {
            let cut = decode(&mut PlainDecoder::new(&*TOOLS), &[&bytes[..at]]);
            assert_eq!(cut.error.unwrap().0, ErrorKind::Truncated, "{name} cut at {at}");
        }
    }
}

#[test]
fn streamed_and_plain_give_one_reply() {
    for name in ["text", "parallel_tools", "reasoning_tools", "refusal"] {
        let streamed = stream(&format!("{name}.sse"));
        assert_eq!(streamed.in_one_body(), plain(&format!("{name}.json")), "{name}");
    }
}

#[test]
fn text_is_read_with_its_usage() {
    let reply = stream("text.sse");
    assert_eq!(reply.text, "Grüße, 日本 😀!\n```json\n{\"a\": \"\\u00e9\"}\n```");
    assert_eq!(reply.done(), &Done::new(Usage::new(1_234, 17).with_cache(1_024, 0), StopReason::End));
}

#[test]
fn parallel_calls_are_read_under_their_own_names() {
    let reply = stream("parallel_tools.sse");
    let calls = [
        ToolCall::new("call_Zk3mQ1", "get_weather", "{\"city\": \"Oslo\"}"),
        ToolCall::new("call_p0LdW8", "billing.refund", "{\"order\": 7, \"note\": \"\\\"é\\\"\"}"),
    ];
    assert_eq!(reply.calls, calls);
    assert_eq!(reply.done(), &Done::new(Usage::new(98, 46), StopReason::ToolUse));
    let two = stream("repeated_index.sse");
    assert_eq!(two.calls[0], ToolCall::new("call_1", "get_weather", "{\"city\":\"A\"}"));
    assert_eq!(two.calls[1], ToolCall::new("call_2", "billing.refund", "{\"order\":2}"));
}

#[test]
fn servers_that_mark_little_are_understood() {
    let reply = stream("no_index_no_done.sse");
    let calls = [
        ToolCall::new("call_a1", "get_weather", "{\"city\":\"Oslo\"}"),
        ToolCall::new("call_b2", "get_weather", "{\"city\":\"Bergen\"}"),
    ];
    assert_eq!(
        (reply.calls.as_slice(), reply.done()),
        (&calls[..], &Done::without_usage(StopReason::ToolUse))
    );
}

#[test]
fn filters_and_refusals_are_told_from_answers() {
    let reply = stream("azure.sse");
    assert_eq!((reply.text.as_str(), reply.done()), ("Yes.", &Done::new(Usage::new(20, 3), StopReason::End)));
    let filtered = stream("azure_filtered.sse");
    assert_eq!(filtered.text, "Step one");
    assert_eq!(filtered.done(), &Done::without_usage(StopReason::Refusal));
    let refused = stream("refusal.sse");
    assert_eq!(refused.text, "I'm sorry, I can't help with that.");
    assert_eq!(refused.done(), &Done::new(Usage::new(55, 11), StopReason::Refusal));
    assert_eq!(stream("length.sse").done(), &Done::new(Usage::new(12, 3), StopReason::MaxTokens));
}

#[test]
fn reasoning_is_counted_and_given_back_with_its_calls() {
    let reply = stream("reasoning_tools.sse");
    assert_eq!((reply.reasoning.as_str(), reply.text.as_str()), ("They want the weather in 京都.", ""));
    assert_eq!(reply.calls, [ToolCall::new("call_00_aB", "get_weather", "{\"city\":\"京都\"}")]);
    assert_eq!(reply.usage(), Some(Usage::new(310, 95).with_cache(256, 0).with_reasoning(70)));
    assert_eq!(reply.state.as_deref(), Some("{\"reasoning_content\":\"They want the weather in 京都.\"}"));
}

#[test]
fn usage_is_found_where_a_vendor_puts_it() {
    let reply = stream("groq_crlf.sse");
    assert_eq!((reply.text.as_str(), reply.usage()), ("Hello there", Some(Usage::new(36, 4))));
}

#[test]
fn errors_within_a_stream_are_typed_and_follow_its_text() {
    let reply = stream("error.sse");
    assert_eq!(reply.text, "Par");
    let (kind, message) = reply.error.unwrap();
    assert_eq!(kind, ErrorKind::Overloaded);
    assert!(message.contains("had an error while processing"), "{message}");
    for (event, kind) in [
        ("data: {\"error\":{\"code\":\"content_filter\",\"message\":\"no\"}}", ErrorKind::ContentFilter),
        ("data: {\"error\":{\"code\":429,\"message\":\"slow down\"}}", ErrorKind::RateLimited),
        ("data: {\"error\":\"broken\"}", ErrorKind::Transport),
        ("data: {\"object\":\"error\",\"message\":\"m\",\"code\":400}", ErrorKind::BadRequest),
        ("event: error\ndata: {\"message\":\"m\",\"type\":\"overloaded_error\"}", ErrorKind::Overloaded),
        ("event: error\ndata: oops", ErrorKind::Transport),
        ("data: oops", ErrorKind::Transport),
        ("data: [1,2", ErrorKind::Transport),
        ("data: {\"choices\":7}", ErrorKind::Transport),
        ("data: {\"choices\":[{\"index\":0,\"finish_reason\":\"error\"}]}", ErrorKind::Overloaded),
    ] {
        let reply = streamed(&[format!("{event}\n\ndata: [DONE]\n\n").as_bytes()]);
        assert_eq!(reply.error.as_ref().map(|(kind, _)| *kind), Some(kind), "{event}: {reply:?}");
        assert!(reply.done.is_none());
    }
}

#[test]
fn what_stands_behind_the_end_is_no_part_of_the_reply() {
    let mut bytes = recorded("text.sse");
    let whole = streamed(&[&bytes]);
    bytes.extend_from_slice(b"data: {\"error\":\"late\"}\n\ndata: \xff\n\n");
    assert_eq!(streamed(&[&bytes]), whole);
}

#[test]
fn a_call_that_was_cut_off_is_not_made_with_half_of_its_arguments_or_none() {
    let call = |index: u64, arguments: &str| {
        let function = json!({"name": "get_weather", "arguments": arguments});
        json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": index, "id": format!("c{index}"), "function": function}]}}]})
    };
    for (reason, whole) in
        [("length", 1), ("max_tokens", 1), ("model_length", 1), ("tool_calls", 2), ("stop", 2)]
    {
        for cut in ["", "{\"city\":\"Os", "  "] {
            let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]});
            let events = [call(0, "{\"city\":\"Oslo\"}"), call(1, cut), end];
            let text: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
            let reply = streamed(&[text.as_bytes()]);
            assert_eq!(reply.calls.len(), whole, "{reason} {cut:?}");
            assert_eq!(reply.done().stop == StopReason::MaxTokens, whole == 1, "{reason}");
        }
    }
    let alone = json!({"choices": [{"index": 0, "finish_reason": "length",
        "message": {"tool_calls": [{"id": "c", "function": {"name": "get_weather", "arguments": ""}}]}}]});
    let reply = plain_of(&alone.to_string());
    assert_eq!((reply.calls.len(), &reply.done().stop), (0, &StopReason::MaxTokens));
}

#[test]
fn an_answer_of_another_form_does_not_become_an_error_message_of_its_own_size() {
    let long = "x".repeat(500_000);
    for body in [json!({"choices": long}), json!({"choices": [{"delta": long, "message": long}]})] {
        let (_, message) = streamed(&[format!("data: {body}\n\n").as_bytes()]).error.unwrap();
        assert!(message.len() < 1_000, "{} bytes", message.len());
        let (_, message) = plain_of(&body.to_string()).error.unwrap();
        assert!(message.len() < 1_000, "{} bytes", message.len());
    }
}

#[test]
fn other_choices_are_not_this_reply() {
    let events = concat!(
        "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"no\"},\"finish_reason\":\"length\"}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"yes\"}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"eos\"}]}\n\n",
    );
    let reply = streamed(&[events.as_bytes()]);
    assert_eq!((reply.text.as_str(), &reply.done().stop), ("yes", &StopReason::Other("eos".to_owned())));
}

#[test]
fn usage_of_nothing_is_no_usage() {
    let with = |usage: &str| {
        streamed(&[format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"x\"}},\"finish_reason\":\"stop\"}}],\"usage\":{usage}}}\n\n"
        )
        .as_bytes()])
        .usage()
    };
    for none in [
        "null",
        "{}",
        "7",
        "{\"prompt_tokens\":0,\"completion_tokens\":0}",
        "{\"prompt_tokens\":-1,\"completion_tokens\":2}",
    ] {
        assert_eq!(with(none), None, "{none}");
    }
    assert_eq!(with("{\"prompt_tokens\":2,\"completion_tokens\":1}"), Some(Usage::new(2, 1)));
}

#[test]
fn bounds_hold() {
    let endless = format!("data: {}", "x".repeat(2 << 20));
    assert!(streamed(&[endless.as_bytes()]).error.unwrap().1.contains("larger than 1048576 bytes"));
    let entries = format!("data: {{\"choices\":[{}]}}\n\n", vec!["{}"; 100_000].join(","));
    assert_eq!(streamed(&[entries.as_bytes()]).error.unwrap().0, ErrorKind::Transport);
    let nested = format!("data: {{\"x\":{}\n\n", "[".repeat(500_000));
    assert_eq!(streamed(&[nested.as_bytes()]).error.unwrap().0, ErrorKind::Transport);
    let body = format!("{{\"choices\":[{{\"message\":{{\"content\":\"{}\"}}}}]}}", "x".repeat(9 << 20));
    assert!(plain_of(&body).error.unwrap().1.contains("larger than 8388608 bytes"));
}

#[test]
fn bodies_that_are_no_reply_are_typed_errors() {
    for (body, kind, why) in [
        ("", ErrorKind::Truncated, "ended before"),
        (" \n", ErrorKind::Truncated, "ended before"),
        ("{\"choices\":[{", ErrorKind::Truncated, "ended before"),
        ("<!doctype html><p>x", ErrorKind::Transport, "a page instead of JSON"),
        ("pong", ErrorKind::Transport, "is not JSON"),
        ("{}", ErrorKind::Transport, "without a choice"),
        ("{\"choices\":[]}", ErrorKind::Transport, "without a choice"),
        ("{\"choices\":[{\"index\":3,\"message\":{}}]}", ErrorKind::Transport, "index 0"),
        ("{\"error\":{\"message\":\"m\",\"code\":\"rate_limit_exceeded\"}}", ErrorKind::RateLimited, "m"),
        ("{\"error\":{\"message\":\"m\"}}", ErrorKind::Transport, "m"),
        ("{\"message\":\"model not found\",\"code\":404}", ErrorKind::BadRequest, "model not found"),
    ] {
        let (found, message) = plain_of(body).error.unwrap();
        assert_eq!(found, kind, "{body}: {message}");
        assert!(message.contains(why), "{body}: {message}");
    }
}

#[test]
fn a_plain_reply_may_have_parts_and_no_finish_reason() {
    let reply = plain_of(
        "{\"choices\":[{\"message\":{\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"thinking\",\"thinking\":[]},{\"type\":\"text\",\"text\":\"b\"}]}}]}",
    );
    assert_eq!((reply.text.as_str(), reply.done()), ("ab", &Done::without_usage(StopReason::End)));
}
