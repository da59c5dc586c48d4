//! Conditions on one argument of a call, found by a JSON pointer.

use loomflow_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::permissions::glob::glob;

/// A condition on one argument of a call, as data: `{"at": "/cents", "above": 10000}`.
///
/// `at` is a JSON pointer (RFC 6901) into the arguments; `""` is all of them. What is said after it must all hold.
///
/// **What cannot be judged counts against the call.** The arguments are the model's: one that is missing, `null`, or of another
/// type than the condition is about (a fraction or a text where a whole number is compared) makes a deny or an ask rule apply
/// and an allow rule not. Numbers are compared exactly, as whole numbers. Texts are compared bytewise, as they stand: a path is
/// not resolved and letter case is not folded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Argument {
    at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    equals: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    one_of: Option<Vec<Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    above: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    below: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    starts_with: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    matches: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exists: Option<bool>,
}

/// Whether a condition holds. There is a third answer, and it is never the call's favour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    Yes,
    No,
    /// It cannot be judged.
    Unknown,
}

impl Holds {
    /// Whether both hold: one that does not settles it.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Yes, Self::Yes) => Self::Yes,
        }
    }
}

impl From<bool> for Holds {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl Argument {
    /// The argument that `pointer` points at, such as `/cents` or `/order/lines/0`. Say what must hold of it.
    #[must_use]
    pub fn at(pointer: impl Into<String>) -> Self {
        Self { at: pointer.into(), ..Self::default() }
    }

    /// It is this text, whole number or boolean.
    #[must_use]
    pub fn equals(mut self, value: impl Into<Value>) -> Self {
        self.equals = Some(value.into());
        self
    }

    /// It is one of these texts, whole numbers or booleans.
    #[must_use]
    pub fn one_of<V: Into<Value>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        self.one_of = Some(values.into_iter().map(Into::into).collect());
        self
    }

    /// It is a whole number larger than this.
    #[must_use]
    pub fn above(mut self, limit: i64) -> Self {
        self.above = Some(limit);
        self
    }

    /// It is a whole number smaller than this.
    #[must_use]
    pub fn below(mut self, limit: i64) -> Self {
        self.below = Some(limit);
        self
    }

    /// It is a text that starts with these bytes.
    #[must_use]
    pub fn starts_with(mut self, prefix: impl Into<String>) -> Self {
        self.starts_with = Some(prefix.into());
        self
    }

    /// It is a text that fits this pattern as a whole, in which `*` is any run of characters.
    #[must_use]
    pub fn matches(mut self, pattern: impl Into<String>) -> Self {
        self.matches = Some(pattern.into());
        self
    }

    /// It is there (`true`), or it is not (`false`). A `null` cannot be judged: tools read it as either.
    #[must_use]
    pub fn exists(mut self, there: bool) -> Self {
        self.exists = Some(there);
        self
    }

    /// Whether this condition can be used at all.
    pub(crate) fn check(&self) -> Result<()> {
        let bad = |why: &str| {
            Err(Error::invalid_input(format!(
                "the condition on argument {:?} cannot be used: {why}",
                self.at
            )))
        };
        if !(self.at.is_empty() || self.at.starts_with('/')) {
            return bad("a JSON pointer starts with /, such as /cents");
        }
        let operands = || self.equals.iter().chain(self.one_of.iter().flatten());
        if operands().any(|value| kind(value).is_none()) {
            return bad("equals and one_of take texts, whole numbers and booleans");
        }
        if self.one_of.as_ref().is_some_and(Vec::is_empty) {
            return bad("one_of needs at least one value");
        }
        let Self { at: _, equals, one_of, above, below, starts_with, matches, exists } = self;
        let says = equals.is_some() || one_of.is_some() || above.is_some() || below.is_some();
        if !(says || starts_with.is_some() || matches.is_some() || exists.is_some()) {
            return bad(
                "it says nothing; use one of equals, one_of, above, below, starts_with, matches, exists",
            );
        }
        Ok(())
    }

    /// Whether it holds of `arguments`; `None` stands for arguments that cannot be read.
    pub(crate) fn holds(&self, arguments: Option<&Value>) -> Holds {
        let Some(arguments) = arguments else { return Holds::Unknown };
        let found = arguments.pointer(&self.at);
        let text = |test: &dyn Fn(&str) -> bool| {
            found.and_then(Value::as_str).map_or(Holds::Unknown, |text| test(text).into())
        };
        let number = |test: &dyn Fn(i128) -> bool| {
            found.and_then(whole).map_or(Holds::Unknown, |number| test(number).into())
        };
        let all = [
            self.exists.map(|there| match found {
                Some(Value::Null) => Holds::Unknown,
                found => (found.is_some() == there).into(),
            }),
            self.equals.as_ref().map(|value| is_one_of(found, std::slice::from_ref(value))),
            self.one_of.as_ref().map(|values| is_one_of(found, values)),
            self.above.map(|limit| number(&|n| n > i128::from(limit))),
            self.below.map(|limit| number(&|n| n < i128::from(limit))),
            self.starts_with.as_ref().map(|prefix| text(&|t| t.starts_with(prefix.as_str()))),
            self.matches.as_ref().map(|pattern| text(&|t| glob(pattern, t))),
        ];
        all.into_iter().flatten().fold(Holds::Yes, Holds::and)
    }
}

/// A whole number, exactly. `5.0` is none: what a tool makes of it is the tool's affair.
fn whole(value: &Value) -> Option<i128> {
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
}

/// What kind of value can be compared for being equal.
fn kind(value: &Value) -> Option<u8> {
    match value {
        Value::String(_) => Some(0),
        Value::Bool(_) => Some(1),
        Value::Number(_) => whole(value).map(|_| 2),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn is_one_of(found: Option<&Value>, values: &[Value]) -> Holds {
    let Some(found) = found else { return Holds::Unknown };
    let Some(own) = kind(found) else { return Holds::Unknown };
    let mut comparable = values.iter().filter(|value| kind(value) == Some(own)).peekable();
    if comparable.peek().is_none() {
        return Holds::Unknown;
    }
    comparable.any(|value| value == found).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_answers_yes_no_or_that_it_cannot_tell() {
        use Holds::{No, Unknown, Yes};
        let arguments = serde_json::json!({
            "cents": 10_001, "low": -3, "huge": u64::MAX, "half": 10_001.5, "round": 10_001.0, "words": "20000",
            "to": "bob@evil.example", "path": "/tmp/x", "nothing": null, "yes": true, "list": [{"n": 7}], "a/b": 1,
        });
        let at = Argument::at;
        for (condition, expected) in [
            (at("/cents").above(10_000), Yes),
            (at("/cents").above(10_001), No),
            (at("/cents").below(10_002), Yes),
            (at("/cents").above(10_000).below(10_001), No),
            (at("/huge").above(i64::MAX), Yes),
            (at("/low").above(i64::MIN), Yes),
            (at("/low").below(-3), No),
            (at("/half").above(10_000), Unknown),
            (at("/half").below(10_000), Unknown),
            (at("/round").above(0), Unknown),
            (at("/round").equals(10_001), Unknown),
            (at("/words").above(10_000), Unknown),
            (at("/words").equals(20_000), Unknown),
            (at("/missing").above(0), Unknown),
            (at("/missing").equals("x"), Unknown),
            (at("/missing").starts_with(""), Unknown),
            (at("/missing").exists(true), No),
            (at("/missing").exists(false), Yes),
            (at("/nothing").exists(true), Unknown),
            (at("/nothing").exists(false), Unknown),
            (at("/nothing").equals("x"), Unknown),
            (at("/cents").exists(false), No),
            (at("/to").equals("bob@evil.example"), Yes),
            (at("/to").equals("BOB@evil.example"), No),
            (at("/to").matches("*@evil.example"), Yes),
            (at("/to").matches("@evil*"), No),
            (at("/cents").matches("*"), Unknown),
            (at("/path").starts_with("/tmp/"), Yes),
            (at("/path").starts_with("/etc"), No),
            (at("/yes").equals(true), Yes),
            (at("/yes").equals("true"), Unknown),
            (at("/list/0/n").one_of([6, 7]), Yes),
            (at("/list/0/n").one_of([6, 8]), No),
            (at("/list/0").one_of([6, 8]), Unknown),
            (at("/list").above(0), Unknown),
            (at("/to").one_of(["a", "b"]), No),
            (at("/a~1b").equals(1), Yes),
            (at("").exists(true), Yes),
            (at("/cents").above(1).starts_with("x"), Unknown),
            (at("/cents").below(1).starts_with("x"), No),
        ] {
            condition.check().unwrap();
            assert_eq!(condition.holds(Some(&arguments)), expected, "{condition:?}");
            assert_eq!(condition.holds(None), Unknown, "arguments that cannot be read");
        }
    }

    #[test]
    fn a_condition_that_cannot_be_used_is_named() {
        let at = Argument::at;
        for (bad, word) in [
            (at("cents").above(1), "JSON pointer"),
            (at("/cents"), "says nothing"),
            (at("/cents").equals(1.5), "whole numbers"),
            (at("/cents").equals(Value::Null), "whole numbers"),
            (at("/cents").one_of::<i64>([]), "at least one"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
