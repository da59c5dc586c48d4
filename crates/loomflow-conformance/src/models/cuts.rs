//! Replies that end too soon, and replies that arrive in the most awkward pieces.

use std::sync::Arc;

use futures_util::StreamExt as _;
use loomflow_core::{Charge, ErrorKind, Result, RunResult, RunStatus, Usage};
use rand::RngExt as _;
use serde_json::Value;

use super::bench::{Bench, Options, asked, must_be_estimated, must_be_reported};
use super::bodies::{answer, head, joined, long, shared, short, streamed_head};
use super::{Harness, WireEvent, WireReply};
use crate::Outcome::{self, Passed};
use crate::doubles::{Action, Script};
use crate::fixture::Must as _;

/// Runs that go on at a time.
const AT_ONCE: usize = 16;

/// A reply as bytes, and what each of them means.
struct Recording {
    head: String,
    events: Vec<WireEvent>,
    said: String,
}

impl Recording {
    fn new(head: String, events: Vec<WireEvent>, reply: &WireReply) -> Self {
        Self { head, events, said: reply.text.concat() }
    }

    fn body(&self) -> Vec<u8> {
        joined(&self.events)
    }

    /// What was surely delivered by the first `bytes` of the body.
    fn delivered(&self, bytes: usize) -> String {
        let mut end = 0;
        let mut delivered = String::new();
        for event in &self.events {
            end += event.bytes.len();
            if end <= bytes {
                delivered.push_str(event.says.as_deref().unwrap_or_default());
            }
        }
        delivered
    }

    /// Whether the reply's end may have been seen in the first `bytes` of the body: the line ends behind it do not matter.
    fn may_have_ended(&self, bytes: usize) -> bool {
        let mut start = 0;
        for event in &self.events {
            if event.ends && start + event.bytes.trim_ascii_end().len() <= bytes {
                return true;
            }
            start += event.bytes.len();
        }
        false
    }
}

/// A stream that ends with its connection, cut after every byte of head and body.
pub async fn a_stream_cut_at_any_byte_is_paid_for(h: &Harness) -> Outcome {
    let reply = short();
    let recording = Recording::new(streamed_head(h.wire()).to_string(), h.wire().streamed(&reply), &reply);
    let bytes = shared([recording.head.as_bytes(), &recording.body()].concat());
    let total = bytes.len();
    cut_everywhere(h, false, &recording, total, move |at| {
        Script::new().then(Action::Send(bytes[..at].into()))
    })
    .await
}

/// A chunked stream whose last chunk never comes, cut after every byte of the body.
pub async fn a_chunked_stream_cut_at_any_byte_is_paid_for(h: &Harness) -> Outcome {
    let reply = short();
    let head = streamed_head(h.wire()).chunked();
    let mut recording = Recording::new(head.to_string(), h.wire().streamed(&reply), &reply);
    recording.head.clear();
    let bytes = shared(recording.body());
    let total = bytes.len();
    cut_everywhere(h, false, &recording, total, move |at| Script::new().head(&head).chunk(&bytes[..at])).await
}

/// A reply in one piece, cut before its announced length at every byte.
pub async fn a_plain_reply_cut_at_any_byte_is_paid_for(h: &Harness) -> Outcome {
    let reply = short();
    let Some(body) = h.wire().plain(&reply) else {
        return Outcome::unsupported("the adapter only streams");
    };
    // Nothing of it is delivered before all of it is there.
    let whole = WireEvent::new(body.clone()).ending();
    let head = head(h.wire(), 200, h.wire().plain_type()).with_length(body.len() as u64);
    let recording = Recording::new(String::new(), vec![whole], &reply);
    let (total, bytes) = (body.len(), shared(body));
    cut_everywhere(h, true, &recording, total, move |at| Script::new().head(&head).send(&bytes[..at])).await
}

async fn cut_everywhere(
    h: &Harness,
    plain: bool,
    recording: &Recording,
    total: usize,
    script: impl Fn(usize) -> Script + Send + Sync + 'static,
) -> Outcome {
    let options = if plain { Options::plain() } else { Options::default() };
    let bench = Bench::with(h, options, move |request, _| script(asked(request))).await;
    let bench = &bench;
    futures_util::stream::iter(0..=total)
        .for_each_concurrent(AT_ONCE, |at| async move {
            let result = bench.run(&format!("u{at}"), at).await;
            let body = at.saturating_sub(recording.head.len());
            judge_cut(bench, recording, at, body, result);
        })
        .await;
    assert_eq!(
        bench.server.request_count(),
        total as u64 + 1,
        "each run sends one request, whatever becomes of it"
    );
    Passed
}

fn judge_cut(bench: &Bench, recording: &Recording, at: usize, body: usize, result: Result<RunResult>) {
    let what = format!("cut after {at} bytes, {body} of them body");
    let hold = bench.hold(&format!("u{at}"));
    let delivered = recording.delivered(body);
    match result {
        Ok(result) => {
            assert!(
                recording.may_have_ended(body),
                "{what}: half a reply passed for a whole one: {result:?}"
            );
            assert_eq!((&*result.output, result.status), (&*recording.said, RunStatus::Completed), "{what}");
            if matches!(hold.charge, Some(Charge::Used { estimated: true, .. })) {
                must_be_estimated(&hold, &recording.said, &what);
            } else {
                must_be_reported(&hold, Usage::new(21, 9), &what);
            }
        }
        Err(error) => {
            let kinds = [ErrorKind::Truncated, ErrorKind::Transport];
            assert!(
                kinds.contains(&error.kind()),
                "{what}: {:?} is not what happened: {error}",
                error.kind()
            );
            must_be_estimated(&hold, &delivered, &what);
        }
    }
}

/// A short stream in two chunks, split after every byte, reads the same.
pub async fn a_stream_split_at_any_byte_reads_the_same(h: &Harness) -> Outcome {
    let body = joined(&h.wire().streamed(&short()));
    split_everywhere(h, body).await
}

/// The same stream with CR LF at the end of its lines, split after every byte, reads the same.
pub async fn line_ends_may_be_crlf_split_anywhere(h: &Harness) -> Outcome {
    if !h.wire().allows_crlf() {
        return Outcome::unsupported("lines of this wire end in LF alone");
    }
    let body = joined(&h.wire().streamed(&short()));
    split_everywhere(h, crlf(&body)).await
}

fn crlf(body: &[u8]) -> Vec<u8> {
    body.iter().flat_map(|byte| if *byte == b'\n' { b"\r\n".to_vec() } else { vec![*byte] }).collect()
}

async fn split_everywhere(h: &Harness, body: Vec<u8>) -> Outcome {
    let (head, total, body) = (streamed_head(h.wire()).chunked(), body.len(), shared(body));
    let script = move |at: usize| Script::new().head(&head).chunks([&body[..at], &body[at..]]).end_chunks();
    let bench = Bench::open(h, move |request, _| script(asked(request))).await;
    let bench = &bench;
    futures_util::stream::iter(0..=total)
        .for_each_concurrent(AT_ONCE, |at| async move {
            let what = format!("split after {at} bytes");
            let name = format!("u{at}");
            let result = bench.run(&name, at).await.must(&what);
            assert_eq!(*result.output, short().text.concat(), "{what}");
            bench.must_have_paid(&name, Usage::new(21, 9), &what);
        })
        .await;
    Passed
}

/// A long stream with calls reads the same byte by byte, and in chunks of random sizes with either line end.
pub async fn a_long_stream_split_at_random_reads_the_same(h: &Harness) -> Outcome {
    const TIMES: usize = 24;
    let body = joined(&h.wire().streamed(&long()));
    let scripts: Arc<Vec<Script>> = Arc::new((0..TIMES).map(|n| at_random(h, &body, n)).collect());
    let wire = h.shared();
    let bench = Bench::open(h, move |request, _| {
        // The second turn, which tells the outcomes, is answered in words.
        if request.contains("noted by") {
            answer(&*wire, &short(), false)
        } else {
            scripts[asked(request)].clone()
        }
    })
    .await;
    let bench = &bench;
    futures_util::stream::iter(0..TIMES)
        .for_each_concurrent(AT_ONCE, |n| async move {
            let (what, name) = (format!("split at random, number {n}"), format!("u{n}"));
            let result = bench.run(&name, n).await.must(&what);
            let calls: Vec<_> = result.tool_calls.iter().map(|call| (&*call.id, &*call.name)).collect();
            assert_eq!(calls, [("call_a", "wire.note"), ("call_b", "add")], "{what}");
            let holds = bench.holds(&name);
            must_be_reported(&holds[0], Usage::new(120, 64).with_cache(20, 0), &what);
        })
        .await;
    let notes = bench.note.calls();
    assert_eq!(notes.len(), 2 * TIMES, "each call runs once");
    let whole = ["falcon", "a\\\"bé日"];
    assert!(
        notes.iter().all(|(_, _, arguments)| whole.iter().any(|whole| arguments.contains(whole))),
        "a call's arguments were torn: {notes:?}"
    );
    let said = long().text.concat();
    for request in bench.server.requests().iter().filter(|request| request.contains("noted by")) {
        assert!(request.json().is_some_and(|body| says(&body, &said)), "the text was torn: {request:?}");
    }
    Passed
}

/// Whether `text` stands in any of a request's strings.
fn says(body: &Value, text: &str) -> bool {
    match body {
        Value::String(said) => said.contains(text),
        Value::Array(items) => items.iter().any(|item| says(item, text)),
        Value::Object(members) => members.values().any(|member| says(member, text)),
        _ => false,
    }
}

fn at_random(h: &Harness, body: &[u8], n: usize) -> Script {
    let body = if n % 2 == 1 && h.wire().allows_crlf() { crlf(body) } else { body.to_vec() };
    let largest = if n < 2 { 1 } else { 1 << rand::rng().random_range(1..8) };
    let mut script = Script::new().head(&streamed_head(h.wire()).chunked());
    let mut rest = &body[..];
    while !rest.is_empty() {
        let size = rand::rng().random_range(1..=largest).min(rest.len());
        script = script.chunk(&rest[..size]);
        rest = &rest[size..];
    }
    script.end_chunks()
}
