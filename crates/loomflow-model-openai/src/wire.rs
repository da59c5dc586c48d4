//! The shape of a reply as servers send it, read leniently: a member of another type than expected is as good as none.
//!
//! Nothing here keeps more than it needs: unknown members are skipped as they are read, and lists are bounded.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;

/// The most entries of a list within one event. More of them is nothing that a model said.
const ENTRIES: usize = 512;

/// An event of a stream, or a whole reply.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Chunk {
    pub(crate) object: Text,
    pub(crate) choices: List<Choice>,
    pub(crate) usage: Option<Box<RawValue>>,
    pub(crate) x_groq: Option<Box<RawValue>>,
    pub(crate) error: Option<Box<RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Choice {
    pub(crate) index: Count,
    pub(crate) delta: Option<Said>,
    pub(crate) message: Option<Said>,
    pub(crate) finish_reason: Text,
}

/// A reply, or a piece of it.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Said {
    pub(crate) content: Words,
    pub(crate) refusal: Text,
    pub(crate) reasoning_content: Text,
    pub(crate) reasoning: Text,
    pub(crate) tool_calls: List<CallPiece>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct CallPiece {
    pub(crate) index: Count,
    pub(crate) id: Text,
    pub(crate) function: Option<FunctionPiece>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct FunctionPiece {
    pub(crate) name: Text,
    arguments: Option<Box<RawValue>>,
}

impl FunctionPiece {
    /// The arguments' text; of a server that sends an object instead, the object's.
    pub(crate) fn arguments(&self) -> String {
        let raw = self.arguments.as_deref().map_or("null", RawValue::get);
        if raw.starts_with('"') {
            return serde_json::from_str(raw).unwrap_or_default();
        }
        if raw == "null" { String::new() } else { raw.to_owned() }
    }
}

/// A string; empty for `null` and for anything that is none.
#[derive(Debug, Default)]
pub(crate) struct Text(pub(crate) String);

/// A whole number that is not negative.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Count(pub(crate) Option<u64>);

/// A string, or the text of a list of parts.
#[derive(Debug, Default)]
pub(crate) struct Words(pub(crate) String);

/// A list of at most `MAX` entries; empty for `null`.
#[derive(Debug)]
pub(crate) struct List<T, const MAX: usize = ENTRIES>(pub(crate) Vec<T>);

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Loose).map(|loose| match loose {
            Value::Text(text) => Self(text),
            Value::Count(_) | Value::Other => Self::default(),
        })
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Loose).map(|loose| match loose {
            Value::Count(count) => Self(Some(count)),
            Value::Text(_) | Value::Other => Self::default(),
        })
    }
}

enum Value {
    Text(String),
    Count(u64),
    Other,
}

/// Takes any JSON value, and keeps only what is small.
struct Loose;

impl<'de> Visitor<'de> for Loose {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_u64<E: de::Error>(self, count: u64) -> Result<Value, E> {
        Ok(Value::Count(count))
    }

    fn visit_i64<E: de::Error>(self, _negative: i64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Value, E> {
        // Servers in languages with one kind of number write 12.0.
        let whole = number.fract() == 0.0 && (0.0..9e15).contains(&number);
        Ok(if whole { Value::Count(number as u64) } else { Value::Other })
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(WordsVisitor)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContentPart {
    r#type: Text,
    text: Text,
}

struct WordsVisitor;

impl<'de> Visitor<'de> for WordsVisitor {
    type Value = Words;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, or a list of parts")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Words, E> {
        Ok(Words(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Words, E> {
        Ok(Words(text))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Words, E> {
        Ok(Words::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Words, A::Error> {
        let mut words = Words::default();
        while let Some(part) = parts.next_element::<ContentPart>()? {
            if matches!(part.r#type.0.as_str(), "text" | "output_text" | "") {
                words.0.push_str(&part.text.0);
            }
        }
        Ok(words)
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for ListVisitor<T, MAX> {
    type Value = List<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E: de::Error>(self) -> Result<List<T, MAX>, E> {
        Ok(List::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<List<T, MAX>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = list.next_element()? {
            if entries.len() >= MAX {
                return Err(de::Error::custom("a list with too many entries"));
            }
            entries.push(entry);
        }
        Ok(List(entries))
    }
}
