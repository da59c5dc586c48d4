//! Schemas and values in few words, for messages to a model. Everything that came from the model is bounded.

use serde_json::Value;

/// How much of one value is repeated to whoever sent it, in characters.
const MAX_ECHO: usize = 100;

/// How long the words for a type may get, in characters.
const MAX_TYPE: usize = 120;

/// How long the "expected .." part of a decoder's message may get, in characters.
const MAX_EXPECTED: usize = 200;

/// How far into a schema the words go.
const MAX_DEPTH: u8 = 3;

/// The beginning of a text, on one line. What is left out is marked.
pub(crate) fn excerpt(text: &str, most: usize) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == most {
            out.push('…');
            break;
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// A name that the model gave.
pub(crate) fn named(name: &str) -> String {
    excerpt(name, MAX_ECHO)
}

/// A decoder's message. The value in it may be long; what was expected instead stands at its end and is kept.
pub(crate) fn complaint(message: &str) -> String {
    match message.rfind(", expected ") {
        Some(at) => {
            let (found, expected) = message.split_at(at);
            format!("{}{}", excerpt(found, MAX_ECHO), excerpt(expected, MAX_EXPECTED))
        }
        None => excerpt(message, MAX_EXPECTED),
    }
}

/// What a schema asks for. `root` is where its references lead.
pub(crate) fn type_words(schema: &Value, root: &Value) -> String {
    excerpt(&words(schema, root, 0), MAX_TYPE)
}

fn words(schema: &Value, root: &Value, depth: u8) -> String {
    if depth > MAX_DEPTH {
        return "value".to_owned();
    }
    let of = |schema: &Value| words(schema, root, depth + 1);
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        return target.strip_prefix('#').and_then(|path| root.pointer(path)).map_or("value".to_owned(), of);
    }
    if let Some(value) = schema.get("const") {
        return value.to_string();
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        let values: Vec<String> = values.iter().map(Value::to_string).collect();
        return format!("one of {}", values.join(", "));
    }
    if let Some(choices) = ["oneOf", "anyOf"].iter().find_map(|key| schema.get(key)?.as_array()) {
        let mut choices: Vec<String> = choices.iter().map(of).collect();
        choices.dedup();
        return choices.join(" or ");
    }
    let one = |kind: &str| match (kind, schema.get("items")) {
        ("array", Some(items)) => format!("array of {}", of(items)),
        _ => kind.to_owned(),
    };
    match schema.get("type") {
        Some(Value::String(kind)) => one(kind),
        Some(Value::Array(kinds)) => {
            kinds.iter().filter_map(Value::as_str).map(one).collect::<Vec<_>>().join(" or ")
        }
        _ => "any value".to_owned(),
    }
}

/// The name that was probably meant: the most alike of those that are known, if it is alike enough.
pub(crate) fn meant<'n>(given: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    /// Below this likeness a guess is more likely wrong than right.
    const ALIKE: f64 = 0.65;
    let plain = |name: &str| -> String {
        name.chars().filter(|c| c.is_alphanumeric()).take(MAX_ECHO).flat_map(char::to_lowercase).collect()
    };
    let given = plain(given);
    known
        .map(|name| (strsim::normalized_damerau_levenshtein(&given, &plain(name)), name))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_type_in_words() {
        let root = json!({"$defs": {"Node": {"type": "object"}}});
        for (schema, expected) in [
            (json!({"type": "string"}), "string"),
            (json!({"type": ["integer", "null"]}), "integer or null"),
            (json!({"type": "array", "items": {"type": "number"}}), "array of number"),
            (json!({"enum": ["a", "b"]}), r#"one of "a", "b""#),
            (json!({"oneOf": [{"const": "a"}, {"const": "b"}]}), r#""a" or "b""#),
            (json!({"anyOf": [{"type": "object"}, {"type": "object"}]}), "object"),
            (json!({"$ref": "#/$defs/Node"}), "object"),
            (json!({"$ref": "#/$defs/None"}), "value"),
            (json!({"$ref": "elsewhere"}), "value"),
            (json!({}), "any value"),
            (json!(true), "any value"),
        ] {
            assert_eq!(type_words(&schema, &root), expected, "{schema}");
        }
        let circle = json!({"$defs": {"A": {"$ref": "#/$defs/A"}}});
        assert_eq!(type_words(&json!({"$ref": "#/$defs/A"}), &circle), "value");
        let many: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        assert!(type_words(&json!({"enum": many}), &root).chars().count() <= MAX_TYPE + 1);
    }

    #[test]
    fn a_complaint_keeps_what_was_expected() {
        let long = format!("invalid type: string \"{}\", expected u64", "x".repeat(10_000));
        let short = complaint(&long);
        assert!(short.ends_with("…, expected u64") && short.chars().count() < 130, "{short}");
        assert_eq!(complaint("invalid type: null, expected u64"), "invalid type: null, expected u64");
        assert_eq!(complaint("no\nnewline"), "no\\nnewline");
        assert!(complaint(&"é".repeat(10_000)).chars().count() <= MAX_EXPECTED + 1);
    }

    #[test]
    fn a_near_miss_is_recognised() {
        let known = || ["order", "amount", "customer_id"].into_iter();
        assert_eq!(meant("ordr", known()), Some("order"));
        assert_eq!(meant("Order", known()), Some("order"));
        assert_eq!(meant("customerId", known()), Some("customer_id"));
        assert_eq!(meant("amuont", known()), Some("amount"));
        assert_eq!(meant("user_id", known()), None);
        assert_eq!(meant("", known()), None);
        assert_eq!(meant(&"order".repeat(100_000), std::iter::empty()), None);
    }
}
