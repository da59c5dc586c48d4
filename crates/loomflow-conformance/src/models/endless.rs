//! Replies that have no end, or one that is too far away: bounded, typed, and memory stays flat.

use std::sync::Arc;

use loomflow_core::{Error, ErrorKind};

use super::bench::{Bench, Options};
use super::bodies::{answer, has_plain, head, joined, short, streamed_head};
use super::faults::until_text_is_said;
use super::{Harness, WireCall, WireReply};
use crate::Outcome::{self, Passed};
use crate::doubles::{Action, Head, PeakMemory, Script};
use crate::fixture::Must as _;

/// What a fault may cost in memory, at its peak.
const MOST_MEMORY: u64 = 64 << 20;
/// What an event or a body of a hundred megabytes is made of.
const PIECE: usize = 64 << 10;
const PIECES: u64 = 100 * 16;

/// A stream of good text without an end is stopped and charged.
pub async fn a_stream_that_never_ends_is_bounded(h: &Harness) -> Outcome {
    let piece = "falcons over the roof ".repeat(40);
    let events = h.wire().streamed(&WireReply::saying([piece.clone()]));
    let said = events.iter().position(|event| event.says.as_ref() == Some(&piece));
    let said = said.unwrap_or_else(|| panic!("the harness marks no event that says the piece of the text"));
    let (before, again) = (joined(&events[..said]), events[said].bytes.clone());
    endless(h, before, again, "text without an end", "falcons over the roof").await
}

/// A stream that is kept open by saying nothing is stopped, by its size or by the run's deadline.
pub async fn a_stream_that_says_nothing_for_ever_is_bounded(h: &Harness) -> Outcome {
    let (before, delivered) = until_text_is_said(h);
    endless(h, before, h.wire().noise().repeat(10), "noise without an end", &delivered).await
}

/// Arguments of a call that never end are stopped; the tool does not run.
pub async fn arguments_that_never_end_are_bounded(h: &Harness) -> Outcome {
    let piece = "xyzzy ".repeat(200);
    let call = WireCall::new("c1", "add", [r#"{"what":""#, &*piece, r#""}"#]);
    let events = h.wire().streamed(&WireReply::saying([""; 0]).with_call(call));
    let said = events.iter().position(|event| event.says.as_ref() == Some(&piece));
    let said =
        said.unwrap_or_else(|| panic!("the harness marks no event that says the piece of the arguments"));
    let (before, again) = (joined(&events[..said]), events[said].bytes.clone());
    endless(h, before, again, "arguments without an end", "xyzzy").await
}

async fn endless(h: &Harness, before: Vec<u8>, again: Vec<u8>, what: &str, delivered: &str) -> Outcome {
    let (head, again): (_, Arc<[u8]>) = (streamed_head(h.wire()).chunked(), again.into());
    let options = Options { run_timeout: std::time::Duration::from_secs(6), ..Options::default() };
    let bench = Bench::with(h, options, move |_, n| {
        if n > 0 {
            return Script::new();
        }
        Script::new().head(&head).chunk(&before).then(Action::RepeatChunk(again.clone(), u64::MAX))
    })
    .await;
    let peak = PeakMemory::begin();
    must_be_bounded(bench.run("u", 0).await, what);
    must_be_flat(&peak, what);
    assert_eq!(bench.note.calls(), [], "{what}: a tool ran");
    bench.settled().await;
    bench.must_have_paid_for("u", delivered, what);
    let exchange = bench.ends(bench.server.over(0)).await;
    assert!(exchange.client_closed, "{what}: the connection is given up");
    Passed
}

/// A reply with more calls than anybody makes is refused, and none of them runs.
pub async fn too_many_calls_are_refused(h: &Harness) -> Outcome {
    let mut reply = WireReply::saying([""; 0]);
    for n in 0..1_000 {
        reply = reply.with_call(WireCall::new(&format!("c{n}"), "add", ["{}"]));
    }
    let wire = h.shared();
    let bench = Bench::open(h, move |_, _| answer(&*wire, &reply, false)).await;
    must_be_bounded(bench.run("u", 0).await, "a thousand calls");
    assert_eq!(bench.note.calls(), [], "a tool ran");
    bench.must_have_paid_for("u", "", "a thousand calls");
    Passed
}

/// One event of a hundred megabytes is refused, and never held.
pub async fn an_event_of_a_hundred_megabytes_leaves_memory_flat(h: &Harness) -> Outcome {
    let head = streamed_head(h.wire()).chunked();
    let begin = h.wire().endless_event();
    let huge = move || {
        Script::new().head(&head).chunk(&begin).then(Action::RepeatChunk(filler(), PIECES)).end_chunks()
    };
    stays_flat(h, false, "an event of a hundred megabytes", huge, Some("")).await
}

/// A body in one piece of a hundred megabytes is refused, and never held.
pub async fn a_plain_reply_of_a_hundred_megabytes_leaves_memory_flat(h: &Harness) -> Outcome {
    if !has_plain(h.wire()) {
        return Outcome::unsupported("the adapter only streams");
    }
    let head = head(h.wire(), 200, h.wire().plain_type());
    let huge = move || {
        Script::new().head(&head).send("{\"a\":\"").then(Action::Repeat(filler(), PIECES)).send("\"}")
    };
    stays_flat(h, true, "a body of a hundred megabytes", huge, Some("")).await
}

/// An error whose page is a hundred megabytes long is the error, and the page is not read to its end.
pub async fn an_error_page_of_a_hundred_megabytes_leaves_memory_flat(h: &Harness) -> Outcome {
    let head = head(h.wire(), 503, "text/html");
    let huge = move || Script::new().head(&head).send("<html>").then(Action::Repeat(filler(), PIECES));
    stays_flat(h, false, "an error page of a hundred megabytes", huge, None).await
}

/// A head that never ends is given up.
pub async fn a_head_that_never_ends_is_bounded(h: &Harness) -> Outcome {
    let head = Head::new(200).to_string();
    let line: Arc<[u8]> = b"x-falcon: over the roof\r\n".repeat(64)[..].into();
    let begin = head.trim_end().to_owned() + "\r\n";
    let huge = move || Script::new().send(&begin).then(Action::Repeat(line.clone(), u64::MAX));
    stays_flat(h, false, "a head without an end", huge, Some("")).await
}

/// A run that fails while memory stays flat. Charged for what was `delivered`; given back without it.
async fn stays_flat(
    h: &Harness,
    plain: bool,
    what: &str,
    huge: impl Fn() -> Script + Send + Sync + 'static,
    delivered: Option<&str>,
) -> Outcome {
    let wire = h.shared();
    let options = if plain { Options::plain() } else { Options::default() };
    // The first run is a usual one, so that what everything needs once is not counted as growth.
    let bench =
        Bench::with(h, options, move |_, n| if n == 0 { answer(&*wire, &short(), plain) } else { huge() })
            .await;
    bench.run("warm", 0).await.must("a short reply");
    let peak = PeakMemory::begin();
    must_be_bounded(bench.run("u", 1).await, what);
    must_be_flat(&peak, what);
    match delivered {
        Some(delivered) => bench.must_have_paid_for("u", delivered, what),
        None => bench.must_have_paid_nothing("u", what),
    }
    Passed
}

fn filler() -> Arc<[u8]> {
    vec![b'x'; PIECE].into()
}

#[track_caller]
fn must_be_bounded<T: std::fmt::Debug>(result: Result<T, Error>, what: &str) {
    let kinds = [ErrorKind::Truncated, ErrorKind::Transport, ErrorKind::Timeout, ErrorKind::Overloaded];
    match result {
        Err(error) => assert!(kinds.contains(&error.kind()), "{what} is {:?}: {error}", error.kind()),
        Ok(result) => panic!("{what} passed for an answer: {:.200}", format!("{result:?}")),
    }
}

#[track_caller]
fn must_be_flat(peak: &PeakMemory, what: &str) {
    let growth = peak.growth().unwrap_or_default();
    assert!(growth < MOST_MEMORY, "{what}: memory grew by {} MiB", growth >> 20);
}
