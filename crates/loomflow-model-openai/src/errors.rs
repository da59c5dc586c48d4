//! What servers say went wrong, in the forms they say it in.

use loomflow_core::Error;
use loomflow_support_model::{Reported, broke_protocol};
use serde_json::Value;
use serde_json::value::RawValue;

/// The largest account of an error that is read.
const MAX_BYTES: usize = 64 << 10;

/// Reads an error body: OpenAI's own form and those of its relatives; `None` when it is none of them.
#[must_use]
pub fn read_error(body: &[u8]) -> Option<Reported> {
    if body.len() > MAX_BYTES {
        return None;
    }
    let mut body: Value = serde_json::from_slice(body).ok()?;
    // Google's answer is a list of one.
    if let Some(first) = body.get_mut(0) {
        body = first.take();
    }
    if let Some(error) = body.get("error").filter(|error| !error.is_null()) {
        return Some(report(error));
    }
    // A bare account: vLLM and Mistral have no envelope, and FastAPI's is called "detail".
    if let Some(detail) = body.get("detail") {
        return Some(Reported::new(codes(&body), words(detail)));
    }
    body.get("message").map(|_| report(&body))
}

/// The error that a reply carries in its `error` member.
pub(crate) fn within_reply(error: &RawValue) -> Error {
    let account = error.get();
    let read = (account.len() <= MAX_BYTES).then(|| serde_json::from_str::<Value>(account).ok()).flatten();
    read.map_or_else(|| Reported::new([""; 0], ""), |error| report(&error)).into_error()
}

/// JSON that is not what the protocol says. The parser's own words could repeat all of the text, so only the place is told.
pub(crate) fn not_understood(what: &str, why: &serde_json::Error) -> Error {
    let problem = if why.is_data() { "is JSON of another form" } else { "is not JSON" };
    broke_protocol(format!("{what} {problem} (line {}, column {})", why.line(), why.column()))
}

fn report(error: &Value) -> Reported {
    match error {
        Value::Object(_) => Reported::new(codes(error), words(error.get("message").unwrap_or(&Value::Null))),
        other => Reported::new([""; 0], words(other)),
    }
}

/// The codes, the most specific first.
fn codes(error: &Value) -> Vec<String> {
    let inner = error.get("innererror").and_then(|inner| inner.get("code"));
    [inner, error.get("code"), error.get("type"), error.get("status")]
        .into_iter()
        .flatten()
        .filter_map(|code| match code {
            Value::String(code) if !code.is_empty() => Some(code.clone()),
            Value::Number(code) => Some(code.to_string()),
            _ => None,
        })
        .collect()
}

fn words(message: &Value) -> String {
    match message {
        Value::Null => String::new(),
        Value::String(words) => words.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loomflow_core::ErrorKind;

    #[test]
    fn every_form_of_an_error_body_is_read() {
        for (body, kind, words) in [
            (
                r#"{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
                Some(ErrorKind::ContextTooLong),
                "too long",
            ),
            (
                r#"{"error":{"message":"m","type":"insufficient_quota","param":null,"code":null}}"#,
                Some(ErrorKind::RateLimited),
                "m",
            ),
            (
                r#"{"error":{"message":"filtered","code":"content_filter","innererror":{"code":"ResponsibleAIPolicyViolation"},"status":400}}"#,
                Some(ErrorKind::ContentFilter),
                "filtered",
            ),
            (r#"{"error":"model \"x\" not found"}"#, None, "model \"x\" not found"),
            (
                r#"{"object":"error","message":"bad","type":"BadRequestError","code":400}"#,
                Some(ErrorKind::BadRequest),
                "bad",
            ),
            (
                r#"{"detail":[{"loc":["body"],"msg":"field required"}]}"#,
                None,
                r#"[{"loc":["body"],"msg":"field required"}]"#,
            ),
            (
                r#"[{"error":{"code":503,"message":"busy","status":"UNAVAILABLE"}}]"#,
                Some(ErrorKind::Overloaded),
                "busy",
            ),
        ] {
            let report = read_error(body.as_bytes()).unwrap();
            assert_eq!((report.kind(), report.message.as_str()), (kind, words), "{body}");
        }
        for none in ["", "<html>", "{}", "[]", "null", r#"{"error":null}"#, r#"{"choices":[]}"#] {
            assert!(read_error(none.as_bytes()).is_none(), "{none}");
        }
    }
}
