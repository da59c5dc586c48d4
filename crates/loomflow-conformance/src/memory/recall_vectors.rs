//! Recall by vectors, and by words and vectors together.

use loomflow_core::{
    Embedding, EpisodeMatch, Erase, ErrorKind, FactQuery, NewFact, RecallQuery, RunId, Scope,
};

use super::Harness;
use super::recall::needs_words;
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, at, must_fail, session, turn};

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

/// A partition holds vectors of one model and length. Whatever brings another, a write or a query, is refused and changes
/// nothing; a user of another kind, or one whose memory was erased, is free to begin with it.
pub async fn refuses_vectors_of_another_kind(h: &Harness) -> Outcome {
    needs_vectors!(h);
    let world = World::new();
    let alice = world.user("alice");
    say(h, &alice, 1, "a", vector([1.0, 0.0, 0.0, 0.0])).await;
    let others = [
        Embedding::new("another-4", vec![1.0, 0.0, 0.0, 0.0]),
        Embedding::new("conformance-4", vec![1.0, 0.0]),
    ];
    for other in &others {
        let late =
            turn(RunId::from_u128(2), &session("s"), at(2), "b", "noted").with_embedding(other.clone());
        must_fail(h.store().remember(&alice, late).await, ErrorKind::Config, "remember with another model");
        let query = RecallQuery::new("a", 10).with_embedding(other.clone());
        must_fail(h.store().recall(&alice, &query).await, ErrorKind::Config, "recall with another model");
        let Some(facts) = h.facts() else { continue };
        let fact = NewFact::new("me", "likes", "tea", at(2)).with_embedding(other.clone());
        must_fail(facts.assert(&alice, fact).await, ErrorKind::Config, "assert with another model");
        let query = FactQuery::all(10).about("tea", Some(other.clone()));
        must_fail(facts.query(&alice, &query).await, ErrorKind::Config, "query of facts with another model");
        assert!(h.query_facts(&alice, &FactQuery::all(10)).await.is_empty(), "nothing was written");
    }
    assert_eq!(ids(&near(h, &alice, vector([1.0, 0.0, 0.0, 0.0])).await), [1], "nothing was written");
    let known =
        turn(RunId::from_u128(1), &session("s"), at(9), "z", "noted").with_embedding(others[0].clone());
    h.store().remember(&alice, known).await.must("remembering a known run, whatever it brings");
    say(h, &world.user("bob"), 1, "a", others[0].clone()).await;
    let fresh = world.user_at("alice", 1);
    h.store().forget(&fresh, &Erase::everything()).await.must("forget");
    say(h, &fresh, 3, "c", others[1].clone()).await;
    assert_eq!(ids(&near(h, &fresh, Embedding::new("conformance-4", vec![1.0, 0.0])).await), [3]);
    Passed
}

/// A vector without components, or with one that is not a finite number, is refused by writes and by queries.
pub async fn refuses_vectors_that_are_none(h: &Harness) -> Outcome {
    needs_vectors!(h);
    let alice = World::new().user("alice");
    for bad in [vec![], vec![1.0, f32::NAN], vec![f32::INFINITY, 0.0]] {
        let bad = Embedding::new("conformance-4", bad);
        let episode = turn(RunId::from_u128(1), &session("s"), at(1), "a", "r").with_embedding(bad.clone());
        must_fail(h.store().remember(&alice, episode).await, ErrorKind::InvalidInput, "remember");
        let query = RecallQuery::new("a", 10).with_embedding(bad.clone());
        must_fail(h.store().recall(&alice, &query).await, ErrorKind::InvalidInput, "recall");
        let Some(facts) = h.facts() else { continue };
        let fact = NewFact::new("me", "likes", "tea", at(1)).with_embedding(bad.clone());
        must_fail(facts.assert(&alice, fact).await, ErrorKind::InvalidInput, "assert");
        let query = FactQuery::all(10).about("tea", Some(bad));
        must_fail(facts.query(&alice, &query).await, ErrorKind::InvalidInput, "query of facts");
    }
    assert!(h.newest(&alice).await.is_empty(), "nothing was written");
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
