//! Which schemas the API can hold an answer to while it is made. It refuses every other, so those go into the instructions.

use serde_json::{Map, Value};

/// How deep a schema may be for the API; deeper ones go into the instructions.
const MAX_DEPTH: usize = 32;
/// The most members that may be left out, and the most that may be of several kinds, over all of a schema.
const MAX_OPTIONAL: usize = 24;
const MAX_UNIONS: usize = 16;
/// The most schemas that are looked at, definitions once for each use: a few of them can be nested into very many.
const MAX_SCHEMAS: usize = 2_000;

const TYPES: [&str; 7] = ["object", "array", "string", "integer", "number", "boolean", "null"];
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"];
/// Keywords that say nothing about what is valid.
const REMARKS: [&str; 4] = ["$schema", "title", "description", "default"];

/// Whether the API takes this schema: every object closed, no recursion, and only the keywords it knows.
pub(crate) fn is_native(schema: &Value) -> bool {
    let Some(root) = schema.as_object() else { return false };
    let mut check = Check { root, optional: 0, unions: 0, schemas: 0 };
    // At the root the API wants an object.
    root.get("type").and_then(Value::as_str) == Some("object")
        && check.schema(schema, 0)
        && check.optional <= MAX_OPTIONAL
        && check.unions <= MAX_UNIONS
}

struct Check<'s> {
    root: &'s Map<String, Value>,
    optional: usize,
    unions: usize,
    schemas: usize,
}

impl<'s> Check<'s> {
    /// A schema that leads back to itself is deeper than any that is allowed.
    fn schema(&mut self, schema: &'s Value, depth: usize) -> bool {
        self.schemas += 1;
        if depth > MAX_DEPTH || self.schemas > MAX_SCHEMAS {
            return false;
        }
        let Some(members) = schema.as_object() else { return false };
        Self::says_what_it_is(members)
            && members.iter().all(|(keyword, value)| self.keyword(members, keyword, value, depth + 1))
    }

    fn says_what_it_is(members: &Map<String, Value>) -> bool {
        let is_object = members.get("type").is_some_and(|kind| kind == "object" || lists(kind, "object"));
        let closed = members.get("additionalProperties") == Some(&Value::Bool(false));
        let said =
            ["type", "enum", "const", "anyOf", "allOf", "$ref"].iter().any(|key| members.contains_key(*key));
        said && (closed || !is_object)
    }

    fn keyword(
        &mut self,
        members: &'s Map<String, Value>,
        keyword: &str,
        value: &'s Value,
        depth: usize,
    ) -> bool {
        match keyword {
            "type" => self.kind(value),
            "enum" => {
                value.as_array().is_some_and(|values| !values.is_empty() && values.iter().all(is_scalar))
            }
            "const" => is_scalar(value),
            "format" => value.as_str().is_some_and(|format| FORMATS.contains(&format)),
            "minItems" => matches!(value.as_u64(), Some(0 | 1)),
            "additionalProperties" => *value == Value::Bool(false),
            "required" => value.as_array().is_some_and(|names| names.iter().all(Value::is_string)),
            "properties" => self.properties(members, value, depth),
            "items" => self.schema(value, depth),
            "anyOf" => {
                self.unions += 1;
                self.all(value, depth)
            }
            // Together with references the API refuses it.
            "allOf" => self.all(value, depth) && !mentions_reference(value),
            "$ref" => self.reference(value, depth),
            // Definitions count where they are used.
            "$defs" | "definitions" => value.is_object(),
            _ => REMARKS.contains(&keyword),
        }
    }

    fn kind(&mut self, value: &Value) -> bool {
        let known = |kind: &Value| kind.as_str().is_some_and(|kind| TYPES.contains(&kind));
        match value {
            Value::Array(kinds) => {
                self.unions += 1;
                !kinds.is_empty() && kinds.iter().all(known)
            }
            kind => known(kind),
        }
    }

    fn properties(&mut self, members: &Map<String, Value>, value: &'s Value, depth: usize) -> bool {
        let Some(properties) = value.as_object() else { return false };
        let required = |name: &String| members.get("required").is_some_and(|names| lists(names, name));
        self.optional += properties.keys().filter(|name| !required(name)).count();
        properties.values().all(|property| self.schema(property, depth))
    }

    fn all(&mut self, value: &'s Value, depth: usize) -> bool {
        let Some(schemas) = value.as_array() else { return false };
        !schemas.is_empty() && schemas.iter().all(|schema| self.schema(schema, depth))
    }

    /// A definition of this very schema that does not lead back to itself.
    fn reference(&mut self, value: &'s Value, depth: usize) -> bool {
        let Some(reference) = value.as_str() else { return false };
        let Some((place, name)) = reference.strip_prefix("#/").and_then(|path| path.split_once('/')) else {
            return false;
        };
        let found = matches!(place, "$defs" | "definitions").then(|| self.root.get(place)).flatten();
        let Some(definition) = found.and_then(|definitions| definitions.get(name)) else { return false };
        self.schema(definition, depth)
    }
}

fn lists(list: &Value, text: &str) -> bool {
    list.as_array().is_some_and(|items| items.iter().any(|item| item == text))
}

fn is_scalar(value: &Value) -> bool {
    !value.is_object() && !value.is_array()
}

fn mentions_reference(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.contains_key("$ref") || members.values().any(mentions_reference),
        Value::Array(items) => items.iter().any(mentions_reference),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn closed(properties: &Value) -> Value {
        json!({"type": "object", "properties": properties, "additionalProperties": false})
    }

    #[test]
    fn schemas_within_the_subset_are_native() {
        for schema in [
            closed(&json!({"a": {"type": "string", "format": "date"}, "b": {"enum": ["x", 1, null]}})),
            closed(&json!({"list": {"type": "array", "minItems": 1, "items": {"type": ["string", "null"]}}})),
            json!({"type": "object", "additionalProperties": false, "properties": {"p": {"$ref": "#/$defs/P"}, "q": {"$ref": "#/$defs/P"}},
                "$defs": {"P": closed(&json!({"n": {"type": "number", "title": "N", "default": 1}}))}}),
            closed(&json!({"u": {"anyOf": [{"type": "null"}, {"const": 3}]}})),
        ] {
            assert!(is_native(&schema), "{schema}");
        }
    }

    #[test]
    fn every_other_schema_goes_into_the_instructions() {
        let recursive = json!({"type": "object", "additionalProperties": false, "properties": {"p": {"$ref": "#/$defs/P"}},
            "$defs": {"P": closed(&json!({"next": {"$ref": "#/$defs/P"}}))}});
        let mut deep = json!({"type": "string"});
        for _ in 0..100 {
            deep = json!({"type": "array", "items": deep});
        }
        let many = (0..25).map(|i| (format!("m{i}"), json!({"type": "null"}))).collect::<Map<_, _>>();
        let nested = (0..8).map(|i| {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            (format!("d{i}"), json!({"anyOf": vec![next; 30]}))
        });
        let mut nested = Value::Object(nested.collect());
        nested["d8"] = json!({"type": "null"});
        let nested = json!({"type": "object", "additionalProperties": false, "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": nested});
        for schema in [
            nested,
            json!(true),
            json!({"type": "string"}),
            json!({"type": "object", "properties": {}}),
            closed(&json!({"a": {"type": "object"}})),
            closed(&json!({"a": {}})),
            closed(&json!({"a": {"type": ["object", "null"]}})),
            closed(&json!({"a": {"type": "integer", "minimum": 1}})),
            closed(&json!({"a": {"type": "string", "maxLength": 5}})),
            closed(&json!({"a": {"type": "string", "pattern": "x"}})),
            closed(&json!({"a": {"type": "string", "format": "regex"}})),
            closed(&json!({"a": {"type": "array", "minItems": 2, "items": {"type": "null"}}})),
            closed(&json!({"a": {"oneOf": [{"type": "null"}]}})),
            closed(&json!({"a": {"enum": [{"x": 1}]}})),
            closed(&json!({"a": {"$ref": "https://example.com/schema"}})),
            closed(&json!({"a": {"$ref": "#/$defs/none"}})),
            closed(&json!({"a": {"$ref": "#"}})),
            closed(&json!({"a": {"allOf": [{"$ref": "#/$defs/none"}]}})),
            closed(&json!({"a": deep})),
            closed(&Value::Object(many)),
            recursive,
        ] {
            assert!(!is_native(&schema), "{schema}");
        }
    }
}
