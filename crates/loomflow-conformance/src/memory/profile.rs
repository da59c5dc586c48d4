//! What is held, counted and exported.

use loomflow_core::{MemoryProfile, NewFact, PutBlock};

use super::Harness;
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, at, canary, export, export_text, new_run, open_one, session, turn};

/// The profile of an unknown partition is all zeros, and its own.
pub async fn of_an_unknown_partition_is_zero(h: &Harness) -> Outcome {
    let nobody = World::new().user("nobody");
    let profile = h.store().profile(&nobody).await.must("profile");
    assert_eq!(open_one(&nobody, profile, "profile"), MemoryProfile::default());
    Passed
}

/// The profile counts episodes, blocks and the facts that hold now, and knows when the tenant was last seen.
pub async fn counts_what_is_held(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    for i in 0..3 {
        h.remember(&alice, turn(new_run(), &session("s"), at(i), "hi", "ho")).await;
    }
    h.store().put_block(&alice, PutBlock::new("a", "text", at(0))).await.must("put_block");
    let mut expected_facts = 0;
    if let Some(facts) = h.facts() {
        let now = NewFact::new("alice", "likes", "tea", at(0));
        let past = NewFact::new("alice", "likes", "milk", at(1)).with_validity(at(1), Some(at(2)));
        facts.assert(&alice, now).await.must("assert");
        facts.assert(&alice, past).await.must("assert");
        expected_facts = 1;
    }
    let profile = open_one(&alice, h.store().profile(&alice).await.must("profile"), "profile");
    assert_eq!((profile.episodes, profile.blocks), (3, 1), "episodes and blocks are counted");
    assert_eq!(profile.facts, expected_facts, "facts that hold now are counted");
    assert_eq!(profile.sample_facts.len() as u64, expected_facts, "a fact that no longer holds is no sample");
    assert_eq!(profile.last_seen, Some(at(2)), "the newest episode says when the tenant was last seen");
    Passed
}

/// The profile names the sessions of the newest episodes, newest first, each once, at most ten.
pub async fn lists_recent_sessions_newest_first(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    for i in 0..12 {
        h.remember(&alice, turn(new_run(), &session(&format!("s{i}")), at(i), "hi", "ho")).await;
    }
    h.remember(&alice, turn(new_run(), &session("s5"), at(100), "hi", "ho")).await;
    let profile = open_one(&alice, h.store().profile(&alice).await.must("profile"), "profile");
    let named: Vec<&str> = profile.recent_sessions.iter().map(|s| s.as_str()).collect();
    assert_eq!(named, ["s5", "s11", "s10", "s9", "s8", "s7", "s6", "s4", "s3", "s2"]);
    Passed
}

/// An export holds every episode (oldest first), block and fact, also facts that are no longer believed.
pub async fn export_is_complete(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let said: Vec<String> = (0..30).map(|_| canary()).collect();
    for (i, word) in said.iter().enumerate() {
        h.remember(&alice, turn(new_run(), &session("s"), at(i as i64), word, "r")).await;
    }
    let block = canary();
    h.store().put_block(&alice, PutBlock::new("a", block.as_str(), at(0))).await.must("put_block");
    let (old, new) = (canary(), canary());
    if let Some(facts) = h.facts() {
        for (value, when) in [(&old, 0), (&new, 5)] {
            let fact = NewFact::new("alice", "lives_in", value.as_str(), at(when))
                .with_cardinality(loomflow_core::Cardinality::One);
            facts.assert(&alice, fact).await.must("assert");
        }
    }
    let items = export(h.store(), &alice).await;
    let of_kind = |kind: &str| items.iter().filter(|i| i.kind == kind).collect::<Vec<_>>();
    let episodes = of_kind("episode");
    assert_eq!(episodes.len(), said.len(), "every episode is exported, once");
    for (item, word) in episodes.iter().zip(&said) {
        assert!(item.data.to_string().contains(word.as_str()), "episodes are exported oldest first");
    }
    assert_eq!(of_kind("block").len(), 1, "every block is exported");
    let text = export_text(&items);
    assert!(text.contains(&block), "a block is exported with its text");
    if h.facts().is_some() {
        assert!(of_kind("fact").len() >= 2, "every fact is exported");
        assert!(text.contains(&new) && text.contains(&old), "what is no longer believed is still held");
    }
    Passed
}

/// The export of an unknown partition is an empty stream, not an error.
pub async fn export_of_an_unknown_partition_is_empty(h: &Harness) -> Outcome {
    let nobody = World::new().user("nobody");
    assert!(export(h.store(), &nobody).await.is_empty());
    Passed
}
