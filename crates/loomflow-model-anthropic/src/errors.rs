//! The provider's errors, typed. They come as the body of a failed call, as an event within a stream, and from some servers
//! as the body of a call that claims to have succeeded.

use std::borrow::Cow;

use loomflow_core::{Error, ErrorKind};
use loomflow_support_model::broke_protocol;
use serde::Deserialize;

/// The most characters of a provider's own words that an error repeats.
const MAX_WORDS: usize = 500;

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

/// The kind of an error of that type and message; `None` for a type that is not known.
#[must_use]
pub fn classify(kind: &str, message: &str) -> Option<ErrorKind> {
    Some(match kind {
        "invalid_request_error" if too_long(message) => ErrorKind::ContextTooLong,
        "request_too_large" => ErrorKind::ContextTooLong,
        "invalid_request_error" | "not_found_error" => ErrorKind::BadRequest,
        "authentication_error" | "permission_error" | "billing_error" => ErrorKind::Auth,
        "rate_limit_error" => ErrorKind::RateLimited,
        "overloaded_error" | "api_error" => ErrorKind::Overloaded,
        "timeout_error" => ErrorKind::Timeout,
        _ => return None,
    })
}

/// The error that a body, or an event's data, tells of; `None` when it tells of none. A type that is not known is
/// [`ErrorKind::Overloaded`]: the provider says that it failed, and not that the request did.
///
/// The message repeats at most 500 characters of the provider's. It is for the caller, who knows the key, to take that out.
#[must_use]
pub fn error_of_body(body: &[u8]) -> Option<Error> {
    let body: Body<'_> = serde_json::from_slice(body).ok()?;
    let kind = body.error.kind.unwrap_or_default();
    let message = body.error.message.unwrap_or_default();
    if kind.is_empty() && message.is_empty() {
        return None;
    }
    let text = format!("the provider answered with {}: {}", printable(&kind), printable(&message));
    let mut error = Error::new(classify(&kind, &message).unwrap_or(ErrorKind::Overloaded), text);
    if let Some(id) = body.request_id.filter(|id| !id.is_empty()) {
        error = error.with_context("request_id", printable(&id));
    }
    Some(error)
}

/// JSON that is not what the protocol says. The parser's own words could repeat all of the text, so only the place is told.
pub(crate) fn not_understood(what: &str, why: &serde_json::Error) -> Error {
    let problem = if why.is_data() { "is not as the Messages API has it" } else { "is not JSON" };
    broke_protocol(format!("{what} {problem} (line {}, column {})", why.line(), why.column()))
}

fn too_long(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("prompt is too long") || message.contains("exceed context limit")
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("rate_limit_error", "", ErrorKind::RateLimited),
            ("overloaded_error", "Overloaded", ErrorKind::Overloaded),
            ("api_error", "", ErrorKind::Overloaded),
            ("timeout_error", "", ErrorKind::Timeout),
            ("brand_new_error", "", ErrorKind::Overloaded),
        ] {
            let body = serde_json::json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"});
            let error = error_of_body(body.to_string().as_bytes()).unwrap();
            assert_eq!(error.kind(), expected, "{kind}");
            assert_eq!(error.context(), [("request_id", "req_1".to_owned())]);
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
