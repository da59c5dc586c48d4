//! Statuses of errors: their kinds, whether trying again can help, when, and what is charged.

use std::time::Duration;

use loomflow_core::{Charge, Error, ErrorKind, RetryPolicy, Usage};

use super::Harness;
use super::bench::{Bench, Options, must_be_reported};
use super::bodies::{answer, head, refusal, short};
use crate::Outcome::{self, Passed};
use crate::doubles::Script;
use crate::fixture::Must as _;

/// A status, the kinds it may be told as (the first is the usual one), and whether trying again can help.
struct Expected(u16, &'static [ErrorKind], Option<bool>);

use ErrorKind::{
    Auth, BadRequest, Config, Conflict, ContextTooLong, NotFound, Overloaded, RateLimited, Timeout,
};

const STATUSES: [Expected; 15] = [
    Expected(400, &[BadRequest], Some(false)),
    Expected(401, &[Auth], Some(false)),
    Expected(403, &[Auth], Some(false)),
    Expected(404, &[BadRequest, NotFound, Config], Some(false)),
    Expected(408, &[Overloaded, Timeout], Some(true)),
    Expected(409, &[Overloaded, Conflict], Some(true)),
    Expected(413, &[ContextTooLong, BadRequest], Some(false)),
    Expected(422, &[BadRequest], Some(false)),
    Expected(429, &[RateLimited], Some(true)),
    Expected(500, &[Overloaded], Some(true)),
    Expected(502, &[Overloaded], Some(true)),
    Expected(503, &[Overloaded], Some(true)),
    // Whether a gateway's patience ended before or after the provider's work is not known.
    Expected(504, &[Timeout, Overloaded], None),
    Expected(529, &[Overloaded], Some(true)),
    Expected(599, &[Overloaded], Some(true)),
];

/// Each status is told as its kind, says whether trying again can help, and is charged as that kind is.
pub async fn each_status_has_its_kind(h: &Harness) -> Outcome {
    let wire = h.shared();
    let said = "the falcon says no";
    let bench = Bench::open(h, move |_, n| refusal(&*wire, STATUSES[n as usize].0, said)).await;
    for (n, Expected(status, kinds, retryable)) in STATUSES.iter().enumerate() {
        let (what, name) = (format!("status {status}"), format!("u{n}"));
        let error = failed(bench.run(&name, n).await, &what);
        assert!(kinds.contains(&error.kind()), "{what} is {:?}, not one of {kinds:?}: {error}", error.kind());
        if let Some(retryable) = retryable {
            assert_eq!(error.is_retryable(), *retryable, "{what}: whether trying again can help; {error}");
        }
        assert!(error.to_string().contains(said), "{what}: the provider's words are lost: {error}");
        bench.must_have_paid_by_kind(&name, error.kind(), &what);
    }
    Passed
}

/// Seconds, milliseconds and dates say when to try again; the agent's clock is what a date is compared with.
pub async fn retry_after_is_read_in_every_form(h: &Harness) -> Outcome {
    // The agent's clock stands at noon of the first of March 2021.
    for (name, value, expected) in [
        ("retry-after", "7", Duration::from_secs(7)),
        ("retry-after", " 12 ", Duration::from_secs(12)),
        ("retry-after-ms", "1500", Duration::from_millis(1_500)),
        ("retry-after", "Mon, 01 Mar 2021 12:00:30 GMT", Duration::from_secs(30)),
    ] {
        let error = refused_with(h, name, value).await;
        assert_eq!(error.retry_after(), Some(expected), "{name}: {value}");
    }
    Passed
}

/// Values that nobody can mean do not panic, do not overflow, and are not waited for.
pub async fn absurd_retry_afters_are_survived(h: &Harness) -> Outcome {
    let long = "9".repeat(400);
    for value in
        ["", "-5", "abc", "NaN", "inf", "1e400", "0x10", "18446744073709551616", &long, "1,000", "\u{663}"]
    {
        for name in ["retry-after", "retry-after-ms"] {
            let error = refused_with(h, name, value).await;
            // Long is what it may be believed as; negative or nothing at all must not become a wait.
            let nonsense = ["", "-5", "abc", "NaN", "0x10", "1,000", "\u{663}"].contains(&value);
            let wait = error.retry_after().unwrap_or_default();
            assert!(!nonsense || wait.is_zero(), "{name}: {value:?} became a wait of {wait:?}");
        }
    }
    for past in
        ["Mon, 01 Mar 2021 11:00:00 GMT", "Sun, 06 Nov 1994 08:49:37 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"]
    {
        let error = refused_with(h, "retry-after", past).await;
        assert!(error.retry_after().unwrap_or_default().is_zero(), "{past} is over: {error:?}");
    }
    for wild in
        ["Mon, 99 Foo 2021 12:00:30 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 99999 23:59:59 GMT"]
    {
        refused_with(h, "retry-after", wild).await;
    }
    Passed
}

/// The error of a 429 with one header. It is retryable, whatever the header says, and not charged.
async fn refused_with(h: &Harness, name: &'static str, value: &str) -> Error {
    let wire = h.shared();
    let head = head(&*wire, 429, "application/json").with_header(name, value);
    let body = wire.error_body(429, "slow down");
    // One more attempt is allowed, so that a wait which overflows or never ends shows; none is long enough to be made.
    let retry = RetryPolicy::new(1, Duration::from_millis(1), Duration::from_millis(1));
    let options = Options { retry, ..Options::default() };
    let bench = Bench::with(h, options, move |_, _| Script::whole(head.clone(), &body)).await;
    let what = format!("a 429 with {name}: {value:?}");
    let error = failed(bench.run("u", 0).await, &what);
    assert_eq!((error.kind(), error.is_retryable()), (RateLimited, true), "{what}: {error}");
    bench.must_have_paid_nothing("u", &what);
    error
}

/// A refused attempt is given back, the one that is answered is charged, and the adapter adds none of its own.
pub async fn each_attempt_is_paid_for_on_its_own(h: &Harness) -> Outcome {
    let wire = h.shared();
    let retry = RetryPolicy::new(3, Duration::from_millis(1), Duration::from_secs(5));
    let options = Options { retry, ..Options::default() };
    let bench = Bench::with(h, options, move |_, n| match n {
        0 => {
            let head = head(&*wire, 429, "application/json").with_header("retry-after-ms", "20");
            Script::whole(head, wire.error_body(429, "slow down"))
        }
        1 => refusal(&*wire, 503, "busy"),
        _ => answer(&*wire, &short(), false),
    })
    .await;
    let result = bench.run("u", 0).await.must("the third attempt");
    assert_eq!(*result.output, short().text.concat());
    let holds = bench.holds("u");
    assert_eq!(
        bench.server.request_count(),
        3,
        "the agent tries again; an adapter that does too calls more often"
    );
    assert_eq!(holds.len(), 3, "each attempt is a hold of its own: {holds:?}");
    assert_eq!((holds[0].charge, holds[1].charge), (Some(Charge::Refund), Some(Charge::Refund)));
    must_be_reported(&holds[2], Usage::new(21, 9), "the third attempt");
    Passed
}

#[track_caller]
fn failed<T: std::fmt::Debug>(result: Result<T, Error>, what: &str) -> Error {
    match result {
        Err(error) => error,
        Ok(result) => panic!("{what} passed for an answer: {result:?}"),
    }
}
