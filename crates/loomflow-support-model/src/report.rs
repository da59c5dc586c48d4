//! What a provider's error body says, and which kind of error that is.

use loomflow_core::{Error, ErrorKind};

use crate::text::provider_text;

/// A provider's own account of what went wrong, read from an error body or from an error within a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reported {
    /// The codes and types it names, the most specific first.
    pub codes: Vec<String>,
    /// Its words.
    pub message: String,
}

impl Reported {
    /// A report of `codes`, the most specific first, and `message`.
    #[must_use]
    pub fn new<C: Into<String>>(codes: impl IntoIterator<Item = C>, message: impl Into<String>) -> Self {
        Self { codes: codes.into_iter().map(Into::into).collect(), message: message.into() }
    }

    /// The kind its codes name, or its words where a server names none; `None` when neither is known.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        if speaks_of_length(&self.message) {
            return Some(ErrorKind::ContextTooLong);
        }
        self.codes.iter().find_map(|code| kind_of_code(code))
    }

    /// Whether the provider says that the account, not the moment, is what is wrong: waiting does not help.
    #[must_use]
    pub fn is_out_of_credit(&self) -> bool {
        let hopeless = ["insufficient_quota", "billing_error", "billing_hard_limit_reached"];
        self.codes.iter().any(|code| hopeless.contains(&code.as_str()))
    }

    /// The error of a report within a reply: of the kind it names, or [`ErrorKind::Transport`].
    #[must_use]
    pub fn into_error(self) -> Error {
        let kind = self.kind().unwrap_or(ErrorKind::Transport);
        self.as_kind(kind, "the provider reported an error", None)
    }

    /// The error of this report as `kind`; `without` stands where the report has no words, and `advice` behind them.
    pub(crate) fn as_kind(&self, kind: ErrorKind, without: &str, advice: Option<&str>) -> Error {
        let words = provider_text(&self.message);
        let message = match (words.as_str(), advice) {
            ("", _) => without.to_owned(),
            (words, None) => format!("the provider said: {words}"),
            (words, Some(advice)) => format!("the provider said: {words} ({advice})"),
        };
        let error = Error::new(kind, message);
        let error = match self.codes.first() {
            Some(code) => error.with_context("code", provider_text(code)),
            None => error,
        };
        if self.is_out_of_credit() { error.with_retryable(false) } else { error }
    }
}

fn kind_of_code(code: &str) -> Option<ErrorKind> {
    Some(match code {
        "context_length_exceeded" | "string_above_max_length" | "request_too_large" => {
            ErrorKind::ContextTooLong
        }
        "content_filter" | "content_policy_violation" | "ResponsibleAIPolicyViolation" => {
            ErrorKind::ContentFilter
        }
        "rate_limit_exceeded" | "rate_limit_error" | "insufficient_quota" | "tokens" | "requests" => {
            ErrorKind::RateLimited
        }
        "overloaded_error"
        | "overloaded"
        | "server_error"
        | "api_error"
        | "internal_error"
        | "internal_server_error"
        | "service_unavailable"
        | "engine_overloaded" => ErrorKind::Overloaded,
        "timeout_error" | "timeout" => ErrorKind::Timeout,
        "invalid_api_key" | "authentication_error" | "permission_error" | "permission_denied" => {
            ErrorKind::Auth
        }
        "invalid_request_error"
        | "not_found_error"
        | "model_not_found"
        | "billing_error"
        | "billing_hard_limit_reached" => ErrorKind::BadRequest,
        // Some servers name the status that the error would have had.
        number => match number.parse() {
            Ok(status @ 400..=599) => kind_of_status(status),
            _ => return None,
        },
    })
}

/// The kind of an error that only its HTTP status tells.
pub(crate) fn kind_of_status(status: u16) -> ErrorKind {
    match status {
        401 | 403 => ErrorKind::Auth,
        413 => ErrorKind::ContextTooLong,
        429 => ErrorKind::RateLimited,
        504 | 524 => ErrorKind::Timeout,
        408 | 409 | 500.. => ErrorKind::Overloaded,
        _ => ErrorKind::BadRequest,
    }
}

/// Compatible servers often name no code for a prompt that is too long; their words are all alike.
fn speaks_of_length(message: &str) -> bool {
    let message = message.get(..message.len().min(1_000)).unwrap_or(message).to_ascii_lowercase();
    [
        "maximum context length",
        "context length exceeded",
        "context window",
        "prompt is too long",
        "exceed_context_size",
    ]
    .iter()
    .any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_code_decides() {
        let kind = |codes: &[&str]| Reported::new(codes.iter().copied(), "").kind();
        assert_eq!(
            kind(&["context_length_exceeded", "invalid_request_error"]),
            Some(ErrorKind::ContextTooLong)
        );
        assert_eq!(kind(&["unheard_of", "invalid_request_error"]), Some(ErrorKind::BadRequest));
        assert_eq!(kind(&["content_policy_violation"]), Some(ErrorKind::ContentFilter));
        assert_eq!(kind(&["overloaded_error"]), Some(ErrorKind::Overloaded));
        assert_eq!(kind(&["unheard_of"]), None);
        assert_eq!(kind(&["502"]), Some(ErrorKind::Overloaded));
        assert_eq!(kind(&["200"]), None);
    }

    #[test]
    fn words_tell_a_prompt_that_is_too_long() {
        let report = Reported::new(
            ["BadRequestError"],
            "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
        );
        assert_eq!(report.kind(), Some(ErrorKind::ContextTooLong));
    }

    #[test]
    fn an_error_is_typed_and_its_words_are_bounded() {
        let error = Reported::new(["insufficient_quota"], "x\u{7}".repeat(2_000)).into_error();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::RateLimited, false));
        assert!(error.message().len() < 600);
        let error = Reported::new(["strange"], "").into_error();
        assert_eq!(error.kind(), ErrorKind::Transport);
        assert_eq!(error.message(), "the provider reported an error");
    }
}
