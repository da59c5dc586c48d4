//! The laws that the fuzz targets check, on bodies made of what the providers send: recorded ones, broken at random, and
//! events put together from the words of the protocols.
//!
//! The functions are those of `fuzz/`; what a fuzzer finds there can be seen again here.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use loomflow_core::{Delta, Effect, ErrorKind, Message, ModelRequest, ToolSpec};
use loomflow_model_anthropic::codec as anthropic;
use loomflow_model_openai::codec as openai;
use loomflow_support_model::splits::{Decoded, check, check_events, same_at};
use proptest::prelude::*;
use proptest::sample::Index;

static REQUEST: LazyLock<ModelRequest> = LazyLock::new(|| {
    let tool = |name| {
        Arc::new(ToolSpec::new(name, "", Effect::Read, serde_json::json!({"type": "object"})).unwrap())
    };
    ModelRequest::new(vec![Message::user("hi")], 100)
        .with_tools([tool("get_weather"), tool("files.read")].into())
});

/// Every decoder on one body. No decoder may break a law on any body, meant for it or not.
fn check_all(body: &[u8]) -> [Decoded; 4] {
    check_events(body, 100);
    [
        check(|| openai::StreamDecoder::new(&REQUEST.tools), body),
        check(|| openai::PlainDecoder::new(&REQUEST.tools), body),
        check(|| anthropic::StreamDecoder::new(&REQUEST), body),
        check(|| anthropic::PlainDecoder::new(&REQUEST), body),
    ]
}

/// The recorded replies of all adapters, in order.
static RECORDED: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let mut all = Vec::new();
    for krate in std::fs::read_dir(crates).unwrap() {
        let Ok(files) = std::fs::read_dir(krate.unwrap().path().join("tests/recorded")) else { continue };
        for file in files {
            let path = file.unwrap().path();
            all.push((path.clone(), std::fs::read(path).unwrap()));
        }
    }
    all.sort();
    assert!(!all.is_empty(), "no adapter has recorded replies");
    all.into_iter().map(|(_, body)| body).collect()
});

/// What the protocols are made of.
const WORDS: [&str; 44] = [
    "data: ",
    "event: message\n",
    "\n\n",
    "\r\n\r\n",
    "[DONE]",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "null",
    "true",
    "0",
    "40000000",
    "\"\\u0000\"",
    "\"\\ud83d\"",
    "\"é日\"",
    "\"index\":",
    "\"id\":",
    "\"choices\":",
    "\"delta\":",
    "\"message\":",
    "\"content\":",
    "\"tool_calls\":",
    "\"function\":",
    "\"name\":",
    "\"get_weather\"",
    "\"arguments\":",
    "\"finish_reason\":",
    "\"stop\"",
    "\"usage\":",
    "\"error\":",
    "\"type\":",
    "\"message_start\"",
    "\"content_block_start\"",
    "\"content_block\":",
    "\"tool_use\"",
    "\"content_block_delta\"",
    "\"partial_json\":",
    "\"thinking\"",
    "\"signature\":",
    "\"message_delta\"",
    "\"message_stop\"",
];

/// One thing done to a body.
#[derive(Clone, Debug)]
enum Change {
    Cut(Index),
    Remove(Index, usize),
    Repeat(Index, usize),
    Insert(Index, &'static str),
    Byte(Index, u8),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            any::<Index>().prop_map(Self::Cut),
            (any::<Index>(), 1_usize..200).prop_map(|(at, len)| Self::Remove(at, len)),
            (any::<Index>(), 1_usize..200).prop_map(|(at, len)| Self::Repeat(at, len)),
            (any::<Index>(), prop::sample::select(&WORDS[..])).prop_map(|(at, word)| Self::Insert(at, word)),
            (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Self::Byte(at, byte)),
        ]
    }

    fn apply(&self, body: &mut Vec<u8>) {
        let at = |index: &Index| index.index(body.len() + 1);
        match self {
            Self::Cut(index) => body.truncate(at(index)),
            Self::Remove(index, len) => {
                let from = at(index);
                body.drain(from..(from + len).min(body.len()));
            }
            Self::Repeat(index, len) => {
                let from = at(index);
                let piece = body[from..(from + len).min(body.len())].to_vec();
                body.splice(from..from, piece);
            }
            Self::Insert(index, word) => {
                let from = at(index);
                body.splice(from..from, word.bytes());
            }
            Self::Byte(index, byte) => {
                let from = at(index);
                if let Some(old) = body.get_mut(from) {
                    *old = *byte;
                }
            }
        }
    }
}

/// Cut into two at every byte, or at some hundred of a long one, and into three where that is not too much. The adapters' own
/// tests go further with the replies that are theirs.
#[test]
fn recorded_replies_are_the_same_at_every_split() {
    for body in RECORDED.iter() {
        let [openai, _, anthropic, _] = check_all(body);
        for cut in (0..=body.len()).step_by(body.len() / 400 + 1) {
            same_at(|| openai::StreamDecoder::new(&REQUEST.tools), body, &[cut], &openai);
            same_at(|| anthropic::StreamDecoder::new(&REQUEST), body, &[cut], &anthropic);
        }
        if body.len() <= 200 {
            for first in 0..=body.len() {
                for second in first..=body.len() {
                    same_at(|| openai::StreamDecoder::new(&REQUEST.tools), body, &[first, second], &openai);
                    same_at(|| anthropic::StreamDecoder::new(&REQUEST), body, &[first, second], &anthropic);
                }
            }
        }
    }
}

#[test]
fn what_stands_behind_the_end_changes_nothing() {
    let chunk = r#"{"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}"#;
    let good = format!("data: {chunk}\n\ndata: [DONE]\n\n");
    for behind in
        [&b"data: \xff\n\n"[..], b"data: {\n\n", b"data: {\"error\":{\"message\":\"x\"}}\n\n", b"\xff"]
    {
        let [reply, ..] = check_all(&[good.as_bytes(), behind].concat());
        assert_eq!(reply.error, None, "{behind:?}");
        assert_eq!(reply.deltas[0], Delta::Text("hi".into()));
    }
    let good = "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\ndata: {\"type\":\"message_stop\"}\n\n";
    for behind in [&b"data: \xff\n\n"[..], b"data: {\n\n"] {
        let [_, _, reply, _] = check_all(&[good.as_bytes(), behind].concat());
        assert_eq!(reply.error, None, "{behind:?}");
    }
}

#[test]
fn a_body_of_something_else_is_an_error_everywhere() {
    for body in ["", "hello", "<html><h1>Bad Gateway</h1></html>", "null", "[]", "data: {}\n\n", "{\"x\":1}"]
    {
        for reply in check_all(body.as_bytes()) {
            let (kind, _) = reply.error.unwrap_or_else(|| panic!("{body:?} is a reply: {:?}", reply.deltas));
            assert!(matches!(kind, ErrorKind::Truncated | ErrorKind::Transport), "{body:?}: {kind:?}");
        }
    }
}

proptest! {
    #[test]
    fn recorded_replies_that_were_broken_keep_the_laws(
        which in any::<Index>(),
        changes in prop::collection::vec(Change::any(), 1..6),
    ) {
        let mut body = which.get(&RECORDED).clone();
        for change in &changes {
            change.apply(&mut body);
        }
        check_all(&body);
    }

    #[test]
    fn words_of_the_protocols_in_any_order_keep_the_laws(
        words in prop::collection::vec(prop::sample::select(&WORDS[..]), 0..60),
    ) {
        check_all(words.concat().as_bytes());
    }
}
