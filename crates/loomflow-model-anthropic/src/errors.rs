//! The provider's errors, typed. They come as the body of a failed call, as an event within a stream, and from some servers
//! as the body of a call that claims to have succeeded.

use std::borrow::Cow;

use loomflow_core::Error;
use loomflow_support_model::{Reported, broke_protocol, provider_text};
use serde::Deserialize;

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    error: Detail<'a>,
    #[serde(borrow, default)]
    request_id: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Detail<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    message: Option<Cow<'a, str>>,
}

/// What an error body, or the data of an error event, tells; `None` when it is not in the provider's form.
#[must_use]
pub fn read_error(body: &[u8]) -> Option<Reported> {
    Some(read(body)?.0)
}

/// The error that a body, or an event's data, tells of; `None` when it tells of none. It carries the request's id where the
/// body names it. The key, should the provider have echoed it, is for the caller to take out, who knows it.
#[must_use]
pub fn error_of_body(body: &[u8]) -> Option<Error> {
    let (report, id) = read(body)?;
    let error = report.into_error();
    Some(match id {
        Some(id) => error.with_context("request_id", id),
        None => error,
    })
}

fn read(body: &[u8]) -> Option<(Reported, Option<String>)> {
    let Body { error, request_id } = serde_json::from_slice(body).ok()?;
    let kind = error.kind.unwrap_or_default();
    let message = error.message.unwrap_or_default();
    if kind.is_empty() && message.is_empty() {
        return None;
    }
    // The API has no type of its own for this; its words are all there is.
    let too_long = message.contains("exceed context limit").then_some("context_length_exceeded");
    let codes = too_long.into_iter().chain(Some(&*kind).filter(|kind| !kind.is_empty()));
    let id = request_id.map(|id| provider_text(&id)).filter(|id| !id.is_empty());
    Some((Reported::new(codes, message), id))
}

/// JSON that is not what the protocol says. The parser's own words could repeat all of the text, so only the place is told.
pub(crate) fn not_understood(what: &str, why: &serde_json::Error) -> Error {
    let problem = if why.is_data() { "is not as the Messages API has it" } else { "is not JSON" };
    broke_protocol(format!("{what} {problem} (line {}, column {})", why.line(), why.column()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use loomflow_core::ErrorKind;

    #[test]
    fn every_type_has_its_kind() {
        for (kind, message, expected) in [
            ("invalid_request_error", "max_tokens: required", ErrorKind::BadRequest),
            (
                "invalid_request_error",
                "prompt is too long: 210000 tokens > 200000 maximum",
                ErrorKind::ContextTooLong,
            ),
            (
                "invalid_request_error",
                "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
                ErrorKind::ContextTooLong,
            ),
            ("request_too_large", "", ErrorKind::ContextTooLong),
            ("not_found_error", "model: x", ErrorKind::BadRequest),
            ("authentication_error", "invalid x-api-key", ErrorKind::Auth),
            ("permission_error", "", ErrorKind::Auth),
            ("billing_error", "no credit", ErrorKind::BadRequest),
            ("rate_limit_error", "", ErrorKind::RateLimited),
            ("overloaded_error", "Overloaded", ErrorKind::Overloaded),
            ("api_error", "", ErrorKind::Overloaded),
            ("timeout_error", "", ErrorKind::Timeout),
            ("brand_new_error", "", ErrorKind::Transport),
        ] {
            let body = serde_json::json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"});
            let error = error_of_body(body.to_string().as_bytes()).unwrap();
            assert_eq!(error.kind(), expected, "{kind}");
            assert!(error.context().contains(&("request_id", "req_1".to_owned())));
        }
    }

    #[test]
    fn what_is_no_error_is_none() {
        for body in [&b"<html>"[..], b"{}", b"{\"error\":{}}", b"{\"error\":\"x\"}", b"[]", b""] {
            assert!(error_of_body(body).is_none());
        }
    }

    #[test]
    fn the_providers_words_are_bounded() {
        let body =
            serde_json::json!({"error": {"type": "api_error", "message": "a\u{1b}[2J\n".repeat(10_000)}});
        let error = error_of_body(body.to_string().as_bytes()).unwrap();
        assert!(error.message().chars().count() < 600);
        assert!(!error.message().chars().any(char::is_control));
    }
}
