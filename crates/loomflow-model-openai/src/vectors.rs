//! An embeddings answer, read and checked.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use loomflow_core::{Embedded, Result, Usage};
use loomflow_support_model::{broke_protocol, provider_text, vectors_in_order};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::errors::{read_error, within_reply};
use crate::wire::{Count, List};

/// The most texts of one request.
pub(crate) const MAX_TEXTS: usize = 2_048;
/// The most components of a vector that are read.
const MAX_DIMENSIONS: usize = 65_536;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    data: List<Entry, MAX_TEXTS>,
    usage: Option<Report>,
    error: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    index: Count,
    embedding: Components,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Report {
    prompt_tokens: Count,
    total_tokens: Count,
}

/// `texts` vectors of `dimensions` components in the order of their texts, and what they used.
///
/// Every failure is one that charges: the server has done the work.
pub(crate) fn read(answer: &[u8], texts: usize, dimensions: usize) -> Result<Embedded> {
    let parsed: Answer = serde_json::from_slice(answer).map_err(|e| {
        // The parser repeats what it did not expect, however long that is.
        let why = provider_text(&e.to_string());
        broke_protocol(format!("the answer is not what an embeddings server sends: {why}"))
    })?;
    if let Some(error) = &parsed.error {
        return Err(within_reply(error));
    }
    if parsed.data.0.is_empty()
        && let Some(report) = read_error(answer)
    {
        return Err(report.into_error());
    }
    let used = parsed.usage.and_then(|report| report.prompt_tokens.0.or(report.total_tokens.0));
    let used = used.filter(|tokens| (1..=u64::from(u32::MAX)).contains(tokens));
    let vectors = parsed.data.0.into_iter().map(|entry| (entry.index.0, entry.embedding.0)).collect();
    let vectors = vectors_in_order(vectors, texts, dimensions)?;
    Ok(Embedded::new(vectors, used.map(|tokens| Usage::new(tokens, 0))))
}

/// Finite numbers, from base64 of little-endian floats or from a list.
struct Components(Vec<f32>);

impl<'de> Deserialize<'de> for Components {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ComponentsVisitor)
    }
}

struct ComponentsVisitor;

impl<'de> Visitor<'de> for ComponentsVisitor {
    type Value = Components;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vector in base64 or as a list of numbers")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Components, E> {
        let bytes = STANDARD.decode(text).map_err(|_| E::custom("a vector is not base64"))?;
        let (floats, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() || floats.len() > MAX_DIMENSIONS {
            return Err(E::custom("a vector in base64 has a length that no vector has"));
        }
        finite(floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Components, A::Error> {
        let mut components = Vec::new();
        // In double precision, so that one that is too large becomes infinite, which is told as what it is.
        while let Some(component) = list.next_element::<f64>()? {
            if components.len() >= MAX_DIMENSIONS {
                return Err(de::Error::custom("a vector has too many components"));
            }
            #[allow(clippy::cast_possible_truncation, reason = "vectors are kept in single precision")]
            components.push(component as f32);
        }
        finite(components)
    }
}

fn finite<E: de::Error>(components: Vec<f32>) -> Result<Components, E> {
    if components.iter().all(|component| component.is_finite()) {
        return Ok(Components(components));
    }
    Err(E::custom("a vector has a component that is not a finite number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use loomflow_core::ErrorKind;

    fn vectors(answer: &str) -> Result<Vec<Vec<f32>>> {
        read(answer.as_bytes(), 2, 2).map(|done| done.vectors.iter().map(|vector| vector.to_vec()).collect())
    }

    #[test]
    fn base64_and_digits_are_read_into_the_order_of_the_texts() {
        // 1.0 and -2.5 as little-endian floats.
        let base64 = r#"{"data":[{"index":1,"embedding":"AACAPwAAIMA="},{"index":0,"embedding":[0.5,3]}],"usage":{"prompt_tokens":9,"total_tokens":9}}"#;
        let done = read(base64.as_bytes(), 2, 2).unwrap();
        assert_eq!(*done.vectors[0], [0.5, 3.0]);
        assert_eq!(*done.vectors[1], [1.0, -2.5]);
        assert_eq!(done.usage, Some(Usage::new(9, 0)));
        let unnumbered = r#"{"data":[{"embedding":[1,2]},{"embedding":[3,4]}]}"#;
        assert_eq!(vectors(unnumbered).unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
        assert_eq!(read(unnumbered.as_bytes(), 2, 2).unwrap().usage, None);
        let zero = r#"{"data":[{"embedding":[1,2]},{"embedding":[3,4]}],"usage":{"prompt_tokens":0}}"#;
        assert_eq!(read(zero.as_bytes(), 2, 2).unwrap().usage, None);
    }

    #[test]
    fn what_is_wrong_is_an_error_that_charges() {
        for (wrong, why) in [
            (r#"{"data":[{"index":0,"embedding":[1,2]}]}"#, "1 vectors for 2 texts"),
            (r#"{"data":[{"index":0,"embedding":[1,2]},{"index":0,"embedding":[1,2]}]}"#, "index"),
            (r#"{"data":[{"index":0,"embedding":[1,2]},{"index":40000000,"embedding":[1,2]}]}"#, "index"),
            (
                r#"{"data":[{"index":0,"embedding":[1,2]},{"index":1,"embedding":[1]}]}"#,
                "1 components where 2",
            ),
            (r#"{"data":[{"index":0,"embedding":[1e39,2]},{"index":1,"embedding":[1,2]}]}"#, "finite"),
            (r#"{"data":[{"index":0,"embedding":"AADAfwAAgD8="},{"index":1,"embedding":[1,2]}]}"#, "finite"),
            (
                r#"{"data":[{"index":0,"embedding":"AACAPw=="},{"index":1,"embedding":[1,2]}]}"#,
                "1 components",
            ),
            (r#"{"data":[{"index":0,"embedding":"AAA="},{"index":1,"embedding":[1,2]}]}"#, "length"),
            (r#"{"data":[{"index":0,"embedding":"!"},{"index":1,"embedding":[1,2]}]}"#, "base64"),
            (r#"{"data":[]}"#, "0 vectors"),
            ("<html>", "not what an embeddings server sends"),
            ("", "not what an embeddings server sends"),
        ] {
            let error = vectors(wrong).unwrap_err();
            assert!(error.message().contains(why), "{wrong}: {error}");
            assert_eq!(error.kind(), ErrorKind::Transport);
        }
        let long = format!(r#"{{"data":{:?}}}"#, "x".repeat(100_000));
        assert!(vectors(&long).unwrap_err().message().len() < 1_000, "an answer is not an error message");
        let told = vectors(r#"{"error":{"message":"no","code":"rate_limit_exceeded"}}"#).unwrap_err();
        assert_eq!(told.kind(), ErrorKind::RateLimited);
    }
}
