//! Recall by vectors, and by words and vectors together.

use loomflow_core::{Embedding, EpisodeMatch, RecallQuery, RunId, Scope};

use super::Harness;
use super::recall::needs_words;
use crate::Outcome::{self, Passed};
use crate::fixture::{World, at, session, turn};

macro_rules! needs_vectors {
    ($h:expr) => {
        if !$h.store().capabilities().vectors {
            return Outcome::unsupported("recall by vectors (Capabilities::vectors is not declared)");
        }
    };
}

fn vector(components: [f32; 4]) -> Embedding {
    Embedding::new("conformance-4", components.to_vec())
}

async fn say(h: &Harness, scope: &Scope, id: u128, words: &str, embedding: Embedding) {
    let episode = turn(RunId::from_u128(id), &session("s"), at(id as i64), words, "noted");
    h.remember(scope, episode.with_embedding(embedding)).await;
}

fn ids(found: &[EpisodeMatch]) -> Vec<u128> {
    found.iter().map(|m| m.episode.id.as_u128()).collect()
}

async fn near(h: &Harness, scope: &Scope, embedding: Embedding) -> Vec<EpisodeMatch> {
    h.recall(scope, &RecallQuery::new("", 10).with_embedding(embedding)).await
}

/// The closer in angle ranks higher, whatever the vectors' lengths; the score is 1 / (60 + rank).
pub async fn ranks_by_cosine(h: &Harness) -> Outcome {
    needs_vectors!(h);
    let alice = World::new().user("alice");
    say(h, &alice, 1, "a", vector([10.0, 10.0, 0.0, 0.0])).await;
    say(h, &alice, 2, "b", vector([0.1, 0.0, 0.0, 0.0])).await;
    say(h, &alice, 3, "c", vector([1.0, 0.2, 0.0, 0.0])).await;
    let found = near(h, &alice, vector([2.0, 0.0, 0.0, 0.0])).await;
    assert_eq!(ids(&found), [2, 3, 1], "by angle, not by length");
    for (rank, m) in (1..).zip(&found) {
        let expected = 1.0 / (60.0 + f64::from(rank));
        assert!((m.score - expected).abs() < 1e-9, "rank {rank} scores {expected}, not {}", m.score);
    }
    Passed
}

/// An episode at a right angle, pointing away, or without a vector is left out.
pub async fn leaves_out_what_points_away(h: &Harness) -> Outcome {
    needs_vectors!(h);
    let alice = World::new().user("alice");
    say(h, &alice, 1, "a", vector([1.0, 0.0, 0.0, 0.0])).await;
    say(h, &alice, 2, "b", vector([0.0, 1.0, 0.0, 0.0])).await;
    say(h, &alice, 3, "c", vector([-1.0, 0.0, 0.0, 0.0])).await;
    h.remember(&alice, turn(RunId::from_u128(4), &session("s"), at(4), "d", "r")).await;
    assert_eq!(ids(&near(h, &alice, vector([1.0, 0.0, 0.0, 0.0])).await), [1]);
    Passed
}

/// Vectors of another model, or of another length, are never compared.
pub async fn never_compares_vectors_of_two_models(h: &Harness) -> Outcome {
    needs_vectors!(h);
    let alice = World::new().user("alice");
    say(h, &alice, 1, "a", Embedding::new("another-4", vec![1.0, 0.0, 0.0, 0.0])).await;
    say(h, &alice, 2, "b", Embedding::new("conformance-4", vec![1.0, 0.0])).await;
    say(h, &alice, 3, "c", vector([1.0, 1.0, 0.0, 0.0])).await;
    assert_eq!(ids(&near(h, &alice, vector([1.0, 0.0, 0.0, 0.0])).await), [3]);
    Passed
}

/// Words and vectors are ranked each on its own and fused: being good at both beats being best at one.
pub async fn fuses_words_and_vectors(h: &Harness) -> Outcome {
    needs_vectors!(h);
    needs_words!(h);
    let alice = World::new().user("alice");
    say(h, &alice, 1, "falcon falcon falcon", vector([0.0, 1.0, 0.0, 0.0])).await;
    say(h, &alice, 2, "falcon among other birds here", vector([1.0, 0.1, 0.0, 0.0])).await;
    say(h, &alice, 3, "granite", vector([1.0, 0.0, 0.0, 0.0])).await;
    let query = RecallQuery::new("falcon", 10).with_embedding(vector([1.0, 0.0, 0.0, 0.0]));
    let found = h.recall(&alice, &query).await;
    // By words 1, 2; by vectors 3, 2. Fused: 2 has 2/62, 3 and 1 have 1/61 each, and 3 is newer.
    assert_eq!(ids(&found), [2, 3, 1], "second in both beats first in one; ties newest first");
    for (m, expected) in found.iter().zip([2.0 / 62.0, 1.0 / 61.0, 1.0 / 61.0]) {
        assert!((m.score - expected).abs() < 1e-9, "{} scores {expected}, not {}", m.episode.id, m.score);
    }
    Passed
}
