//! Statuses of an answer as typed errors.

use loomflow_core::{Error, ErrorKind, Result};

use crate::config::without_secrets;
use crate::report::{Reported, kind_of_status};
use crate::response::Response;
use crate::retry_after::advice;
use crate::text::plain;

/// The most bytes of an error's body that are read.
const MAX_ERROR_BODY: usize = 64 << 10;
/// The most characters that are shown of a body which is not the provider's JSON.
const MAX_SHOWN: usize = 200;

/// Reads a provider's error body: its codes and words, or `None` when it is not in the provider's form.
pub type ReadError = fn(&[u8]) -> Option<Reported>;

impl Response {
    /// This answer when its status is a success, and otherwise the typed error of its status and body.
    ///
    /// # Errors
    ///
    /// By status, unless the body names a more specific kind: 401 and 403 [`ErrorKind::Auth`]; 408, 409, 5xx
    /// [`ErrorKind::Overloaded`]; 413 [`ErrorKind::ContextTooLong`]; 429 [`ErrorKind::RateLimited`]; 504 and 524
    /// [`ErrorKind::Timeout`], for nobody knows whether it was billed; everything else [`ErrorKind::BadRequest`].
    pub async fn success(mut self, read: ReadError) -> Result<Self> {
        let status = self.status();
        if (200..300).contains(&status) {
            return Ok(self);
        }
        if (300..400).contains(&status) {
            return Err(self.tell(redirect(status, self.header("location"))));
        }
        // A body that does not come, or not to its end, changes nothing about the status.
        let body = self.explanation(MAX_ERROR_BODY).await;
        let error = match read(&body) {
            Some(report) => {
                let kind = specific(status, &report).unwrap_or_else(|| kind_of_status(status));
                report.as_kind(kind, meaning(status), what_to_check(status))
            }
            None => Error::new(kind_of_status(status), foreign(status, &body)),
        };
        let hopeless = read(&body).is_some_and(|report| report.is_out_of_credit());
        Err(self.tell(self.advised(error, hopeless).with_context("http_status", status)))
    }

    fn advised(&self, error: Error, hopeless: bool) -> Error {
        let advice = advice(self.status(), |name| self.header(name), self.at());
        let may_have_been_billed = error.kind() == ErrorKind::Timeout;
        let retryable = !hopeless && advice.should.unwrap_or(error.is_retryable() || may_have_been_billed);
        let error = error.with_retryable(retryable);
        match advice.after {
            Some(after) => error.with_retry_after(after),
            None => error,
        }
    }
}

/// The kind that the body names, where it says more than the status.
fn specific(status: u16, report: &Reported) -> Option<ErrorKind> {
    let kind = report.kind()?;
    let vague = matches!(status, 400 | 422 | 500..=503);
    match kind {
        ErrorKind::ContextTooLong | ErrorKind::ContentFilter => Some(kind),
        ErrorKind::RateLimited | ErrorKind::Overloaded if vague => Some(kind),
        _ => None,
    }
}

fn meaning(status: u16) -> &'static str {
    match status {
        401 | 403 => "the provider did not accept the API key, or it may not use this model",
        402 => "the provider asks for payment: the account has no credit",
        404 => "the provider has no such model or path: check the model's name and the base URL",
        413 => "the request is larger than the provider takes",
        429 => "the provider's limit on requests or tokens is reached",
        504 | 524 => "the provider, or a proxy before it, timed out",
        408 | 409 | 500.. => "the provider is overloaded or failed on its side",
        _ => "the provider refused the request",
    }
}

/// What the provider's own words often leave out: what to look at.
fn what_to_check(status: u16) -> Option<&'static str> {
    match status {
        401 => Some("check the API key, and that it is this server's"),
        403 => Some("check that the API key may use this model"),
        404 => Some("check the model's name and the base URL"),
        _ => None,
    }
}

fn foreign(status: u16, body: &[u8]) -> String {
    let meaning = meaning(status);
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if text.is_empty() {
        return meaning.to_owned();
    }
    format!("{meaning}; the server answered with {}: {}", what_it_is(text), shown(text))
}

/// What a body that is not the provider's JSON looks like.
pub(crate) fn what_it_is(text: &str) -> &'static str {
    match text.bytes().next() {
        Some(b'<') => "a page instead of JSON",
        Some(b'{' | b'[') => "JSON of another form",
        _ => "text instead of JSON",
    }
}

/// The beginning of a foreign body in plain characters, its markup left out.
pub(crate) fn shown(text: &str) -> String {
    let text = text.get(..text.floor_char_boundary(8 << 10)).unwrap_or_default();
    let (mut words, mut in_tag) = (String::new(), false);
    for character in text.chars() {
        match character {
            '<' => in_tag = true,
            '>' if in_tag => {
                in_tag = false;
                words.push(' ');
            }
            _ if in_tag => {}
            _ => words.push(character),
        }
    }
    plain(&words, MAX_SHOWN)
}

fn redirect(status: u16, location: Option<&str>) -> Error {
    let to = location.map_or_else(|| "an address it does not name".to_owned(), without_secrets);
    let to = plain(&to, MAX_SHOWN);
    Error::new(
        ErrorKind::BadRequest,
        format!("the server redirects to {to}, which is not followed: make that the base URL if it is right"),
    )
    .with_context("http_status", status)
}
