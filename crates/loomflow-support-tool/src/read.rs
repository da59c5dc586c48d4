//! Reading the model's arguments: values of the right types, or everything that is wrong with them at once.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use crate::absent::absent;
use crate::words::{complaint, meant, named};

/// The most problems that are listed; the rest is counted.
const MAX_PROBLEMS: usize = 16;

/// An argument that a tool takes, in words.
pub(crate) struct Taken {
    pub(crate) name: &'static str,
    pub(crate) words: String,
    pub(crate) required: bool,
}

/// One reading of one call's arguments.
pub(crate) struct Reading<'r> {
    given: Option<&'r Map<String, Value>>,
    taken: &'r [Taken],
    problems: Vec<String>,
    unlisted: usize,
}

impl<'r> Reading<'r> {
    /// Begins to read; what no tool of this kind takes is noted first.
    pub(crate) fn new(arguments: &'r Value, taken: &'r [Taken]) -> Self {
        let mut reading = Self { given: arguments.as_object(), taken, problems: Vec::new(), unlisted: 0 };
        match reading.given {
            Some(given) => given.keys().for_each(|name| reading.known(name, given)),
            None => reading.problem(|| "the arguments are not a JSON object".to_owned()),
        }
        reading
    }

    fn problem(&mut self, words: impl FnOnce() -> String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(words());
        } else {
            self.unlisted += 1;
        }
    }

    fn known(&mut self, name: &str, given: &Map<String, Value>) {
        let taken = self.taken;
        if taken.iter().any(|argument| argument.name == name) {
            return;
        }
        self.problem(|| {
            let free = taken.iter().map(|argument| argument.name).filter(|name| !given.contains_key(*name));
            let hint = meant(name, free).map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
            format!("there is no argument `{}`{hint}", named(name))
        });
    }

    /// The value of an argument, if it is there (or need not be) and fits.
    pub(crate) fn argument<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<T> {
        let Some(value) = self.given.and_then(|given| given.get(name)) else {
            let value = absent();
            if value.is_none() && self.given.is_some() {
                let words = self.taken.iter().find(|argument| argument.name == name).map(|a| a.words.clone());
                self.problem(|| format!("`{name}` is missing: {}", words.unwrap_or_default()));
            }
            return value;
        };
        match serde_path_to_error::deserialize(value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(|| {
                    let path = named(&path(name, error.path()));
                    format!("`{path}`: {}", complaint(&error.inner().to_string()))
                });
                None
            }
        }
    }

    /// Whether nothing was wrong.
    pub(crate) fn fits(&self) -> bool {
        self.problems.is_empty()
    }

    /// What the model is told.
    pub(crate) fn refusal(&self, tool: &str) -> String {
        let mut text = format!("the arguments of {tool} do not fit, and nothing was done:");
        for problem in &self.problems {
            text.push_str("\n- ");
            text.push_str(problem);
        }
        if self.unlisted > 0 {
            text.push_str(&format!("\n- and {} more problems", self.unlisted));
        }
        text.push('\n');
        text.push_str(&takes(self.taken));
        text
    }
}

/// `items[2].price`.
fn path(argument: &str, inside: &serde_path_to_error::Path) -> String {
    let mut text = argument.to_owned();
    for segment in inside {
        match segment {
            Segment::Seq { index } => text.push_str(&format!("[{index}]")),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                text.push('.');
                text.push_str(key);
            }
            Segment::Unknown => text.push_str(".?"),
        }
    }
    text
}

fn takes(taken: &[Taken]) -> String {
    if taken.is_empty() {
        return "it takes no arguments".to_owned();
    }
    let each = taken.iter().map(|argument| {
        let need = if argument.required { "required" } else { "optional" };
        format!("`{}` ({}, {need})", argument.name, argument.words)
    });
    format!("it takes: {}", each.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn taken() -> [Taken; 2] {
        let argument = |name, words: &str, required| Taken { name, words: words.to_owned(), required };
        [argument("order", "string", true), argument("lines", "array of array of integer", false)]
    }

    type Arguments = (Option<String>, Option<Option<Vec<Vec<u8>>>>);

    fn read(arguments: &Value) -> (Arguments, String) {
        let taken = taken();
        let mut reading = Reading::new(arguments, &taken);
        let read = (reading.argument("order"), reading.argument("lines"));
        let refusal = if reading.fits() { String::new() } else { reading.refusal("shop.order") };
        (read, refusal)
    }

    #[test]
    fn what_fits_is_read_and_nothing_is_wrong() {
        let (read, refusal) = read(&json!({"order": "A1", "lines": [[1], []]}));
        assert_eq!(read, (Some("A1".to_owned()), Some(Some(vec![vec![1], vec![]]))));
        assert_eq!(refusal, "");
    }

    #[test]
    fn a_path_leads_to_what_is_wrong() {
        let (_, refusal) = read(&json!({"order": "A1", "lines": [[1], [2, 300]]}));
        assert!(
            refusal.contains("\n- `lines[1][1]`: invalid value: integer `300`, expected u8\n"),
            "{refusal}"
        );
    }

    #[test]
    fn a_name_that_is_already_given_is_not_suggested() {
        let (read, refusal) = read(&json!({"order": "A1", "orders": "A2"}));
        assert!(read.0.is_some());
        assert!(refusal.contains("\n- there is no argument `orders`\n"), "{refusal}");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,300}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            let name = prop_oneof![Just("order".to_owned()), Just("lines".to_owned()), ".{0,300}"];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::btree_map(name, inner, 0..24)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Whatever a model sends, it is either read whole or refused in words that are bounded and printable.
        #[test]
        fn anything_is_read_or_refused(arguments in any_json()) {
            let ((order, lines), refusal) = read(&arguments);
            prop_assert_eq!(refusal.is_empty(), {
                let known = |name: &String| name == "order" || name == "lines";
                order.is_some() && lines.is_some() && arguments.as_object().is_some_and(|a| a.keys().all(known))
            });
            prop_assert!(refusal.chars().count() < 6_000);
            prop_assert!(!refusal.chars().any(|c| c.is_control() && c != '\n'));
        }
    }
}
