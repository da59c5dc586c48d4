//! JSON Schemas of arguments as models and their providers take them: closed, inline, without noise.

use schemars::Schema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::transform::{RecursiveTransform, Transform as _};
use serde_json::{Map, Value, json};

/// The formats that providers know. Others, such as `uint32`, are refused by some of them and tell a model nothing.
const FORMATS: [&str; 10] =
    ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"];

/// A generator that writes each type where it is used. Only a type that contains itself becomes a `$ref`.
pub(crate) fn generator() -> SchemaGenerator {
    SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        })
        .into_generator()
}

/// One argument's place in the schema.
pub(crate) struct Property {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    pub(crate) schema: Schema,
    pub(crate) required: bool,
}

/// The schema of an object of these members and no other.
pub(crate) fn object(properties: Vec<Property>, mut generator: SchemaGenerator) -> Value {
    let required: Vec<&str> = properties.iter().filter(|p| p.required).map(|p| p.name).collect();
    let mut root = json!({"type": "object", "additionalProperties": false});
    if !required.is_empty() {
        root["required"] = json!(required);
    }
    let mut members = Map::new();
    for property in properties {
        let mut schema = property.schema;
        let members_schema = schema.ensure_object();
        if !property.description.is_empty() {
            members_schema.insert("description".to_owned(), property.description.into());
        }
        members.insert(property.name.to_owned(), schema.to_value());
    }
    root["properties"] = Value::Object(members);
    let shared = generator.take_definitions(false);
    if !shared.is_empty() {
        root["$defs"] = Value::Object(shared);
    }
    let Ok(mut root) = Schema::try_from(root) else { return json!({"type": "object"}) };
    RecursiveTransform(tidy).transform(&mut root);
    root.to_value()
}

/// Takes out what providers refuse or what only repeats what is said elsewhere.
fn tidy(schema: &mut Schema) {
    let Some(schema) = schema.as_object_mut() else { return };
    if schema.get("format").and_then(Value::as_str).is_some_and(|format| !FORMATS.contains(&format)) {
        schema.remove("format");
    }
    let required: Vec<String> = schema
        .get("required")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default();
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (name, property) in properties {
        if let Some(property) = property.as_object_mut().filter(|_| !required.contains(name)) {
            not_nullable(property);
        }
    }
}

/// What may be left out need not be null as well: not all providers take a list of types, and a model that is offered two
/// ways to say nothing uses both. Null is still read as left out.
fn not_nullable(schema: &mut Map<String, Value>) {
    match schema.get("default") {
        Some(Value::Null) => drop(schema.remove("default")),
        Some(_) => return, // here null is not the same as left out
        None => {}
    }
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    let is_null = |schema: &Value| schema.get("type").is_some_and(|kind| kind == "null");
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| !is_null(choice));
        if let [Value::Object(only)] = choices.as_mut_slice() {
            let only = std::mem::take(only);
            schema.remove("anyOf");
            for (key, value) in only {
                schema.entry(key).or_insert(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use schemars::JsonSchema;

    use super::*;

    fn schema_of<T: JsonSchema>(required: bool) -> Value {
        let mut generator = generator();
        let schema = generator.subschema_for::<T>();
        object(vec![Property { name: "a", description: "An a.", schema, required }], generator)
    }

    fn argument_of<T: JsonSchema>(required: bool) -> Value {
        schema_of::<T>(required)["properties"]["a"].clone()
    }

    #[derive(JsonSchema)]
    #[serde(rename_all = "snake_case")]
    #[allow(dead_code)]
    enum Speed {
        Slow,
        Fast,
    }

    #[derive(JsonSchema)]
    #[allow(dead_code)]
    struct Inner {
        /// How fast.
        speed: Speed,
        note: Option<String>,
        tags: Vec<u8>,
    }

    #[derive(JsonSchema)]
    #[allow(dead_code)]
    struct Node {
        children: Vec<Node>,
    }

    #[test]
    fn a_closed_object_without_noise() {
        assert_eq!(
            schema_of::<u64>(true),
            json!({
                "type": "object",
                "properties": {"a": {"type": "integer", "minimum": 0, "description": "An a."}},
                "required": ["a"],
                "additionalProperties": false,
            })
        );
        assert_eq!(
            object(Vec::new(), generator()),
            json!({"type": "object", "properties": {}, "additionalProperties": false})
        );
    }

    #[test]
    fn what_may_be_left_out_is_not_null_too() {
        assert_eq!(argument_of::<Option<bool>>(false), json!({"type": "boolean", "description": "An a."}));
        assert_eq!(
            argument_of::<Option<Speed>>(false),
            json!({"type": "string", "enum": ["slow", "fast"], "description": "An a."})
        );
        let inner = argument_of::<Option<Inner>>(false);
        assert_eq!(inner["type"], "object", "{inner}");
        assert_eq!(inner["description"], "An a.");
    }

    #[test]
    fn what_must_be_there_may_still_be_null() {
        assert_eq!(argument_of::<Option<bool>>(true)["type"], json!(["boolean", "null"]));
    }

    #[test]
    fn where_null_is_not_left_out_it_may_be_said() {
        fn two() -> Option<u8> {
            Some(2)
        }
        #[derive(JsonSchema)]
        #[allow(dead_code)]
        struct Defaults {
            #[serde(default = "two")]
            two: Option<u8>,
            #[serde(default)]
            none: Option<u8>,
        }
        let properties = argument_of::<Defaults>(true)["properties"].clone();
        assert_eq!(properties["two"]["type"], json!(["integer", "null"]), "{properties}");
        assert_eq!(properties["two"]["default"], json!(2));
        assert_eq!(properties["none"]["type"], "integer");
        assert_eq!(properties["none"].get("default"), None);
    }

    #[test]
    fn nested_types_stand_where_they_are_used() {
        assert_eq!(
            argument_of::<Vec<Inner>>(true),
            json!({
                "type": "array",
                "description": "An a.",
                "items": {
                    "type": "object",
                    "properties": {
                        "speed": {"type": "string", "enum": ["slow", "fast"], "description": "How fast."},
                        "note": {"type": "string"},
                        "tags": {
                            "type": "array",
                            "items": {"type": "integer", "minimum": 0, "maximum": 255},
                        },
                    },
                    "required": ["speed", "tags"],
                },
            })
        );
    }

    #[test]
    fn only_a_type_that_contains_itself_is_referred_to() {
        let schema = schema_of::<Node>(true);
        assert!(schema["$defs"]["Node"].is_object(), "{schema}");
        assert!(schema.to_string().contains("#/$defs/Node"), "{schema}");
        assert!(schema_of::<(Speed, Speed)>(true).get("$defs").is_none());
    }

    #[test]
    fn a_member_called_format_is_a_member() {
        #[derive(JsonSchema)]
        #[allow(dead_code)]
        struct Odd {
            format: String,
            title: u32,
        }
        let odd = argument_of::<Odd>(true);
        assert_eq!(
            odd["properties"],
            json!({
                "format": {"type": "string"},
                "title": {"type": "integer", "minimum": 0},
            })
        );
        assert_eq!(
            argument_of::<BTreeMap<String, f32>>(true)["additionalProperties"],
            json!({"type": "number"})
        );
    }

    #[test]
    fn anything_goes_is_an_object_without_rules() {
        assert_eq!(argument_of::<Value>(true), json!({"description": "An a."}));
    }
}
