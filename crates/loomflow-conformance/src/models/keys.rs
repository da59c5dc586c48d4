//! Keys belong to calls: each tenant's own, as it is now, to the provider alone, and into no sink.

use std::error::Error as StdError;
use std::sync::Arc;

use futures_util::StreamExt as _;
use loomflow_core::{Error, ErrorKind};

use super::bench::{Bench, KEY, Options, asked};
use super::bodies::{answer, head, refusal, short, streamed_head};
use super::faults::until_text_is_said;
use super::{Harness, WireReply};
use crate::Outcome::{self, Passed};
use crate::doubles::{Head, Recorded, Script, ScriptedServer};
use crate::fixture::Must as _;

/// Two tenants of one adapter, one after the other and at once, send each their own key; others the shared one.
pub async fn each_tenant_sends_its_own_key(h: &Harness) -> Outcome {
    let wire = h.shared();
    // Connections are kept, so that a key which sticks to one shows.
    let bench = Bench::open(h, move |request, _| {
        let said = wire.key(request).unwrap_or_else(|| "no key".to_owned());
        reusable(&wire, &WireReply::saying([said]))
    })
    .await;
    for name in ["ada", "bob"] {
        bench.secrets.set(&bench.owner(name), &bench.key, format!("sk-of-{name}-0123456789"));
    }
    for (n, name) in ["ada", "bob", "carol", "ada", "bob"].into_iter().enumerate() {
        let own = if name == "carol" { KEY.to_owned() } else { format!("sk-of-{name}-0123456789") };
        bench.run(name, n).await.must("a reply");
        let sent = h.wire().key(&bench.server.requests()[n]);
        assert_eq!(sent, Some(own), "{name} sent another key");
    }
    let bench = &bench;
    futures_util::stream::iter(5..45_usize)
        .for_each_concurrent(8, |n| async move {
            let name = if n % 2 == 0 { "ada" } else { "bob" };
            bench.run(name, n).await.must("a reply");
        })
        .await;
    for request in &bench.server.requests()[5..] {
        let name = if asked(request).is_multiple_of(2) { "ada" } else { "bob" };
        assert_eq!(
            h.wire().key(request),
            Some(format!("sk-of-{name}-0123456789")),
            "{name} sent another key"
        );
    }
    Passed
}

/// A key that was changed is used by the next call.
pub async fn a_rotated_key_is_used_at_once(h: &Harness) -> Outcome {
    let wire = h.shared();
    let bench = Bench::open(h, move |_, _| reusable(&wire, &short())).await;
    for (n, key) in
        ["sk-first-0123456789", "sk-second-0123456789", "sk-third-0123456789"].into_iter().enumerate()
    {
        bench.secrets.set(&bench.owner("u"), &bench.key, key);
        bench.run("u", n).await.must("a reply");
        assert_eq!(h.wire().key(&bench.server.requests()[n]).as_deref(), Some(key), "an old key was sent");
    }
    Passed
}

/// A tenant for whom there is no key, or an empty one, is told so; nothing is sent, and nothing charged.
pub async fn a_tenant_without_a_key_sends_nothing(h: &Harness) -> Outcome {
    let bench = Bench::open(h, |_, _| Script::new()).await;
    bench.secrets.set(&bench.owner("u"), &bench.key, "");
    let error = failed(bench.run("u", 0).await, "an empty key");
    assert!(!error.is_retryable(), "an empty key does not fill up by trying again: {error}");
    sent_nothing(&bench, "an empty key");
    let bench = Bench::open(h, |_, _| Script::new()).await;
    bench.secrets.set(&bench.owner("somebody else"), &bench.key, KEY);
    bench.secrets.remove_shared(&bench.key);
    let error = failed(bench.run("u", 0).await, "no key");
    assert_eq!(error.kind(), ErrorKind::NotFound, "what the secret store says is passed on: {error}");
    sent_nothing(&bench, "no key");
    Passed
}

/// A secret store that is down has sent nothing to the provider, so the tenant pays for nothing, however the store failed.
pub async fn a_secret_store_that_is_down_is_not_the_tenants_to_pay(h: &Harness) -> Outcome {
    for kind in [ErrorKind::Timeout, ErrorKind::Transport, ErrorKind::Internal, ErrorKind::Overloaded] {
        let bench = Bench::open(h, |_, _| Script::new()).await;
        bench.secrets.fail(kind);
        failed(bench.run("u", 0).await, "a secret store that is down");
        sent_nothing(&bench, "a secret store that is down");
    }
    Passed
}

/// A key with line breaks or control characters is refused, not cut, and not shown; no header can be slipped in with it.
pub async fn a_key_that_no_header_can_carry_sends_nothing(h: &Harness) -> Outcome {
    for key in ["sk-hidden\r\nx-injected: 1", "sk-hidden\u{0}", "sk-hid\nden", "sk-hidden\u{7f}x"] {
        let bench = Bench::open(h, |_, _| Script::new()).await;
        bench.secrets.set(&bench.owner("u"), &bench.key, key);
        let error = failed(bench.run("u", 0).await, "a key that no header can carry");
        assert!(!error.is_retryable(), "the key is as bad the next time: {error}");
        sent_nothing(&bench, "a key that no header can carry");
        must_not_show(&bench, &error, "hidden", "a key that no header can carry");
    }
    Passed
}

fn sent_nothing(bench: &Bench, what: &str) {
    assert_eq!(bench.server.request_count(), 0, "{what}: something was sent");
    bench.must_have_paid_nothing("u", what);
}

/// A provider that echoes the key, wherever it does, does not put it into an error or a record.
pub async fn a_key_that_the_provider_echoes_goes_nowhere(h: &Harness) -> Outcome {
    for (what, script) in echoes(h) {
        let bench = Bench::open(h, move |_, _| script.clone()).await;
        let error = failed(bench.run("u", 0).await, what);
        must_not_show(&bench, &error, KEY, what);
    }
    Passed
}

/// Every place in which a provider could say the key again.
fn echoes(h: &Harness) -> Vec<(&'static str, Script)> {
    let wire = h.wire();
    let said = format!("Incorrect API key provided: {KEY}. Bearer {KEY}, (\"{KEY}\")");
    let page = format!("<html><body>Authorization: Bearer {KEY}</body></html>");
    let html = |status| head(wire, status, "text/html");
    let mut all = vec![
        ("a 401 that echoes the key", refusal(wire, 401, &said)),
        ("a 400 that echoes the key", refusal(wire, 400, &said)),
        ("a 500 that echoes the key", refusal(wire, 500, &said)),
        ("a page with a 502 that echoes the key", Script::whole(html(502), &page)),
        ("a page with a 200 that echoes the key", Script::whole(html(200), &page)),
        (
            "an error with a 200 that echoes the key",
            Script::whole(head(wire, 200, "application/json"), wire.error_body(401, &said)),
        ),
        (
            "a request id that is the key",
            Script::whole(
                Head::new(500).with_header(wire.request_id_header(), KEY).with_content_type("text/plain"),
                "no",
            ),
        ),
        (
            "a redirect to the key",
            Script::whole(
                Head::new(307).with_header("location", format!("http://127.0.0.1:9/{KEY}?k={KEY}")),
                "",
            ),
        ),
        (
            "events that echo the key",
            Script::new().head(&streamed_head(wire).chunked()).chunk(format!("data: {KEY}\n\n")).end_chunks(),
        ),
    ];
    // The key at the border of what is shown of a long message.
    for before in [180, 190, 195, 470, 480, 490, 495, 499] {
        all.push((
            "a long message that echoes the key",
            refusal(wire, 400, &format!("{}{KEY}", "y".repeat(before))),
        ));
    }
    if let Some(event) = wire.error_event(&said) {
        let (before, _) = until_text_is_said(h);
        let script =
            Script::new().head(&streamed_head(wire).chunked()).chunk(before).chunk(event).end_chunks();
        all.push(("an error within a stream that echoes the key", script));
    }
    all
}

/// Fails when an error, its causes, or any record shows `key`, or the larger part of it.
#[track_caller]
fn must_not_show(bench: &Bench, error: &Error, key: &str, what: &str) {
    let part = &key[..key.len().min(12)];
    let mut shown = vec![("the error", error.to_string()), ("the error's Debug", format!("{error:?}"))];
    let mut cause = StdError::source(error);
    while let Some(error) = cause {
        shown.push(("a cause of the error", format!("{error} {error:?}")));
        cause = error.source();
    }
    for (_, entry) in bench.audit.entries() {
        shown.push(("a record", entry.event.payload.get().clone()));
    }
    shown.push(("the agent's Debug", format!("{:?}", bench.agent)));
    for (place, text) in shown {
        assert!(!text.contains(part), "{what}: {place} shows the key: {text}");
    }
}

/// A server that redirects, within its host or to another, is not followed: the key is for the address it was meant for.
pub async fn a_redirect_is_not_given_the_key(h: &Harness) -> Outcome {
    let wire = h.shared();
    let other = ScriptedServer::start(move |_, _| answer(&*wire, &short(), false)).await;
    let other = other.unwrap_or_else(|e| panic!("the suite's server cannot listen: {e}"));
    for status in [301, 302, 303, 307, 308] {
        for to in [format!("{}/v1/elsewhere", other.url()), "/elsewhere".to_owned()] {
            let head = Head::new(status).with_header("location", &to).with_header("connection", "close");
            let bench = Bench::open(h, move |_, _| Script::whole(head.clone(), "")).await;
            let what = format!("a {status} to {to}");
            let error = failed(bench.run("u", 0).await, &what);
            assert!(!error.is_retryable(), "{what}: trying again leads to the same place: {error}");
            bench.must_have_paid_by_kind("u", error.kind(), &what);
            assert_eq!(bench.server.request_count(), 1, "{what} was followed");
            assert_eq!(other.connections(), 0, "{what} was followed to another host");
        }
    }
    Passed
}

/// Many tenants at once on one adapter each get the reply to what they asked, whatever connection it came on.
pub async fn replies_at_once_stay_with_who_asked(h: &Harness) -> Outcome {
    let wire = h.shared();
    let bench = Bench::with(h, Options::default(), move |request: &Recorded, _| {
        let n = asked(request);
        reusable(&wire, &WireReply::saying(["the reply ", "to case ", &format!("{n:06}")]))
    })
    .await;
    let bench = &bench;
    futures_util::stream::iter(0..200_usize)
        .for_each_concurrent(32, |n| async move {
            let result = bench.run(&format!("u{n}"), n).await.must("a reply");
            assert_eq!(*result.output, format!("the reply to case {n:06}"), "u{n} got somebody else's reply");
            bench.must_have_paid(&format!("u{n}"), loomflow_core::Usage::new(21, 9), "a reply");
        })
        .await;
    Passed
}

/// A streamed reply after which the connection can be used again.
fn reusable(wire: &Arc<dyn super::Wire>, reply: &WireReply) -> Script {
    let head = Head::new(200).with_content_type(wire.streamed_type()).chunked();
    let events = wire.streamed(reply);
    Script::new().head(&head).chunks(events.iter().map(|event| &event.bytes)).end_chunks().keep_alive()
}

#[track_caller]
fn failed<T: std::fmt::Debug>(result: Result<T, Error>, what: &str) -> Error {
    match result {
        Err(error) => error,
        Ok(result) => panic!("{what} passed for an answer: {result:?}"),
    }
}
