//! Rankings: cosine, and the fusion of two rankings by reciprocal rank.

use std::cmp::Ordering;

use super::words::{self, Corpus, QueryTerms};
use crate::clock::Timestamp;
use crate::memory::Embedding;

const RRF_K: f64 = 60.0;

/// A record that a query looks at.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "what a ranking needs to know of a record")]
pub struct Candidate<'a> {
    /// The first tie-breaker: newer goes first. When an episode was said, since when a fact was known.
    pub at: Timestamp,
    /// The second tie-breaker: larger goes first.
    pub id: u128,
    /// Its terms, sorted.
    pub terms: &'a [u64],
    /// Its cosine, as [`Probe::cosine`] gives it or as the store computed it; only what is positive counts.
    pub cosine: Option<f32>,
    /// Counted in the statistics and left out of every ranking: an episode that the prompt has already.
    pub hidden: bool,
}

/// The best `limit` of `candidates`, best first, with their scores: BM25 and cosine, fused by reciprocal rank.
///
/// `corpus` is the whole collection that is ranked. `candidates` may leave out those of it that have neither a term of
/// the query nor a positive cosine.
#[must_use]
pub fn rank(query: &QueryTerms, corpus: Corpus, candidates: &[Candidate<'_>], limit: usize) -> Vec<Scored> {
    let documents = candidates.iter().map(|c| c.terms);
    let words = if query.is_empty() { Vec::new() } else { words::score_all(query, corpus, documents) };
    let mut found = Vec::new();
    for (index, candidate) in candidates.iter().enumerate().filter(|(_, c)| !c.hidden) {
        let bm25 = words.get(index).copied().filter(|score| *score > 0.0);
        let cosine = candidate.cosine.filter(|cosine| *cosine > 0.0);
        if bm25.is_some() || cosine.is_some() {
            found.push(Scored { index, at: candidate.at, id: candidate.id, bm25, cosine, score: 0.0 });
        }
    }
    fuse(found, limit)
}

/// Something that may be returned, with what it scored.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "filled in by whoever computes the scores")]
pub struct Scored {
    /// Its place among what was looked at.
    pub index: usize,
    /// The first tie-breaker: newer goes first.
    pub at: Timestamp,
    /// The second tie-breaker: larger goes first.
    pub id: u128,
    /// The BM25 score, if words matched.
    pub bm25: Option<f64>,
    /// The cosine, if it is positive.
    pub cosine: Option<f32>,
    /// The fused score; filled in by [`fuse`].
    pub score: f64,
}

impl Scored {
    fn newer_first(&self, other: &Self) -> Ordering {
        other.at.cmp(&self.at).then(other.id.cmp(&self.id))
    }

    fn by_words(&self, other: &Self) -> Ordering {
        let score = |c: &Self| c.bm25.unwrap_or(0.0);
        score(other).total_cmp(&score(self)).then_with(|| self.newer_first(other))
    }

    fn by_cosine(&self, other: &Self) -> Ordering {
        let score = |c: &Self| c.cosine.unwrap_or(0.0);
        score(other).total_cmp(&score(self)).then_with(|| self.newer_first(other))
    }

    fn by_score(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then_with(|| self.newer_first(other))
    }
}

/// The best `limit` of `found`, best first: each ranking gives 1 / (60 + rank), rank from 1.
#[must_use]
pub fn fuse(mut found: Vec<Scored>, limit: usize) -> Vec<Scored> {
    let words = found.iter().any(|c| c.bm25.is_some());
    let vectors = found.iter().any(|c| c.cosine.is_some());
    match (words, vectors) {
        (true, true) => {
            add_ranks(&mut found, |c| c.bm25.is_some(), Scored::by_words);
            add_ranks(&mut found, |c| c.cosine.is_some(), Scored::by_cosine);
            best(&mut found, limit, Scored::by_score);
        }
        (true, false) => single(&mut found, limit, Scored::by_words),
        (false, true) => single(&mut found, limit, Scored::by_cosine),
        (false, false) => found.clear(),
    }
    found
}

/// The newest `limit` of `found`, newest first, score 0.
#[must_use]
pub fn newest(mut found: Vec<Scored>, limit: usize) -> Vec<Scored> {
    best(&mut found, limit, Scored::newer_first);
    found
}

fn add_ranks(
    found: &mut [Scored],
    has: impl Fn(&Scored) -> bool,
    order: impl Fn(&Scored, &Scored) -> Ordering,
) {
    let mut ranking: Vec<usize> = (0..found.len()).filter(|i| has(&found[*i])).collect();
    ranking.sort_unstable_by(|a, b| order(&found[*a], &found[*b]));
    for (rank, at) in ranking.into_iter().enumerate() {
        found[at].score += reciprocal(rank);
    }
}

/// With one ranking the fused order is that ranking's, so only its head has to be sorted.
fn single(found: &mut Vec<Scored>, limit: usize, order: impl Fn(&Scored, &Scored) -> Ordering) {
    best(found, limit, order);
    for (rank, candidate) in found.iter_mut().enumerate() {
        candidate.score = reciprocal(rank);
    }
}

fn best(found: &mut Vec<Scored>, limit: usize, order: impl Fn(&Scored, &Scored) -> Ordering) {
    if limit == 0 {
        return found.clear();
    }
    if found.len() > limit {
        found.select_nth_unstable_by(limit - 1, &order);
        found.truncate(limit);
    }
    found.sort_unstable_by(order);
}

#[allow(clippy::cast_precision_loss, reason = "ranks stay far below 2^52")]
fn reciprocal(rank: usize) -> f64 {
    1.0 / (RRF_K + (rank + 1) as f64)
}

/// Compares one vector with many.
#[derive(Debug)]
pub struct Probe<'q> {
    query: &'q Embedding,
    norm: f32,
}

impl<'q> Probe<'q> {
    /// Prepares the vector that many will be compared with.
    #[must_use]
    pub fn new(query: &'q Embedding) -> Self {
        let norm = dot_and_square(&query.vector, &query.vector).0.sqrt();
        Self { query, norm }
    }

    /// The cosine, if the vector is of the same model and length and the cosine is positive.
    #[must_use]
    pub fn cosine(&self, other: &Embedding) -> Option<f32> {
        if other.model == self.query.model { self.cosine_of(&other.vector) } else { None }
    }

    /// The cosine with a vector of the same model, if it is of the same length and the cosine is positive.
    #[must_use]
    pub fn cosine_of(&self, other: &[f32]) -> Option<f32> {
        if other.len() != self.query.vector.len() {
            return None;
        }
        let (dot, square) = dot_and_square(&self.query.vector, other);
        let cosine = dot / (self.norm * square.sqrt());
        // A zero or overflowing vector gives something that is not finite, and points nowhere.
        (cosine.is_finite() && cosine > 0.0).then(|| cosine.min(1.0))
    }
}

/// A vector as bytes, for a store's column: four for each component, little-endian.
#[must_use]
pub fn vector_to_bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A vector as a store read it back. Bytes that are no whole component are left out.
#[must_use]
pub fn vector_from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

/// The dot product of `a` and `b`, and the square of `b`. Sixteen lanes, which the compiler turns into vector
/// instructions; the order of summation is fixed.
fn dot_and_square(a: &[f32], b: &[f32]) -> (f32, f32) {
    const LANES: usize = 16;
    let mut dot = [0.0_f32; LANES];
    let mut square = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail = a_chunks.remainder().iter().zip(b_chunks.remainder());
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            dot[lane] += x[lane] * y[lane];
            square[lane] += y[lane] * y[lane];
        }
    }
    for (lane, (x, y)) in tail.enumerate() {
        dot[lane] += x * y;
        square[lane] += y * y;
    }
    (dot.iter().sum(), square.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(model: &str, v: &[f32]) -> Embedding {
        Embedding::new(model, v)
    }

    #[test]
    fn only_comparable_vectors_that_point_the_same_way_have_a_cosine() {
        let query = vector("m", &[1.0, 0.0]);
        let probe = Probe::new(&query);
        assert_eq!(probe.cosine(&vector("m", &[2.0, 0.0])), Some(1.0));
        assert!((probe.cosine(&vector("m", &[1.0, 1.0])).unwrap() - 0.707_106_77).abs() < 1e-6);
        for other in [
            vector("n", &[1.0, 0.0]),
            vector("m", &[1.0, 0.0, 0.0]),
            vector("m", &[-1.0, 0.0]),
            vector("m", &[0.0, 1.0]),
            vector("m", &[0.0, 0.0]),
            vector("m", &[f32::NAN, 1.0]),
            vector("m", &[f32::MAX, f32::MAX]),
        ] {
            assert_eq!(probe.cosine(&other), None, "{other:?}");
        }
    }

    #[test]
    fn long_vectors_use_every_component() {
        let ones = vec![1.0_f32; 37];
        let mut last = vec![0.0_f32; 37];
        last[36] = 1.0;
        let query = vector("m", &ones);
        let cosine = Probe::new(&query).cosine(&vector("m", &last)).unwrap();
        assert!((cosine - 1.0 / 37.0_f32.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn ties_go_to_the_newer_then_to_the_larger_id() {
        let candidate = |index, at, id, bm25| Scored {
            index,
            at: Timestamp::from_micros(at),
            id,
            bm25,
            cosine: None,
            score: 0.0,
        };
        let found = vec![
            candidate(0, 1, 9, Some(1.0)),
            candidate(1, 2, 1, Some(1.0)),
            candidate(2, 2, 3, Some(1.0)),
            candidate(3, 0, 0, Some(2.0)),
        ];
        let slots: Vec<usize> = fuse(found, 3).iter().map(|c| c.index).collect();
        assert_eq!(slots, [3, 2, 1]);
    }
}
