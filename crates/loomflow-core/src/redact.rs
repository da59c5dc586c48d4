//! The only payload type that audit, journal, telemetry and log sinks accept, and the one redactor that makes it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::secret::Secret;

/// A payload that went through the redactor. Sinks accept nothing else, so nothing raw can reach them.
///
/// There is no public constructor: only [`Redactor`] makes one.
#[derive(Clone, PartialEq, Eq)]
pub struct Redacted<T>(T);

impl<T> Redacted<T> {
    pub(crate) fn seal(value: T) -> Self {
        Self(value)
    }

    /// The redacted payload.
    #[must_use]
    pub fn get(&self) -> &T {
        &self.0
    }

    /// The redacted payload, taken out.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Finds secrets in text and takes them out.
pub trait Scrub: fmt::Debug + Send + Sync + 'static {
    /// The text without its secrets; borrowed when there was nothing to take out.
    fn scrub<'t>(&self, text: &'t str) -> Cow<'t, str>;

    /// The value of an object's member without its secrets: here the name can say that the value is one.
    fn scrub_member<'t>(&self, key: &str, value: &'t str) -> Cow<'t, str> {
        let _ = key;
        self.scrub(value)
    }

    /// Learns a secret that was resolved in this process, so that it is found exactly from now on.
    fn register(&self, secret: &Arc<Secret<String>>) {
        let _ = secret;
    }
}

/// Takes nothing out. For an agent whose sinks never leave the process, and for tests.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit that is what its name says")]
pub struct KeepAll;

impl Scrub for KeepAll {
    fn scrub<'t>(&self, text: &'t str) -> Cow<'t, str> {
        Cow::Borrowed(text)
    }
}

/// Makes [`Redacted`] payloads with one [`Scrub`].
#[derive(Clone, Debug)]
pub struct Redactor(Arc<dyn Scrub>);

impl Redactor {
    /// A redactor over `scrub`.
    #[must_use]
    pub fn new(scrub: Arc<dyn Scrub>) -> Self {
        Self(scrub)
    }

    /// Redacts plain text.
    #[must_use]
    pub fn text(&self, text: &str) -> Redacted<String> {
        Redacted::seal(self.0.scrub(text).into_owned())
    }

    /// Starts a JSON object whose every string is redacted as it is written.
    #[must_use]
    pub fn object(&self) -> ObjectWriter<'_> {
        ObjectWriter { scrub: &*self.0, out: String::with_capacity(128) }
    }

    /// Redacts every string, number and member name of a JSON value; a number that is a secret becomes a string.
    #[must_use]
    pub fn json(&self, value: &Value) -> Redacted<String> {
        let mut out = String::new();
        write_value(&mut out, &*self.0, None, value);
        Redacted::seal(out)
    }

    /// Learns a secret that was resolved in this process.
    pub fn register(&self, secret: &Arc<Secret<String>>) {
        self.0.register(secret);
    }

    /// A redactor that takes out what either does.
    pub(crate) fn and(&self, other: &Self) -> Self {
        if Arc::ptr_eq(&self.0, &other.0) {
            self.clone()
        } else {
            Self(Arc::new(Both(self.clone(), other.clone())))
        }
    }
}

/// One scrub after another.
#[derive(Debug)]
struct Both(Redactor, Redactor);

impl Both {
    fn each<'t>(
        &self,
        text: &'t str,
        scrub: impl for<'a> Fn(&dyn Scrub, &'a str) -> Cow<'a, str>,
    ) -> Cow<'t, str> {
        match scrub(&*self.0.0, text) {
            Cow::Borrowed(text) => scrub(&*self.1.0, text),
            Cow::Owned(text) => Cow::Owned(scrub(&*self.1.0, &text).into_owned()),
        }
    }
}

impl Scrub for Both {
    fn scrub<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.each(text, |scrub, text| scrub.scrub(text))
    }

    fn scrub_member<'t>(&self, key: &str, value: &'t str) -> Cow<'t, str> {
        self.each(value, |scrub, text| scrub.scrub_member(key, text))
    }

    fn register(&self, secret: &Arc<Secret<String>>) {
        self.0.register(secret);
        self.1.register(secret);
    }
}

/// Writes one JSON object, redacting each string before it is escaped, so that no escape can hide a secret.
#[derive(Debug)]
pub struct ObjectWriter<'r> {
    scrub: &'r dyn Scrub,
    out: String,
}

impl ObjectWriter<'_> {
    /// Adds a string member, redacted.
    #[must_use]
    pub fn str(mut self, key: &'static str, value: &str) -> Self {
        self.key(key);
        write_string(&mut self.out, &self.scrub.scrub_member(key, value));
        self
    }

    /// Adds a string member that the framework itself made, such as an id or an enum's name.
    #[must_use]
    pub(crate) fn name(mut self, key: &'static str, value: &str) -> Self {
        self.key(key);
        write_string(&mut self.out, value);
        self
    }

    /// Adds a string member formatted from something the framework itself made.
    #[must_use]
    pub(crate) fn show(self, key: &'static str, value: impl fmt::Display) -> Self {
        let text = value.to_string();
        self.name(key, &text)
    }

    /// Adds a whole number.
    #[must_use]
    pub fn num(mut self, key: &'static str, value: u64) -> Self {
        self.key(key);
        push_u64(&mut self.out, value);
        self
    }

    /// Adds a boolean.
    #[must_use]
    pub fn bool(mut self, key: &'static str, value: bool) -> Self {
        self.key(key);
        self.out.push_str(if value { "true" } else { "false" });
        self
    }

    /// Adds a JSON value, every string and number in it redacted.
    #[must_use]
    pub fn json(mut self, key: &'static str, value: &Value) -> Self {
        self.key(key);
        write_value(&mut self.out, self.scrub, Some(key), value);
        self
    }

    /// Ends the object.
    #[must_use]
    pub fn finish(mut self) -> Redacted<String> {
        self.out.push_str(if self.out.is_empty() { "{}" } else { "}" });
        Redacted::seal(self.out)
    }

    fn key(&mut self, key: &'static str) {
        self.out.push(if self.out.is_empty() { '{' } else { ',' });
        write_string(&mut self.out, key);
        self.out.push(':');
    }
}

/// Appends `n` in decimal digits.
pub(crate) fn push_u64(out: &mut String, n: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    let mut rest = n;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.push_str(std::str::from_utf8(&digits[at..]).expect("digits are ASCII"));
}

/// Appends `text` as a JSON string.
pub(crate) fn write_string(out: &mut String, text: &str) {
    out.push('"');
    let mut from = 0;
    for (at, b) in text.bytes().enumerate() {
        if b >= 0x20 && b != b'"' && b != b'\\' {
            continue;
        }
        out.push_str(&text[from..at]);
        from = at + 1;
        match b {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            _ => {
                out.push_str("\\u00");
                out.push(char::from(b"0123456789abcdef"[usize::from(b >> 4)]));
                out.push(char::from(b"0123456789abcdef"[usize::from(b & 15)]));
            }
        }
    }
    out.push_str(&text[from..]);
    out.push('"');
}

/// Writes `value`, which stands under the member name `key`, itself or as an item of an array there.
fn write_value(out: &mut String, scrub: &dyn Scrub, key: Option<&str>, value: &Value) {
    let clean = |text| match key {
        Some(key) => scrub.scrub_member(key, text),
        None => scrub.scrub(text),
    };
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => {
            let digits = n.to_string();
            match &*clean(&digits) {
                same if same == digits => out.push_str(same),
                redacted => write_string(out, redacted),
            }
        }
        Value::String(s) => write_string(out, &clean(s)),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_value(out, scrub, key, item);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (i, (name, item)) in members.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_string(out, &scrub.scrub(name));
                out.push(':');
                write_value(out, scrub, Some(name), item);
            }
            out.push('}');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Star;
    impl Scrub for Star {
        fn scrub<'t>(&self, text: &'t str) -> Cow<'t, str> {
            if text.contains("se\"cret") {
                Cow::Owned(text.replace("se\"cret", "*"))
            } else {
                Cow::Borrowed(text)
            }
        }
    }

    #[test]
    fn strings_are_redacted_before_they_are_escaped() {
        let redactor = Redactor::new(Arc::new(Star));
        let nested = serde_json::json!({"a": ["x se\"cret y", 1, null, true], "se\"cret": -2.5});
        let object = redactor
            .object()
            .str("s", "se\"cret")
            .num("n", u64::MAX)
            .bool("b", false)
            .json("v", &nested)
            .finish();
        assert_eq!(
            object.get(),
            r#"{"s":"*","n":18446744073709551615,"b":false,"v":{"a":["x * y",1,null,true],"*":-2.5}}"#
        );
        assert_eq!(redactor.object().finish().get(), "{}");
    }

    #[derive(Debug)]
    struct ByName;
    impl Scrub for ByName {
        fn scrub<'t>(&self, text: &'t str) -> Cow<'t, str> {
            if text.contains("4711") { Cow::Borrowed("*") } else { Cow::Borrowed(text) }
        }

        fn scrub_member<'t>(&self, key: &str, value: &'t str) -> Cow<'t, str> {
            if key == "pin" { Cow::Borrowed("#") } else { self.scrub(value) }
        }
    }

    #[test]
    fn a_members_name_is_seen_beside_its_value_and_numbers_are_redacted() {
        let redactor = Redactor::new(Arc::new(ByName));
        let value = serde_json::json!({"n": 47110, "pin": "a", "in": {"pin": ["b", 1], "x": [2]}, "x": "c"});
        let clean = r##"{"in":{"pin":["#","#"],"x":[2]},"n":"*","pin":"#","x":"c"}"##;
        let same = |text: &str| {
            assert_eq!(
                serde_json::from_str::<Value>(text).unwrap(),
                serde_json::from_str::<Value>(clean).unwrap()
            );
        };
        same(redactor.json(&value).get());
        let object = redactor.object().str("pin", "a").str("x", "4711").json("pin", &serde_json::json!(1));
        assert_eq!(object.finish().get(), r##"{"pin":"#","x":"*","pin":"#"}"##);
    }

    #[test]
    fn every_character_survives_the_writer() {
        let text: String = (0..0x300_u32).filter_map(char::from_u32).chain("\u{2028}😀".chars()).collect();
        let mut out = String::new();
        write_string(&mut out, &text);
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
    }
}
