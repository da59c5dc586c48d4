//! Connections that stall, drip, break or never come about, and callers who leave.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use loomflow_core::{Error, ErrorKind, EventKind, RunStatus, Usage};
use tokio::sync::Notify;

use super::Harness;
use super::bench::{Bench, Options, asking};
use super::bodies::{joined, short, streamed_head};
use super::faults::until_text_is_said;
use crate::Outcome::{self, Passed};
use crate::doubles::{Action, Head, Script};
use crate::fixture::Must as _;

/// A server that takes the request and never answers is given up after the time for headers; the prompt is charged.
pub async fn a_head_that_never_comes_times_out(h: &Harness) -> Outcome {
    let script = Script::new().then(Action::Hang);
    times_out(h, Options::impatient(), script, "a head that never comes", "").await
}

/// A head that comes a byte at a time does not keep the call alive.
pub async fn a_head_that_drips_times_out(h: &Harness) -> Outcome {
    let mut script = Script::new().send("HTTP/1.1 200 OK\r\nx-slow: ");
    for _ in 0..2_000 {
        script = script.send("z").pause(Duration::from_millis(20));
    }
    times_out(h, Options::impatient(), script, "a head that drips", "").await
}

/// A body that stalls is given up after the idle time; what was streamed is charged.
pub async fn a_body_that_stalls_times_out(h: &Harness) -> Outcome {
    let (before, delivered) = until_text_is_said(h);
    let script = Script::new().head(&streamed_head(h.wire()).chunked()).chunk(before).then(Action::Hang);
    let idle_timeout = Duration::from_millis(300);
    times_out(h, Options { idle_timeout, ..Options::default() }, script, "a body that stalls", &delivered)
        .await
}

/// A body that drips often enough to be no stall ends with the run at the latest.
pub async fn a_body_that_drips_ends_with_the_run(h: &Harness) -> Outcome {
    let (before, delivered) = until_text_is_said(h);
    let noise = h.wire().noise();
    let mut script = Script::new().head(&streamed_head(h.wire()).chunked()).chunk(before);
    for byte in noise.iter().cycle().take(20_000) {
        script = script.chunk([*byte]).pause(Duration::from_millis(10));
    }
    let options = Options { run_timeout: Duration::from_secs(2), ..Options::default() };
    times_out(h, options, script, "a body that drips", &delivered).await
}

async fn times_out(h: &Harness, options: Options, script: Script, what: &str, delivered: &str) -> Outcome {
    let bench = Bench::with(h, options, move |_, _| script.clone()).await;
    let error = failed(bench.run("u", 0).await, what);
    assert_eq!(error.kind(), ErrorKind::Timeout, "{what}: {error}");
    bench.settled().await;
    bench.must_have_paid_for("u", delivered, what);
    let exchange = bench.ends(bench.server.over(0)).await;
    assert!(exchange.client_closed, "{what}: the connection is given up");
    assert_eq!(bench.server.request_count(), 1, "{what}: nobody asked for a second attempt");
    Passed
}

/// A reply that comes byte by byte, in less than the idle time each, is a reply.
pub async fn a_slow_reply_is_read_to_its_end(h: &Harness) -> Outcome {
    let mut script = Script::new().head(&streamed_head(h.wire()).chunked());
    for byte in joined(&h.wire().streamed(&short())) {
        script = script.chunk([byte]).pause(Duration::from_millis(1));
    }
    let options = Options { idle_timeout: Duration::from_secs(5), ..Options::default() };
    let bench = Bench::with(h, options, move |_, _| script.clone().end_chunks()).await;
    let result = bench.run("u", 0).await.must("a slow reply");
    assert_eq!((&*result.output, result.status), (&*short().text.concat(), RunStatus::Completed));
    bench.must_have_paid("u", Usage::new(21, 9), "a slow reply");
    Passed
}

/// Where nobody listens nothing was sent: unreachable, worth another try, and free.
pub async fn a_refused_connection_is_unreachable_and_free(h: &Harness) -> Outcome {
    // Taken, so that nobody else can listen there either, and not listened on.
    let taken = tokio::net::TcpSocket::new_v4().and_then(|socket| {
        socket.bind(([127, 0, 0, 1], 0).into())?;
        Ok((socket.local_addr()?, socket))
    });
    let (gone, _taken) = taken.unwrap_or_else(|e| panic!("the suite cannot take a port: {e}"));
    let options = Options { base_url: Some(format!("http://{gone}")), ..Options::default() };
    let bench = Bench::with(h, options, |_, _| Script::new()).await;
    let error = failed(bench.run("u", 0).await, "a refused connection");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unreachable, true), "{error}");
    bench.must_have_paid_nothing("u", "a refused connection");
    Passed
}

/// A connection that breaks after the caller has seen text is an error, and that text is charged.
pub async fn a_reset_in_mid_stream_is_charged_what_was_streamed(h: &Harness) -> Outcome {
    let (before, delivered) = until_text_is_said(h);
    let seen = Arc::new(Notify::new());
    let script = Script::new().head(&streamed_head(h.wire()).chunked()).chunk(before);
    let script = script.wait(seen.clone()).then(Action::Reset);
    let bench = Bench::open(h, move |_, _| script.clone()).await;
    let tenant = bench.tenant("u");
    let run = async {
        let mut events = tenant.stream(asking(0)).await?;
        while let Some(event) = events.next().await {
            if matches!(event.kind, EventKind::TextDelta { .. }) {
                seen.notify_one();
            }
        }
        events.result().await
    };
    let error = failed(bench.ends(run).await, "a reset in mid-stream");
    let kinds = [ErrorKind::Transport, ErrorKind::Truncated];
    assert!(kinds.contains(&error.kind()), "a reset in mid-stream is {:?}: {error}", error.kind());
    bench.must_have_paid_for("u", &delivered, "a reset in mid-stream");
    Passed
}

/// A server that takes the request and closes may have billed it; one that breaks the connection, too.
pub async fn a_connection_closed_without_an_answer_is_charged(h: &Harness) -> Outcome {
    let half = Head::new(200).to_string();
    let half = &half[..half.len() / 2];
    for script in [
        Script::new(),
        Script::new().then(Action::Reset),
        Script::new().send(half),
        Script::new().send("SSH-2.0-falcon\r\n"),
    ] {
        let what = format!("a connection that ends like this: {script:?}");
        let bench = Bench::open(h, move |_, _| script.clone()).await;
        let error = failed(bench.run("u", 0).await, &what);
        assert_eq!(error.kind(), ErrorKind::Transport, "{what}: {error}");
        bench.must_have_paid_for("u", "", &what);
        assert_eq!(bench.server.request_count(), 1, "{what}: nobody asked for a second attempt");
    }
    Passed
}

/// A caller who leaves in mid-stream closes the connection, and pays for what was streamed.
pub async fn a_caller_who_leaves_in_mid_stream_closes_and_pays(h: &Harness) -> Outcome {
    let (before, delivered) = until_text_is_said(h);
    let script = Script::new().head(&streamed_head(h.wire()).chunked()).chunk(before);
    let script = script.then(Action::UntilClientCloses);
    let bench = Bench::open(h, move |_, _| script.clone()).await;
    let tenant = bench.tenant("u");
    let leaving = async {
        let mut events = tenant.stream(asking(0)).await.must("a stream");
        while let Some(event) = events.next().await {
            if matches!(event.kind, EventKind::TextDelta { .. }) {
                return;
            }
        }
        panic!("the stream ended without text");
    };
    bench.ends(leaving).await;
    gone(&bench, &delivered, "leaving in mid-stream").await
}

/// A caller who leaves before the provider has said anything closes the connection, and pays for the prompt.
pub async fn a_caller_who_leaves_before_the_head_closes_and_pays(h: &Harness) -> Outcome {
    let bench = Bench::open(h, |_, _| Script::new().then(Action::UntilClientCloses)).await;
    let tenant = bench.tenant("u");
    let run = Box::pin(async { tenant.run(asking(0)).await });
    let received = Box::pin(bench.ends(bench.server.received(1)));
    match select(run, received).await {
        Either::Left((ended, _)) => panic!("it ended without an answer: {ended:?}"),
        Either::Right(((), run)) => drop(run),
    }
    gone(&bench, "", "leaving before the head").await
}

/// The caller is gone: the server sees that, and the books are closed.
async fn gone(bench: &Bench, delivered: &str, what: &str) -> Outcome {
    let exchange = bench.ends(bench.server.over(0)).await;
    assert!(exchange.client_closed, "{what}: the connection is given up");
    bench.settled().await;
    bench.must_have_paid_for("u", delivered, what);
    let on_record = bench.calls_on_record("u");
    assert_eq!(on_record.len(), 1, "{what}: the call is on record once: {on_record:?}");
    assert_eq!(on_record[0]["estimated"], serde_json::json!(true), "{what}: {on_record:?}");
    Passed
}

#[track_caller]
fn failed<T: std::fmt::Debug>(result: Result<T, Error>, what: &str) -> Error {
    match result {
        Err(error) => error,
        Ok(result) => panic!("{what} passed for an answer: {result:?}"),
    }
}
