//! Facts on their two time axes: when something holds, and when it was known.

use futures_util::future::join_all;
use loomflow_core::{AssertOutcome, Cardinality, FactQuery, NewFact, Scope};

use super::Harness;
use super::facts::{assert_fact, needs_facts, objects};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, again, at};

/// `alice lives_in value`, one at a time, since `from`, learned at `known`.
fn lives(value: &str, from: i64, until: Option<i64>, known: i64) -> NewFact {
    NewFact::new("alice", "lives_in", value, at(known))
        .with_validity(at(from), until.map(at))
        .with_cardinality(Cardinality::One)
}

async fn home(h: &Harness, scope: &Scope, valid: i64, known: Option<i64>) -> Vec<String> {
    let mut query = FactQuery::current(at(valid), 10).subject("alice").predicate("lives_in");
    if let Some(known) = known {
        query = query.known_at(at(known));
    }
    objects(&h.query_facts(scope, &query).await).into_iter().map(str::to_owned).collect()
}

/// A new value ends the old one where the new one begins, and names the row it ended.
pub async fn one_value_ends_the_other(h: &Harness) -> Outcome {
    needs_facts!(h);
    let alice = World::new().user("alice");
    let old = assert_fact(h, &alice, lives("Rome", 10, None, 10)).await;
    let new = assert_fact(h, &alice, lives("Oslo", 50, None, 60)).await;
    assert_eq!((new.outcome, new.superseded), (AssertOutcome::New, vec![old.id]));
    assert_eq!(home(h, &alice, 70, None).await, ["Oslo"], "the new value holds");
    assert_eq!(home(h, &alice, 30, None).await, ["Rome"], "the old one held until then");
    assert!(home(h, &alice, 5, None).await.is_empty(), "before both, nothing is known to hold");
    let other = NewFact::new("alice", "works_in", "Rome", at(61)).with_cardinality(Cardinality::One);
    assert_fact(h, &alice, other).await;
    let bob = NewFact::new("bob", "lives_in", "Bern", at(62)).with_cardinality(Cardinality::One);
    let bob = assert_fact(h, &alice, bob).await;
    assert!(bob.superseded.is_empty(), "another subject's value ends nothing");
    assert_eq!(
        home(h, &alice, 70, None).await,
        ["Oslo"],
        "neither another predicate nor another subject ends it"
    );
    Passed
}

/// What was believed at an earlier moment can still be asked, also where it turned out wrong.
pub async fn what_was_believed_can_be_asked(h: &Harness) -> Outcome {
    needs_facts!(h);
    let alice = World::new().user("alice");
    assert_fact(h, &alice, lives("Rome", 10, None, 10)).await;
    assert_fact(h, &alice, lives("Oslo", 50, None, 60)).await;
    assert_eq!(home(h, &alice, 55, Some(59)).await, ["Rome"], "at 59 nobody knew of the move");
    assert_eq!(home(h, &alice, 55, Some(60)).await, ["Oslo"], "from 60 on it was known");
    assert_eq!(home(h, &alice, 55, None).await, ["Oslo"], "and it is believed now");
    assert!(home(h, &alice, 55, Some(9)).await.is_empty(), "before 10 nothing was known");
    let all = h.query_facts(&alice, &FactQuery::all(10).known_at(at(59))).await;
    assert_eq!(objects(&all), ["Rome"], "one row was believed then");
    Passed
}

/// News about the past do not undo the present: a row that begins later stays, and ends the newcomer.
pub async fn a_late_arrival_does_not_undo_the_present(h: &Harness) -> Outcome {
    needs_facts!(h);
    let alice = World::new().user("alice");
    assert_fact(h, &alice, lives("Oslo", 50, None, 60)).await;
    let late = assert_fact(h, &alice, lives("Rome", 10, None, 70)).await;
    assert!(late.superseded.is_empty(), "the later row is left alone");
    assert_eq!(home(h, &alice, 80, None).await, ["Oslo"], "the present stands");
    assert_eq!(home(h, &alice, 49, None).await, ["Rome"], "the past is filled in");
    assert_eq!(home(h, &alice, 50, None).await, ["Oslo"], "up to where the later row begins");
    let rome = h.query_facts(&alice, &FactQuery::all(10).object("Rome")).await;
    assert_eq!((rome.len(), rome[0].valid_until), (1, Some(at(50))));
    Passed
}

/// A correction in the middle leaves what was before and after it.
pub async fn a_correction_in_the_middle_splits(h: &Harness) -> Outcome {
    needs_facts!(h);
    let alice = World::new().user("alice");
    let whole = assert_fact(h, &alice, lives("Rome", 10, None, 10)).await;
    let middle = assert_fact(h, &alice, lives("Oslo", 40, Some(60), 100)).await;
    assert_eq!(middle.superseded, [whole.id]);
    for (moment, expected) in
        [(10, "Rome"), (39, "Rome"), (40, "Oslo"), (59, "Oslo"), (60, "Rome"), (500, "Rome")]
    {
        assert_eq!(home(h, &alice, moment, None).await, [expected], "at {moment}");
    }
    assert_eq!(home(h, &alice, 50, Some(99)).await, ["Rome"], "before the correction nobody knew");
    let rome = h.query_facts(&alice, &FactQuery::all(10).object("Rome")).await;
    assert_eq!(rome.len(), 2, "two pieces are left of the old row");
    assert!(rome.iter().all(|f| f.known_from == at(100)), "the pieces are known since the correction");
    Passed
}

/// Both axes are half-open: a fact holds at its beginning and not at its end.
pub async fn borders_are_half_open(h: &Harness) -> Outcome {
    needs_facts!(h);
    let alice = World::new().user("alice");
    assert_fact(h, &alice, lives("Rome", 10, Some(20), 15)).await;
    for (moment, holds) in [(9, false), (10, true), (19, true), (20, false)] {
        assert_eq!(!home(h, &alice, moment, None).await.is_empty(), holds, "valid at {moment}");
    }
    for (moment, known) in [(14, false), (15, true), (16, true)] {
        assert_eq!(!home(h, &alice, 12, Some(moment)).await.is_empty(), known, "known at {moment}");
    }
    assert_eq!(
        h.query_facts(&alice, &FactQuery::all(10)).await.len(),
        1,
        "without a time every valid time counts"
    );
    Passed
}

/// A fact that is recorded with an older time than the newest is known from the newest on.
pub async fn the_transaction_axis_never_runs_backwards(h: &Harness) -> Outcome {
    needs_facts!(h);
    let alice = World::new().user("alice");
    assert_fact(h, &alice, lives("Rome", 10, None, 100)).await;
    assert_fact(h, &alice, lives("Oslo", 50, None, 60)).await;
    assert_eq!(home(h, &alice, 70, Some(99)).await, Vec::<String>::new(), "at 99 nothing was known");
    assert_eq!(home(h, &alice, 70, None).await, ["Oslo"], "the newcomer is believed");
    let oslo = h.query_facts(&alice, &FactQuery::all(10).object("Oslo")).await;
    assert_eq!(oslo[0].known_from, at(100), "and known from the newest known moment on");
    Passed
}

/// Of values asserted at once for a predicate with one value, exactly one stands at any moment.
pub async fn of_concurrent_values_one_stands(h: &Harness) -> Outcome {
    needs_facts!(h);
    let alice = World::new().user("alice");
    let tasks = (0..16).map(|i| {
        let (store, scope) = (h.shared(), again(&alice));
        tokio::spawn(async move {
            let facts = store.facts().expect("checked above");
            facts.assert(&scope, lives(&format!("town {i}"), 10, None, 20)).await.must("a concurrent assert");
        })
    });
    for done in join_all(tasks).await {
        done.unwrap_or_else(|e| panic!("a concurrent assert panicked: {e}"));
    }
    for moment in [10, 20, 1_000] {
        assert_eq!(home(h, &alice, moment, None).await.len(), 1, "one value holds at {moment}");
    }
    Passed
}
