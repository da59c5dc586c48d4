//! Whether a schema keeps the rules of strict decoding. One that does not is refused with `strict: true`.

use serde_json::Value;

/// How deep a schema may nest, and how many properties it may have in all. Below what providers allow today.
const MAX_DEPTH: usize = 5;
const MAX_PROPERTIES: usize = 100;

/// Keywords that strict decoding knows.
const KEYWORDS: [&str; 22] = [
    "$defs",
    "$ref",
    "additionalProperties",
    "anyOf",
    "const",
    "definitions",
    "description",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "items",
    "maxItems",
    "maximum",
    "minItems",
    "minimum",
    "multipleOf",
    "pattern",
    "properties",
    "required",
    "title",
    "type",
];
const FORMATS: [&str; 9] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"];

/// Whether every object is closed and requires all it has, and nothing else is used than strict decoding knows.
pub(crate) fn is_strict(schema: &Value) -> bool {
    let is_object = schema.get("type").and_then(Value::as_str) == Some("object");
    is_object && schema.get("anyOf").is_none() && Walk { properties: 0 }.fits(schema, 0)
}

struct Walk {
    properties: usize,
}

impl Walk {
    fn fits(&mut self, schema: &Value, depth: usize) -> bool {
        let Value::Object(members) = schema else { return false };
        depth <= MAX_DEPTH
            && members.iter().all(|(keyword, value)| match keyword.as_str() {
                "properties" | "$defs" | "definitions" => self.all_fit(value, depth),
                "items" => self.fits(value, depth + 1),
                "anyOf" => {
                    value.as_array().is_some_and(|all| all.iter().all(|one| self.fits(one, depth + 1)))
                }
                "$ref" => value.as_str().is_some_and(|to| to.starts_with('#')),
                "format" => value.as_str().is_some_and(|format| FORMATS.contains(&format)),
                keyword => KEYWORDS.contains(&keyword),
            })
            && (!may_be_object(schema) || is_closed(schema))
    }

    fn all_fit(&mut self, schemas: &Value, depth: usize) -> bool {
        let Value::Object(schemas) = schemas else { return false };
        self.properties += schemas.len();
        self.properties <= MAX_PROPERTIES && schemas.values().all(|schema| self.fits(schema, depth + 1))
    }
}

fn may_be_object(schema: &Value) -> bool {
    match schema.get("type") {
        Some(Value::String(one)) => one == "object",
        Some(Value::Array(some)) => some.iter().any(|one| one == "object"),
        _ => schema.get("properties").is_some(),
    }
}

fn is_closed(schema: &Value) -> bool {
    let empty = serde_json::Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let required = schema.get("required").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_required = |name: &String| required.iter().any(|one| one == name.as_str());
    schema.get("additionalProperties") == Some(&Value::Bool(false)) && properties.keys().all(is_required)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn strict_rules_are_kept_at_every_depth() {
        let closed = |properties: Value, required: Value| json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
        let inner = closed(json!({"n": {"type": ["integer", "null"]}}), json!(["n"]));
        assert!(is_strict(&closed(
            json!({"a": {"type": "string", "enum": ["x"]}, "b": inner}),
            json!(["b", "a"])
        )));
        assert!(is_strict(&closed(json!({"l": {"type": "array", "items": inner}}), json!(["l"]))));
        assert!(is_strict(&closed(json!({"u": {"anyOf": [inner, {"type": "null"}]}}), json!(["u"]))));
        let mut shared = closed(json!({"r": {"$ref": "#/$defs/i"}}), json!(["r"]));
        shared["$defs"] = json!({ "i": inner });
        assert!(is_strict(&shared));

        let open = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
        let deep =
            (0..8).fold(json!({"type": "null"}), |schema, _| json!({"type": "array", "items": schema}));
        for (why, inner, required) in [
            ("open", open.clone(), json!(["x"])),
            (
                "open in so many words",
                json!({"type": "object", "properties": {}, "required": [], "additionalProperties": true}),
                json!(["x"]),
            ),
            ("optional", json!({"type": "string"}), json!([])),
            ("an unknown keyword", json!({"type": "string", "minLength": 2}), json!(["x"])),
            ("an unknown format", json!({"type": "integer", "format": "uint32"}), json!(["x"])),
            ("a remote reference", json!({"$ref": "https://example.com/s"}), json!(["x"])),
            ("open in a list", json!({"type": "array", "items": open}), json!(["x"])),
            ("too deep", deep, json!(["x"])),
            ("a schema that is true", json!(true), json!(["x"])),
        ] {
            assert!(!is_strict(&closed(json!({ "x": inner }), required)), "{why}");
        }
        assert!(!is_strict(&json!({"type": "array", "items": {"type": "string"}})), "the root is no object");
    }
}
