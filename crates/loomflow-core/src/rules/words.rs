//! Words: the tokeniser, BM25, and the form terms are stored in.
//!
//! A term is a maximal run of Unicode alphanumeric characters, lower-cased character by character, and is kept as a
//! 64-bit hash. A document is the sorted list of its terms with repeats: its length is the list's, and the frequency of
//! a term is the length of its run, so a short text costs eight bytes a word and nothing else.
//!
//! The hash is part of what durable stores hold: it is the same on every machine, and it never changes.

use crate::memory::{Fact, searchable};
use crate::message::Message;

const K1: f64 = 1.2;
const B: f64 = 0.75;

/// How many distinct words of a query count. A query can be a whole pasted document, and each of its words is looked for in
/// each text: without a bound, one message of one user could keep a store busy for everybody.
pub const MAX_QUERY_TERMS: usize = 256;

/// Below this many terms a linear search of a document beats a binary one.
const LINEAR: usize = 32;

/// A document's terms: sorted hashes, with repeats.
#[must_use]
pub fn terms<'t>(texts: impl Iterator<Item = &'t str>) -> Box<[u64]> {
    let mut terms = Vec::new();
    for text in texts {
        for_each_term(text, |term| terms.push(term));
    }
    terms.sort_unstable();
    terms.into_boxed_slice()
}

/// The terms of an episode: what recall searches.
#[must_use]
pub fn of_episode(messages: &[Message]) -> Box<[u64]> {
    terms(searchable(messages))
}

/// The terms of a fact: those of its subject, predicate and object.
#[must_use]
pub fn of_fact(fact: &Fact) -> Box<[u64]> {
    // `_` ends a word, so the words are those of `Fact::text`.
    terms([&*fact.subject, &*fact.predicate, &*fact.object].into_iter())
}

/// Terms as bytes, for a store's column: eight for each, little-endian.
#[must_use]
pub fn to_bytes(terms: &[u64]) -> Vec<u8> {
    terms.iter().flat_map(|term| term.to_le_bytes()).collect()
}

/// Terms as a store read them back. Bytes that are no whole term are left out.
#[must_use]
pub fn from_bytes(bytes: &[u8]) -> Box<[u64]> {
    bytes.as_chunks().0.iter().map(|eight| u64::from_le_bytes(*eight)).collect()
}

/// A hash of two texts, in that order, that no shift of their border shares.
#[must_use]
pub fn pair(a: &str, b: &str) -> u64 {
    let mut hash = Fnv::new();
    (a.len() as u64).to_le_bytes().iter().for_each(|byte| hash.push(*byte));
    a.bytes().chain(b.bytes()).for_each(|byte| hash.push(byte));
    hash.finish().unwrap_or(0)
}

/// Each distinct term of a sorted document, with its frequency.
pub fn frequencies(document: &[u64]) -> impl Iterator<Item = (u64, u32)> {
    document.chunk_by(|a, b| a == b).map(|run| (run[0], u32::try_from(run.len()).unwrap_or(u32::MAX)))
}

/// The distinct terms of a query. A term's column is its place among them in the order of the query's words, which is
/// the order scores are summed in, so that equal documents get bitwise equal scores.
#[derive(Clone, Debug)]
pub struct QueryTerms {
    /// (term, column), by term.
    sorted: Vec<(u64, u32)>,
}

impl QueryTerms {
    /// The distinct terms of `text`: the first [`MAX_QUERY_TERMS`] of them.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut sorted: Vec<(u64, u32)> = Vec::with_capacity((text.len() / 5 + 1).min(MAX_QUERY_TERMS));
        for_each_term(text, |term| {
            if sorted.len() == MAX_QUERY_TERMS {
                return;
            }
            // Few and nearly always new: cheaper than to sort and to close the gaps of repeats.
            if let Err(at) = sorted.binary_search_by_key(&term, |(known, _)| *known) {
                let column = u32::try_from(sorted.len()).expect("at most MAX_QUERY_TERMS");
                sorted.insert(at, (term, column));
            }
        });
        Self { sorted }
    }

    /// How many distinct terms there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether the text has no word.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The terms by column.
    #[must_use]
    pub fn by_column(&self) -> Vec<u64> {
        let mut terms = vec![0; self.len()];
        for (term, column) in &self.sorted {
            terms[*column as usize] = *term;
        }
        terms
    }

    /// Writes the frequency of each column in `document` into `row`; says whether any is there.
    fn count(&self, document: &[u64], row: &mut [u32]) -> bool {
        let mut rest = document;
        let mut any = false;
        for (term, column) in &self.sorted {
            let skip = if rest.len() <= LINEAR {
                rest.iter().position(|t| t >= term).unwrap_or(rest.len())
            } else {
                rest.partition_point(|t| t < term)
            };
            rest = &rest[skip..];
            let n = rest.iter().take_while(|t| *t == term).count();
            rest = &rest[n..];
            row[*column as usize] = u32::try_from(n).unwrap_or(u32::MAX);
            any |= n > 0;
        }
        any
    }
}

/// What BM25 knows of a collection.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "the two numbers of the formula")]
pub struct Corpus {
    /// How many documents there are.
    pub documents: usize,
    /// How many terms they have together, repeats included.
    pub terms: u64,
}

impl Corpus {
    /// How much a term counts that is in `documents_with` documents. Always positive.
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    #[must_use]
    pub fn idf(self, documents_with: usize) -> f64 {
        let n = self.documents as f64;
        let df = documents_with as f64;
        (1.0 + (n - df + 0.5) / (df + 0.5)).ln()
    }

    /// What a document's length does to the frequencies of its terms.
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    #[must_use]
    pub fn damping(self, length: usize) -> f64 {
        let average = self.terms as f64 / self.documents as f64;
        K1 * (1.0 - B + B * (length as f64 / average))
    }
}

/// What a term adds that is there `frequency` times in a document with this `damping`, for an idf of 1.
#[must_use]
pub fn saturation(frequency: u32, damping: f64) -> f64 {
    let tf = f64::from(frequency);
    tf * (K1 + 1.0) / (tf + damping)
}

/// The BM25 score of each of `documents`, 0 where nothing matches, by looking at every one of them.
///
/// `documents` may leave out those of the collection that have no term of the query: nothing but `corpus` counts them.
pub fn score_all<'d>(
    terms: &QueryTerms,
    corpus: Corpus,
    documents: impl Iterator<Item = &'d [u64]> + Clone,
) -> Vec<f64> {
    let columns = terms.len();
    let count = documents.clone().count();
    let mut frequencies = vec![0_u32; count * columns];
    let mut with = vec![0_usize; columns];
    let mut scores = vec![0.0; count];
    let mut any = false;
    for (document, row) in documents.clone().zip(frequencies.chunks_exact_mut(columns)) {
        if terms.count(document, row) {
            any = true;
            row.iter().zip(&mut with).for_each(|(tf, df)| *df += usize::from(*tf > 0));
        }
    }
    if !any {
        return scores;
    }
    let idf: Vec<f64> = with.iter().map(|df| if *df > 0 { corpus.idf(*df) } else { 0.0 }).collect();
    for ((document, row), score) in documents.zip(frequencies.chunks_exact(columns)).zip(&mut scores) {
        if row.iter().all(|tf| *tf == 0) {
            continue;
        }
        let damping = corpus.damping(document.len());
        for (tf, idf) in row.iter().zip(&idf) {
            if *tf > 0 {
                *score += idf * saturation(*tf, damping);
            }
        }
    }
    scores
}

fn for_each_term(text: &str, mut each: impl FnMut(u64)) {
    let bytes = text.as_bytes();
    let mut hash = Fnv::new();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte.is_ascii() {
            at += 1;
            if byte.is_ascii_alphanumeric() {
                hash.push(byte.to_ascii_lowercase());
            } else if let Some(term) = hash.finish() {
                each(term);
            }
            continue;
        }
        let c = text[at..].chars().next().expect("`at` is the start of a character");
        at += c.len_utf8();
        if c.is_alphanumeric() {
            for lower in c.to_lowercase() {
                lower.encode_utf8(&mut [0; 4]).bytes().for_each(|b| hash.push(b));
            }
        } else if let Some(term) = hash.finish() {
            each(term);
        }
    }
    if let Some(term) = hash.finish() {
        each(term);
    }
}

/// FNV-1a with a final mix; the same on every machine.
struct Fnv {
    state: u64,
    empty: bool,
}

impl Fnv {
    const START: u64 = 0xcbf2_9ce4_8422_2325;

    fn new() -> Self {
        Self { state: Self::START, empty: true }
    }

    fn push(&mut self, byte: u8) {
        self.state = (self.state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.empty = false;
    }

    /// The hash of what was pushed, if anything was; begins the next.
    fn finish(&mut self) -> Option<u64> {
        if self.empty {
            return None;
        }
        let mut x = self.state;
        *self = Self::new();
        x ^= x >> 32;
        x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
        Some(x ^ (x >> 32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_order(text: &str) -> Vec<u64> {
        let mut out = Vec::new();
        for_each_term(text, |t| out.push(t));
        out
    }

    #[test]
    fn terms_are_lower_cased_alphanumeric_runs() {
        assert_eq!(in_order("Hello, WORLD-42 é"), in_order("hello world 42 É"));
        assert_eq!(in_order("naïve_Straße"), in_order("NAÏVE straße"));
        assert_eq!(in_order("東京 tokyo").len(), 2);
        assert!(in_order(" .,;!—… ").is_empty());
        assert_ne!(in_order("ab c"), in_order("a bc"));
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(in_order("order"), [0xfda117db88927e84]);
    }

    #[test]
    fn stored_terms_come_back() {
        let stored = terms(["the cat, the mat"].into_iter());
        assert_eq!(from_bytes(&to_bytes(&stored)), stored);
        assert_eq!(from_bytes(&to_bytes(&stored)[..11]).len(), 1);
    }

    #[test]
    fn columns_follow_the_words_of_the_query() {
        let query = QueryTerms::parse("red blue red green blue");
        assert_eq!(query.by_column(), in_order("red blue green"));
    }

    #[test]
    fn of_a_long_query_the_first_words_count() {
        let text: String = (0..1_000).map(|n| format!("w{n} w{} ", n / 2)).collect();
        let query = QueryTerms::parse(&text);
        assert_eq!(query.len(), MAX_QUERY_TERMS);
        assert_eq!(query.by_column()[..3], in_order("w0 w1 w2"));
        assert!(!query.by_column().contains(&in_order("w999")[0]));
    }

    #[test]
    fn scores_are_those_of_the_formula() {
        let docs = [
            terms(["the cat sat"].into_iter()),
            terms(["the dog"].into_iter()),
            terms(["cat cat cat dog"].into_iter()),
        ];
        let corpus = Corpus { documents: 3, terms: 9 };
        let scores = score_all(&QueryTerms::parse("cat"), corpus, docs.iter().map(|d| &**d));
        let idf = (1.0_f64 + (3.0 - 2.0 + 0.5) / 2.5).ln();
        assert!((scores[0] - idf * 2.2 / (1.0 + 1.2)).abs() < 1e-12);
        assert!(scores[1] == 0.0);
        assert!((scores[2] - idf * 3.0 * 2.2 / (3.0 + 1.2 * (0.25 + 0.75 * 4.0 / 3.0))).abs() < 1e-12);
    }
}
