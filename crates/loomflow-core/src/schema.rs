//! Structured output: a schema and its check as a pure object, so that the validator's crate stays outside core.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

/// A schema that a final answer must meet.
pub trait OutputSchema: fmt::Debug + Send + Sync + 'static {
    /// The JSON Schema, for the model.
    fn schema(&self) -> &Arc<Value>;

    /// Everything that is wrong with `value`, in words the model can act on; nothing when it fits.
    ///
    /// # Errors
    ///
    /// One line per violation, at most a few.
    fn validate(&self, value: &Value) -> Result<(), Vec<String>>;
}

/// Reads a model's text as JSON: the whole of it, or what stands inside one fenced code block.
///
/// # Errors
///
/// A line for the model when it is not JSON.
pub fn parse_output(text: &str) -> Result<Value, Vec<String>> {
    let text = text.trim();
    let body = match text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```")) {
        Some(fenced) => fenced.split_once('\n').map_or(fenced, |(_language, body)| body),
        None => text,
    };
    serde_json::from_str(body).map_err(|e| vec![format!("the answer is not JSON: {e}")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_are_taken_off() {
        for text in ["{\"a\":1}", " {\"a\":1}\n", "```json\n{\"a\":1}\n```", "```\n{\"a\":1}\n```"] {
            assert_eq!(parse_output(text), Ok(serde_json::json!({"a": 1})), "{text}");
        }
        assert!(parse_output("Sure! {\"a\":1}").is_err());
    }
}
