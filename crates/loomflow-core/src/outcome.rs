//! What a tool's function may return, and how it becomes what the model is told.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::tool::ToolOutcome;

/// Whatever can be a tool's answer. A function under `#[tool]` returns one.
///
/// | returned | the model is told |
/// |---|---|
/// | `String`, `&'static str`, `Arc<str>` | the text |
/// | `()` | `done` |
/// | [`Json(value)`](Json) | the value as JSON |
/// | `Ok(answer)` | as `answer` alone would be |
/// | `Err(error)` | the error's text, as an [error](ToolOutcome::Error) |
/// | [`ToolOutcome`] | just that |
///
/// An error says that nothing was done. A tool that has begun something and cannot tell how it ended returns
/// [`ToolOutcome::Unknown`], also as `Ok(ToolOutcome::Unknown(..))`, so that nobody takes it for undone and repeats it.
#[diagnostic::on_unimplemented(
    message = "a tool cannot answer with `{Self}`",
    label = "not something the model can be told",
    note = "return text, `()`, a `ToolOutcome`, `Json(value)` for anything that serialises, or a `Result` of one of these"
)]
pub trait IntoToolOutcome {
    /// What the model is told.
    fn into_tool_outcome(self) -> ToolOutcome;
}

impl IntoToolOutcome for ToolOutcome {
    fn into_tool_outcome(self) -> ToolOutcome {
        self
    }
}

impl IntoToolOutcome for () {
    fn into_tool_outcome(self) -> ToolOutcome {
        ToolOutcome::ok("done")
    }
}

macro_rules! text {
    ($($text:ty),*) => {$(
        impl IntoToolOutcome for $text {
            fn into_tool_outcome(self) -> ToolOutcome {
                ToolOutcome::ok(self)
            }
        }
    )*};
}

text!(String, &'static str, Arc<str>);

impl<T: IntoToolOutcome, E: fmt::Display> IntoToolOutcome for Result<T, E> {
    fn into_tool_outcome(self) -> ToolOutcome {
        match self {
            Ok(answer) => answer.into_tool_outcome(),
            Err(error) => ToolOutcome::error(error.to_string()),
        }
    }
}

/// A tool's answer that the model is told as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a wrapper is made and taken apart by its one field")]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoToolOutcome for Json<T> {
    fn into_tool_outcome(self) -> ToolOutcome {
        ToolOutcome::json(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::error::Error;

    fn told(answer: impl IntoToolOutcome) -> ToolOutcome {
        answer.into_tool_outcome()
    }

    #[test]
    fn text_is_told_as_it_is_and_nothing_as_done() {
        for answer in [told("paid"), told(String::from("paid")), told(Arc::<str>::from("paid"))] {
            assert_eq!(answer, ToolOutcome::ok("paid"));
        }
        assert_eq!(told(()), ToolOutcome::ok("done"));
    }

    #[test]
    fn a_value_is_told_as_json() {
        assert_eq!(told(Json(BTreeMap::from([("cents", 5)]))), ToolOutcome::ok(r#"{"cents":5}"#));
        let unwritable = Json(BTreeMap::from([(vec![1], 1)]));
        assert!(matches!(told(unwritable), ToolOutcome::Error(_)));
    }

    #[test]
    fn a_result_is_its_answer_or_its_error_in_words() {
        assert_eq!(told(Ok::<_, Error>("paid")), ToolOutcome::ok("paid"));
        assert_eq!(
            told(Err::<(), _>(Error::invalid_input("no such order"))),
            ToolOutcome::error("no such order")
        );
        let in_doubt = ToolOutcome::Unknown("the bank did not answer".into());
        assert_eq!(told(Ok::<_, Error>(in_doubt.clone())), in_doubt);
    }
}
