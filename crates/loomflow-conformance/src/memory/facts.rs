//! Facts: finding, reinforcing, refusing.

use loomflow_core::{AssertOutcome, Asserted, EpisodeId, ErrorKind, Fact, FactQuery, NewFact, Scope};

use super::Harness;
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, at, must_fail, new_run};

macro_rules! needs_facts {
    ($h:expr) => {
        if $h.facts().is_none() {
            return Outcome::unsupported("facts (MemoryStore::facts returns None)");
        }
    };
}
pub(super) use needs_facts;

pub(super) async fn assert_fact(h: &Harness, scope: &Scope, fact: NewFact) -> Asserted {
    h.facts().expect("asked only of a backend with facts").assert(scope, fact).await.must("assert")
}

pub(super) fn objects(facts: &[Fact]) -> Vec<&str> {
    facts.iter().map(|f| &*f.object).collect()
}

/// Facts are found by subject, predicate and value, each compared exactly, and come back as they were asserted.
pub async fn are_found_by_their_parts(h: &Harness) -> Outcome {
    needs_facts!(h);
    let alice = World::new().user("alice");
    let source = EpisodeId::from(new_run());
    let tea = NewFact::new("Alice", "likes", "tea", at(1)).with_confidence(80).with_sources(vec![source]);
    let id = assert_fact(h, &alice, tea.clone()).await.id;
    assert_fact(h, &alice, NewFact::new("alice", "likes", "tea", at(2))).await;
    assert_fact(h, &alice, NewFact::new("Alice", "owns", "cat", at(3))).await;
    let found = h.query_facts(&alice, &FactQuery::all(10).subject("Alice").predicate("likes")).await;
    assert_eq!(found, [Fact::from_new(id, &tea)], "a fact comes back as it was asserted");
    for (query, expected) in [
        (FactQuery::all(10).subject("Alice"), &["cat", "tea"][..]),
        (FactQuery::all(10).subject("ALICE"), &[]),
        (FactQuery::all(10).predicate("likes"), &["tea", "tea"]),
        (FactQuery::all(10).object("cat"), &["cat"]),
        (FactQuery::all(10).object("ca"), &[]),
        (FactQuery::all(10), &["cat", "tea", "tea"]),
    ] {
        assert_eq!(objects(&h.query_facts(&alice, &query).await), expected, "{query:?}");
    }
    Passed
}

/// Asserting what is believed already unites the sources, keeps the larger confidence, and adds no row.
pub async fn are_reinforced_instead_of_repeated(h: &Harness) -> Outcome {
    needs_facts!(h);
    let alice = World::new().user("alice");
    let (s1, s2) = (EpisodeId::from(new_run()), EpisodeId::from(new_run()));
    let fact = |when| NewFact::new("alice", "likes", "tea", at(when));
    let first = assert_fact(h, &alice, fact(1).with_confidence(40).with_sources(vec![s1])).await;
    assert_eq!((first.outcome, first.superseded.len()), (AssertOutcome::New, 0));
    for (confidence, sources, expected) in [(90, vec![s2], 90), (10, vec![s1, s2], 90)] {
        let more = fact(5).with_confidence(confidence).with_sources(sources);
        let again = assert_fact(h, &alice, more).await;
        assert_eq!((again.outcome, again.id), (AssertOutcome::Reinforced, first.id));
        let found = h.query_facts(&alice, &FactQuery::all(10)).await;
        assert_eq!(found.len(), 1, "a reinforced fact is one row");
        assert_eq!(found[0].confidence, expected, "confidence is the larger of the two");
        let mut sources = found[0].sources.clone();
        sources.sort_unstable();
        let mut both = vec![s1, s2];
        both.sort_unstable();
        assert_eq!(sources, both, "sources are united, each once");
        assert_eq!(found[0].valid_from, at(1), "since when it holds does not change");
    }
    let earlier = assert_fact(h, &alice, fact(0)).await;
    assert_eq!(earlier.outcome, AssertOutcome::New, "a validity that is not covered is news");
    Passed
}

/// Values of a predicate with many values stand side by side.
pub async fn of_many_stand_side_by_side(h: &Harness) -> Outcome {
    needs_facts!(h);
    let alice = World::new().user("alice");
    for (i, thing) in ["tea", "milk", "rain"].iter().enumerate() {
        let done = assert_fact(h, &alice, NewFact::new("alice", "likes", *thing, at(i as i64))).await;
        assert_eq!((done.outcome, done.superseded.len()), (AssertOutcome::New, 0));
    }
    assert_eq!(h.query_facts(&alice, &FactQuery::current(at(100), 10)).await.len(), 3);
    Passed
}

/// An empty part, or an end that is not after the beginning, is refused, and nothing is written.
pub async fn refuse_nonsense(h: &Harness) -> Outcome {
    needs_facts!(h);
    let alice = World::new().user("alice");
    let facts = h.facts().expect("checked above");
    let good = NewFact::new("alice", "likes", "tea", at(5));
    for (what, bad) in [
        ("an empty subject", NewFact::new("", "likes", "tea", at(5))),
        ("an empty predicate", NewFact::new("alice", "", "tea", at(5))),
        ("an empty value", NewFact::new("alice", "likes", "", at(5))),
        ("an end at the beginning", good.clone().with_validity(at(5), Some(at(5)))),
        ("an end before the beginning", good.clone().with_validity(at(5), Some(at(4)))),
    ] {
        must_fail(facts.assert(&alice, bad).await, ErrorKind::InvalidInput, &format!("a fact with {what}"));
    }
    assert!(h.query_facts(&alice, &FactQuery::all(10)).await.is_empty(), "a refused fact is not written");
    Passed
}

/// Without words, facts come newest known first, ties by larger id, and at most the limit.
pub async fn are_newest_first(h: &Harness) -> Outcome {
    needs_facts!(h);
    let alice = World::new().user("alice");
    let mut ids = Vec::new();
    for i in 0..6_i64 {
        // Two facts share each moment, so that ids decide between them.
        ids.push((
            i / 2,
            assert_fact(h, &alice, NewFact::new("a", "likes", format!("v{i}"), at(i / 2))).await.id,
        ));
    }
    ids.sort_unstable();
    ids.reverse();
    let expected: Vec<_> = ids.into_iter().map(|(_, id)| id).collect();
    let found: Vec<_> = h.query_facts(&alice, &FactQuery::all(10)).await.iter().map(|f| f.id).collect();
    assert_eq!(found, expected);
    let found: Vec<_> = h.query_facts(&alice, &FactQuery::all(3)).await.iter().map(|f| f.id).collect();
    assert_eq!(found, expected[..3]);
    assert!(h.query_facts(&alice, &FactQuery::all(0)).await.is_empty(), "a limit of zero returns nothing");
    Passed
}

/// With words, the best match comes first, and what does not match is left out.
pub async fn are_found_by_words(h: &Harness) -> Outcome {
    needs_facts!(h);
    super::recall::needs_words!(h);
    let alice = World::new().user("alice");
    for (object, when) in [("falcon", 1), ("falcon violet", 2), ("granite", 3), ("falcon harbour", 4)] {
        assert_fact(h, &alice, NewFact::new("alice", "likes", object, at(when))).await;
    }
    let query = FactQuery::all(10).about("falcon violet", None);
    assert_eq!(objects(&h.query_facts(&alice, &query).await)[0], "falcon violet");
    let mut found = h.query_facts(&alice, &FactQuery::all(10).about("falcon", None)).await;
    found.sort_by(|a, b| a.object.cmp(&b.object));
    assert_eq!(objects(&found), ["falcon", "falcon harbour", "falcon violet"]);
    assert!(h.query_facts(&alice, &FactQuery::all(10).about("zebra", None)).await.is_empty());
    Passed
}

/// An unknown partition has no facts.
pub async fn of_an_unknown_partition_are_none(h: &Harness) -> Outcome {
    needs_facts!(h);
    assert!(h.query_facts(&World::new().user("nobody"), &FactQuery::all(10)).await.is_empty());
    Passed
}
