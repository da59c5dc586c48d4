//! Replies that are something else: pages, errors in a success's clothes, bytes that are no text.

use loomflow_core::{Error, ErrorKind};

use super::bench::{Bench, unknown_order};
use super::bodies::{head, joined, short, streamed_head};
use super::{Harness, WireReply};
use crate::Outcome::{self, Passed};
use crate::doubles::{Head, Script};

/// What a proxy says in place of the provider.
const PAGE: &str = "<!DOCTYPE html>\r\n<html><head><title>502 Bad Gateway</title></head><body><center>\
    <h1>502 Bad Gateway</h1></center><hr>\u{7}nginx</body></html>";
/// The longest message that an error may carry.
const LONGEST: usize = 2_000;

/// A page with a 502 is an overloaded provider that can be asked again.
pub async fn a_page_with_an_error_status_is_the_status(h: &Harness) -> Outcome {
    let page = PAGE.to_owned() + &"x".repeat(200_000);
    let bench = Bench::open(h, move |_, _| Script::whole(html(502), &page)).await;
    let error = must_fail(&bench, "a page with a 502").await;
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Overloaded, true), "{error}");
    bench.must_have_paid_nothing("u", "a page with a 502");
    Passed
}

/// A page with a 200 is no answer, and no call for free: nobody knows what stands behind it.
pub async fn a_page_with_a_success_is_no_answer(h: &Harness) -> Outcome {
    let wire = h.shared();
    let media = ["text/html; charset=utf-8".to_owned(), wire.streamed_type().to_owned()];
    for media in media {
        let head = head(&*wire, 200, &media);
        let bench = Bench::open(h, move |_, _| Script::whole(head.clone(), PAGE)).await;
        let error = must_fail(&bench, "a page with a 200").await;
        assert!(unknown_order(error.kind()), "a page with a 200 as {media} is {:?}: {error}", error.kind());
        bench.must_have_paid_for("u", "", "a page with a 200");
    }
    Passed
}

/// An error body with a 200 is an error that says what the provider said, as JSON and in place of a stream.
pub async fn an_error_with_a_success_is_an_error(h: &Harness) -> Outcome {
    let wire = h.shared();
    for media in ["application/json", wire.streamed_type()] {
        let said = "the falcon is out of order";
        let (head, body) = (head(&*wire, 200, media), wire.error_body(500, said));
        let bench = Bench::open(h, move |_, _| Script::whole(head.clone(), &body)).await;
        let error = must_fail(&bench, "an error with a 200").await;
        if media == "application/json" {
            assert!(error.to_string().contains(said), "the provider's words are lost: {error}");
        }
        // Whether it was refused before it was taken, or failed in between, shows in the kind.
        let hold = bench.hold("u");
        let free = hold.charge == Some(loomflow_core::Charge::Refund);
        assert!(!(free && unknown_order(error.kind())), "nobody knows what {error} costs, so it is not free");
    }
    Passed
}

/// A provider that fails within its stream is believed, and what it had streamed is charged.
pub async fn an_error_within_a_stream_is_charged_what_was_streamed(h: &Harness) -> Outcome {
    let wire = h.shared();
    let said = "the falcon is overloaded";
    let Some(event) = wire.error_event(said) else {
        return Outcome::unsupported("this provider never fails within a stream");
    };
    let (before, delivered) = until_text_is_said(h);
    let head = streamed_head(&*wire).chunked();
    let bench =
        Bench::open(h, move |_, _| Script::new().head(&head).chunk(&before).chunk(&event).end_chunks()).await;
    let error = must_fail(&bench, "an error within a stream").await;
    assert!(error.to_string().contains(said), "the provider's words are lost: {error}");
    bench.must_have_paid_for("u", &delivered, "an error within a stream");
    Passed
}

/// Bytes that are not UTF-8 are refused, not replaced: what a tool is called with must not be altered in silence.
pub async fn text_that_is_not_utf8_is_refused(h: &Harness) -> Outcome {
    let reply = WireReply::saying(["Falcons ", "MARKER ", "fly"]);
    let mut body = joined(&h.wire().streamed(&reply));
    let at = body.windows(6).position(|six| six == b"MARKER");
    let at = at.unwrap_or_else(|| panic!("the harness's stream does not say MARKER as it was told to"));
    body.splice(at..at + 6, *b"\xff\xfe\xc3(\x80\xed");
    let head = streamed_head(h.wire()).chunked();
    let bench = Bench::open(h, move |_, _| Script::new().head(&head).chunk(&body).end_chunks()).await;
    let error = must_fail(&bench, "text that is not UTF-8").await;
    assert_eq!(error.kind(), ErrorKind::Transport, "{error}");
    bench.must_have_paid_for("u", "Falcons", "text that is not UTF-8");
    Passed
}

/// A success without a body is no answer.
pub async fn an_empty_reply_is_no_answer(h: &Harness) -> Outcome {
    let wire = h.shared();
    for (status, media) in [(200, wire.streamed_type()), (200, "application/json"), (204, "text/plain")] {
        let head = head(&*wire, status, media);
        let bench = Bench::open(h, move |_, _| Script::whole(head.clone(), "")).await;
        let error = must_fail(&bench, "an empty reply").await;
        assert!(unknown_order(error.kind()), "an empty {status} as {media} is {:?}: {error}", error.kind());
        bench.must_have_paid_for("u", "", "an empty reply");
    }
    Passed
}

/// A stream of well-formed events that are none of the provider's is no answer.
pub async fn a_stream_of_something_else_is_no_answer(h: &Harness) -> Outcome {
    for body in ["data: {\"hello\":\"world\"}\n\n", "data: 17\n\n", "data: not json\n\n", "event: x\n\n"] {
        let head = streamed_head(h.wire()).chunked();
        let bench = Bench::open(h, move |_, _| Script::new().head(&head).chunk(body).end_chunks()).await;
        let error = must_fail(&bench, body).await;
        assert!(unknown_order(error.kind()), "{body:?} is {:?}: {error}", error.kind());
        bench.must_have_paid_for("u", "", body);
    }
    Passed
}

/// The error of the one run of `u`: bounded, in plain characters.
async fn must_fail(bench: &Bench, what: &str) -> Error {
    let error = match bench.run("u", 0).await {
        Err(error) => error,
        Ok(result) => panic!("{what} passed for an answer: {result:?}"),
    };
    let text = error.to_string();
    assert!(text.len() <= LONGEST, "{what}: an error of {} bytes goes into logs", text.len());
    let control = text.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(control, None, "{what}: the server's control characters are in the error: {text:?}");
    error
}

/// A stream's beginning, up to and with its first piece of text; and that piece.
pub(super) fn until_text_is_said(h: &Harness) -> (Vec<u8>, String) {
    let events = h.wire().streamed(&short());
    let said = events.iter().position(|event| event.says.is_some());
    let said = said.unwrap_or_else(|| panic!("the harness marks no event that says a piece of the text"));
    (joined(&events[..=said]), events[said].says.clone().unwrap_or_default())
}

fn html(status: u16) -> Head {
    Head::new(status).with_content_type("text/html").with_header("connection", "close")
}
