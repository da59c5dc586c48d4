//! Rankings: cosine, and the fusion of two rankings by reciprocal rank.

use std::cmp::Ordering;

use loomflow_core::{Embedding, Timestamp};

const RRF_K: f64 = 60.0;

/// Something that may be returned, with what it scored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Where its record is.
    pub(super) slot: u32,
    /// The first tie-breaker: newer goes first.
    pub(super) at: Timestamp,
    /// The second tie-breaker: larger goes first.
    pub(super) id: u128,
    /// The BM25 score, if words matched.
    pub(super) bm25: Option<f64>,
    /// The cosine, if it is positive.
    pub(super) cosine: Option<f32>,
    /// The fused score; filled in by [`fuse`].
    pub(super) score: f64,
}

impl Candidate {
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
pub(super) fn fuse(mut found: Vec<Candidate>, limit: usize) -> Vec<Candidate> {
    let words = found.iter().any(|c| c.bm25.is_some());
    let vectors = found.iter().any(|c| c.cosine.is_some());
    match (words, vectors) {
        (true, true) => {
            add_ranks(&mut found, |c| c.bm25.is_some(), Candidate::by_words);
            add_ranks(&mut found, |c| c.cosine.is_some(), Candidate::by_cosine);
            best(&mut found, limit, Candidate::by_score);
        }
        (true, false) => single(&mut found, limit, Candidate::by_words),
        (false, true) => single(&mut found, limit, Candidate::by_cosine),
        (false, false) => found.clear(),
    }
    found
}

/// The newest `limit` of `found`, newest first, score 0.
pub(super) fn newest(mut found: Vec<Candidate>, limit: usize) -> Vec<Candidate> {
    best(&mut found, limit, Candidate::newer_first);
    found
}

fn add_ranks(
    found: &mut [Candidate],
    has: impl Fn(&Candidate) -> bool,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
) {
    let mut ranking: Vec<usize> = (0..found.len()).filter(|i| has(&found[*i])).collect();
    ranking.sort_unstable_by(|a, b| order(&found[*a], &found[*b]));
    for (rank, at) in ranking.into_iter().enumerate() {
        found[at].score += reciprocal(rank);
    }
}

/// With one ranking the fused order is that ranking's, so only its head has to be sorted.
fn single(found: &mut Vec<Candidate>, limit: usize, order: impl Fn(&Candidate, &Candidate) -> Ordering) {
    best(found, limit, order);
    for (rank, candidate) in found.iter_mut().enumerate() {
        candidate.score = reciprocal(rank);
    }
}

fn best(found: &mut Vec<Candidate>, limit: usize, order: impl Fn(&Candidate, &Candidate) -> Ordering) {
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
pub(super) struct Probe<'q> {
    query: &'q Embedding,
    norm: f32,
}

impl<'q> Probe<'q> {
    pub(super) fn new(query: &'q Embedding) -> Self {
        let norm = dot_and_square(&query.vector, &query.vector).0.sqrt();
        Self { query, norm }
    }

    /// The cosine, if the vector is of the same model and length and the cosine is positive.
    pub(super) fn cosine(&self, other: &Embedding) -> Option<f32> {
        if other.vector.len() != self.query.vector.len() || other.model != self.query.model {
            return None;
        }
        let (dot, square) = dot_and_square(&self.query.vector, &other.vector);
        let cosine = dot / (self.norm * square.sqrt());
        // A zero or overflowing vector gives something that is not finite, and points nowhere.
        (cosine.is_finite() && cosine > 0.0).then(|| cosine.min(1.0))
    }
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
        let candidate = |slot, at, id, bm25| Candidate {
            slot,
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
        let slots: Vec<u32> = fuse(found, 3).iter().map(|c| c.slot).collect();
        assert_eq!(slots, [3, 2, 1]);
    }
}
