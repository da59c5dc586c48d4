//! The oracle's ranking: the formulas of the contract as they are written, over words as strings.

use std::collections::BTreeMap;

use loomflow_core::{Embedding, Timestamp};

/// Something that is ranked.
pub(super) struct Doc {
    pub(super) words: Vec<String>,
    pub(super) vector: Option<Embedding>,
    /// Larger goes first.
    pub(super) tie: (Timestamp, u128),
    /// Counted, and not ranked.
    pub(super) out: bool,
}

/// A document that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hit {
    /// Its place among the documents.
    pub(super) doc: usize,
    pub(super) score: f64,
    pub(super) bm25: Option<f64>,
    pub(super) cosine: Option<f64>,
}

pub(super) fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|w| !w.is_empty())
        .map(|w| w.chars().flat_map(char::to_lowercase).collect())
        .collect()
}

/// The best `limit` documents, best first.
pub(super) fn rank(docs: &[Doc], text: &str, vector: Option<&Embedding>, limit: usize) -> Vec<Hit> {
    let mut query: Vec<String> = Vec::new();
    for word in words(text) {
        if !query.contains(&word) {
            query.push(word);
        }
    }
    query.truncate(256);
    let open: Vec<usize> = (0..docs.len()).filter(|i| !docs[*i].out).collect();
    if query.is_empty() && vector.is_none() {
        let mut all: Vec<(usize, f64)> = open.into_iter().map(|i| (i, 0.0)).collect();
        best_first(docs, &mut all);
        all.truncate(limit);
        return all.into_iter().map(|(doc, score)| Hit { doc, score, bm25: None, cosine: None }).collect();
    }
    let mut by_words: Vec<(usize, f64)> =
        open.iter().map(|i| (*i, bm25(docs, &query, &docs[*i]))).filter(|(_, s)| *s > 0.0).collect();
    // Rounded, so that vectors of one direction tie.
    let mut by_vector: Vec<(usize, f64)> =
        open.iter().filter_map(|i| Some((*i, (cosine(vector?, &docs[*i])? * 1e6).round()))).collect();
    best_first(docs, &mut by_words);
    best_first(docs, &mut by_vector);
    let mut fused: BTreeMap<usize, f64> = BTreeMap::new();
    for list in [&by_words, &by_vector] {
        for (rank, (i, _)) in list.iter().enumerate() {
            *fused.entry(*i).or_default() += 1.0 / (60.0 + (rank as f64 + 1.0));
        }
    }
    let mut out: Vec<(usize, f64)> = fused.into_iter().collect();
    best_first(docs, &mut out);
    out.truncate(limit);
    let hit = |(doc, score): (usize, f64)| Hit {
        doc,
        score,
        bm25: by_words.iter().find(|(i, _)| *i == doc).map(|(_, s)| *s),
        cosine: vector.and_then(|vector| cosine(vector, &docs[doc])),
    };
    out.into_iter().map(hit).collect()
}

fn best_first(docs: &[Doc], list: &mut [(usize, f64)]) {
    list.sort_by(|(a, x), (b, y)| y.total_cmp(x).then(docs[*b].tie.cmp(&docs[*a].tie)));
}

fn bm25(docs: &[Doc], query: &[String], doc: &Doc) -> f64 {
    let n = docs.len() as f64;
    let average = docs.iter().map(|d| d.words.len()).sum::<usize>() as f64 / n;
    let mut score = 0.0;
    for word in query {
        let df = docs.iter().filter(|d| d.words.contains(word)).count() as f64;
        let tf = doc.words.iter().filter(|w| *w == word).count() as f64;
        if tf > 0.0 {
            let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
            score += idf
                * (tf * (1.2 + 1.0) / (tf + 1.2 * (1.0 - 0.75 + 0.75 * (doc.words.len() as f64 / average))));
        }
    }
    score
}

/// The cosine, if there are two vectors and they point the same way.
fn cosine(query: &Embedding, doc: &Doc) -> Option<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let (q, d) = (&query.vector, &doc.vector.as_ref()?.vector);
    let value = dot(q, d) / (dot(q, q) * dot(d, d)).sqrt();
    (value > 1e-7).then_some(value)
}
