//! A JSON Schema that a final answer must meet.

use std::fmt;
use std::sync::Arc;

use jsonschema::{PatternOptions, Validator};
use loomflow_core::{OutputSchema, Result};
use serde_json::Value;

use crate::schema::graph::{Graph, refused};

const MAX_BYTES: usize = 64 * 1024;
const MAX_DEPTH: usize = 32;
const MAX_LINES: usize = 8;
const MAX_LINE: usize = 400;
/// A compiled pattern may take this many bytes.
const PATTERN_SIZE: usize = 256 * 1024;

/// An output schema, checked with the `jsonschema` crate. Safe to make from what a tenant sent:
///
/// - at most 64 KiB, 32 levels deep, patterns of at most 256 bytes without look-around or back-references (they are
///   matched in linear time);
/// - `$ref` leads to a place in the same schema (`#`, `#/...`), and never back to itself on the same value;
/// - an answer that would take more than a million steps to check is refused as not fitting.
pub struct JsonSchema {
    schema: Arc<Value>,
    validator: Validator,
    graph: Graph,
}

impl JsonSchema {
    /// The schema, compiled.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](loomflow_core::ErrorKind::InvalidInput), saying which limit or rule it breaks.
    pub fn new(schema: Value) -> Result<Self> {
        if !schema.is_object() && !schema.is_boolean() {
            return Err(refused("it is not a JSON object".into()));
        }
        if depth(&schema, MAX_DEPTH).is_none() {
            return Err(refused(format!("it is more than {MAX_DEPTH} levels deep")));
        }
        let bytes = schema.to_string().len();
        if bytes > MAX_BYTES {
            return Err(refused(format!("it is {bytes} bytes long; at most {MAX_BYTES} are allowed")));
        }
        let graph = Graph::new(&schema)?;
        let patterns = PatternOptions::regex().size_limit(PATTERN_SIZE).dfa_size_limit(PATTERN_SIZE);
        let validator = jsonschema::options()
            .with_pattern_options(patterns)
            .build(&schema)
            .map_err(|e| refused(clip(e.to_string())))?;
        Ok(Self { schema: Arc::new(schema), validator, graph })
    }
}

impl fmt::Debug for JsonSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonSchema").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl OutputSchema for JsonSchema {
    fn schema(&self) -> &Arc<Value> {
        &self.schema
    }

    fn validate(&self, value: &Value) -> Result<(), Vec<String>> {
        if !self.graph.affords(value) {
            return Err(vec!["the answer is too large or too deep to be checked against the schema".into()]);
        }
        let lines: Vec<String> = self
            .validator
            .iter_errors(value)
            .take(MAX_LINES)
            .map(|error| {
                let path = error.instance_path().to_string();
                let path = if path.is_empty() { "the answer" } else { &path };
                clip(format!("{path}: {error}"))
            })
            .collect();
        if lines.is_empty() { Ok(()) } else { Err(lines) }
    }
}

/// The line, cut where it gets long: a message repeats the value it complains about.
fn clip(mut line: String) -> String {
    if line.len() > MAX_LINE {
        let end = (0..=MAX_LINE).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(end);
        line.push_str("...");
    }
    line.replace('\n', " ")
}

/// How many levels are left below `value`, or `None` when it is deeper than `most`.
fn depth(value: &Value, most: usize) -> Option<usize> {
    let below = most.checked_sub(1)?;
    match value {
        Value::Array(items) => items.iter().try_fold(below, |least, v| Some(least.min(depth(v, below)?))),
        Value::Object(members) => {
            members.values().try_fold(below, |least, v| Some(least.min(depth(v, below)?)))
        }
        _ => Some(below),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn why(schema: Value) -> String {
        JsonSchema::new(schema).unwrap_err().to_string()
    }

    #[test]
    fn violations_are_lines_with_their_place() {
        let schema = JsonSchema::new(json!({
            "type": "object",
            "properties": {"order": {"type": "string", "pattern": "^A-[0-9]+$"}, "items": {"items": {"type": "integer"}}},
            "required": ["order"],
            "additionalProperties": false
        }))
        .unwrap();
        assert_eq!(schema.validate(&json!({"order": "A-1", "items": [1, 2]})), Ok(()));
        let lines = schema.validate(&json!({"order": "B", "items": [1, "x"]})).unwrap_err();
        assert!(
            lines.iter().any(|l| l.starts_with("/order: "))
                && lines.iter().any(|l| l.starts_with("/items/1: "))
        );
        assert!(schema.validate(&json!({})).unwrap_err()[0].contains("order"));
        let many: Vec<_> = (0..100).map(|n| format!("{n}")).collect();
        assert_eq!(schema.validate(&json!({"order": "A-1", "items": many})).unwrap_err().len(), 8);
        let long = schema.validate(&json!({"order": "é\n".repeat(5_000)})).unwrap_err();
        assert!(long[0].len() < 500 && !long[0].contains('\n'));
    }

    #[test]
    fn what_cannot_be_used_is_refused_and_says_why() {
        let deep = (0..40).fold(json!({}), |below, _| json!({"not": below}));
        for (schema, part) in [
            (json!(1), "not a JSON object"),
            (json!({"type": "nonsense"}), "nonsense"),
            (json!({"$ref": "https://example.com/s.json"}), "leads out"),
            (json!({"properties": {"a": {"$ref": "other.json#/x"}}}), "leads out"),
            (json!({"$ref": "file:///etc/passwd"}), "leads out"),
            (json!({"$ref": "#/$defs/missing"}), "leads nowhere"),
            (json!({"$ref": 1}), "leads out"),
            (json!({"$ref": "#"}), "back to itself"),
            (json!({"anyOf": [{"type": "string"}, {"$ref": "#"}]}), "back to itself"),
            (
                json!({"$ref": "#/$defs/a", "$defs": {"a": {"not": {"$ref": "#/$defs/b"}}, "b": {"$ref": "#/$defs/a"}}}),
                "back to itself",
            ),
            (json!({"$dynamicRef": "#x"}), "not supported"),
            (json!({"properties": {"a": {"$id": "http://example.com/"}}}), "top only"),
            (json!({"pattern": "a".repeat(300)}), "300 bytes"),
            (json!({"patternProperties": {"a".repeat(300): {}}}), "300 bytes"),
            (json!({"pattern": "(a)\\1"}), ""),
            (json!({"pattern": "((a{100}){100}){100}"}), ""),
            (json!({"description": "x".repeat(70_000)}), "bytes long"),
            (deep, "levels deep"),
        ] {
            let shown = schema.to_string();
            let error = why(schema);
            assert!(error.contains(part), "{shown:.100}: {error:.300}");
        }
        // Data that looks like a keyword is data.
        for fine in [
            json!({"properties": {"$ref": {"type": "string"}, "$id": {"type": "string"}}}),
            json!({"enum": [{"$ref": "https://example.com"}]}),
            json!({"const": {"pattern": "a".repeat(300)}}),
        ] {
            assert!(JsonSchema::new(fine.clone()).is_ok(), "{fine}");
        }
    }

    #[test]
    fn recursion_into_the_value_is_fine_and_an_explosion_is_not() {
        let tree = JsonSchema::new(json!({
            "type": "object",
            "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "n": {"type": "integer"}}
        }))
        .unwrap();
        let value = (0..30).fold(json!({"n": 1}), |below, _| json!({"left": below, "right": {"n": 2}}));
        assert_eq!(tree.validate(&value), Ok(()));
        let bad = (0..30).fold(json!({"n": "x"}), |below, _| json!({"left": below}));
        assert!(tree.validate(&bad).unwrap_err()[0].contains("/left/left"));

        // Two references at every level: 2^60 visits for a value of 60 levels.
        let bomb = JsonSchema::new(json!({
            "properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}
        }))
        .unwrap();
        let value = (0..60).fold(json!(1), |below, _| json!({"a": below}));
        assert!(bomb.validate(&value).unwrap_err()[0].contains("too deep"));
        // And a billion laughs on one value.
        let mut defs = serde_json::Map::new();
        for n in 0..40 {
            let next = json!({"$ref": format!("#/$defs/d{}", n + 1)});
            defs.insert(format!("d{n}"), json!({"allOf": [next, next]}));
        }
        defs.insert("d40".into(), json!({"type": "integer"}));
        let laughs = JsonSchema::new(json!({"$ref": "#/$defs/d0", "$defs": defs})).unwrap();
        assert!(laughs.validate(&json!(1)).is_err());
    }
}
