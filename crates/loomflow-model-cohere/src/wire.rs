//! The embed API, version 2, as plain data.

use std::sync::Arc;

use loomflow_core::{EmbedPurpose, Embedded, Error, ErrorKind, Result, Usage};
use loomflow_support_model::{BoundedList, Reported, broke_protocol, vectors_in_order};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The most texts of one request.
pub(crate) const MAX_TEXTS: usize = 96;
/// The most components of a vector that are read.
const MAX_DIMENSIONS: usize = 65_536;

#[derive(Serialize)]
struct Body<'t> {
    model: &'t str,
    texts: Vec<&'t str>,
    input_type: &'static str,
    embedding_types: [&'static str; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    output_dimension: Option<usize>,
    /// A text that is too long is refused. Cut short in silence, it would be found by less than what it says.
    truncate: &'static str,
}

/// The body of a request for the vectors of `texts`, of as many components as `output_dimension` says if it says so.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] for a purpose that this version does not know.
pub fn encode(
    model: &str,
    texts: &[Arc<str>],
    purpose: EmbedPurpose,
    output_dimension: Option<usize>,
) -> Result<Vec<u8>> {
    let input_type = match purpose {
        EmbedPurpose::Document => "search_document",
        EmbedPurpose::Query => "search_query",
        _ => return Err(Error::unsupported("the Cohere embedder", "vectors for this purpose")),
    };
    let body = Body {
        model,
        texts: texts.iter().map(|text| &**text).collect(),
        input_type,
        embedding_types: ["float"],
        output_dimension,
        truncate: "NONE",
    };
    serde_json::to_vec(&body)
        .map_err(|e| Error::new(ErrorKind::Internal, "the texts could not be written as JSON").with_source(e))
}

#[derive(Deserialize)]
struct Answer {
    embeddings: ByType,
    #[serde(default)]
    meta: Option<Meta>,
}

#[derive(Deserialize)]
struct ByType {
    float: BoundedList<BoundedList<Component, MAX_DIMENSIONS>, MAX_TEXTS>,
}

/// Read in double precision, so that one that is too large becomes infinite, which is told as what it is.
#[derive(Deserialize)]
#[serde(from = "f64")]
struct Component(f32);

impl From<f64> for Component {
    #[allow(clippy::cast_possible_truncation, reason = "vectors are kept in single precision")]
    fn from(number: f64) -> Self {
        Self(number as f32)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Meta {
    billed_units: Option<Billed>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Billed {
    /// Some versions write whole numbers as `12.0`.
    input_tokens: Value,
}

/// The vectors of an answer to a request for `texts` of them, each of `dimensions` components, and what they used; `None`
/// where the provider does not say.
///
/// # Errors
///
/// The provider's own error, typed, and [`broke_protocol`] for vectors of the wrong number or length, for components that
/// are not finite, and for what is no answer. The latter charges: the provider has done its work.
pub fn read(answer: &[u8], texts: usize, dimensions: usize) -> Result<Embedded> {
    let answer: Answer = match serde_json::from_slice(answer) {
        Ok(answer) => answer,
        Err(why) => return Err(no_answer(answer, &why)),
    };
    let vectors = answer
        .embeddings
        .float
        .0
        .into_iter()
        .map(|vector| (None, vector.0.into_iter().map(|component| component.0).collect()))
        .collect();
    let vectors = vectors_in_order(vectors, texts, dimensions)?;
    let billed = answer.meta.and_then(|meta| meta.billed_units).and_then(|units| tokens(&units.input_tokens));
    Ok(Embedded::new(vectors, billed.map(|tokens| Usage::new(tokens, 0))))
}

/// A count of tokens. No text is without any, so nothing is no report.
fn tokens(count: &Value) -> Option<u64> {
    let whole = |number: f64| {
        let fits = number.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(&number);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is whole and fits")]
        fits.then_some(number as u64)
    };
    count.as_u64().filter(|tokens| *tokens > 0).or_else(|| count.as_f64().and_then(whole))
}

fn no_answer(body: &[u8], why: &serde_json::Error) -> Error {
    if let Some(report) = read_error(body) {
        return report.into_error();
    }
    // The parser's own words could repeat all of the text, so only the place is told.
    let problem = if why.is_data() { "is not as the embed API has it" } else { "is not JSON" };
    broke_protocol(format!("the answer {problem} (line {}, column {})", why.line(), why.column()))
}

/// What an error body tells; `None` when it is not in the provider's form. There are no codes in it, only words.
#[must_use]
pub fn read_error(body: &[u8]) -> Option<Reported> {
    #[derive(Deserialize)]
    struct Told {
        message: String,
    }
    let Told { message } = serde_json::from_slice(body).ok()?;
    let too_long = message.contains("too long").then_some("context_length_exceeded");
    Some(Reported::new(too_long, message))
}
