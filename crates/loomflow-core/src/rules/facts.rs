//! What an assertion does to the rows that are there, and what an erasure leaves of a fact.

use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::ids::{EpisodeId, FactId};
use crate::memory::{Cardinality, Fact, NewFact};

/// Whether a fact can be asserted.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for an empty subject, predicate or object (blanks alone
/// are empty), and for a validity that ends before it begins.
pub fn check(new: &NewFact) -> Result<()> {
    for (name, text) in [("subject", &new.subject), ("predicate", &new.predicate), ("object", &new.object)] {
        if text.trim().is_empty() {
            let message = format!("the {name} of a fact is empty; give it a text");
            return Err(Error::invalid_input(message).with_operation("assert"));
        }
    }
    if end(new.valid_until) <= begin(new.valid_from) {
        let message = "a fact's validity ends before it begins; valid_until must be after valid_from";
        return Err(Error::invalid_input(message).with_operation("assert"));
    }
    Ok(())
}

/// What an assertion does. Rows are named by their place in the list that [`plan`] was given.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "an assertion adds a row or strengthens one")]
pub enum Plan {
    /// A row that is believed already is strengthened; none is written.
    Reinforce {
        /// Which row.
        row: usize,
        /// Its confidence from now on.
        confidence: u8,
        /// Its sources from now on. Its vector is the assertion's, if it had none.
        sources: Vec<EpisodeId>,
    },
    /// Rows are written, and others stop being believed at the same moment.
    Write {
        /// The new row. Its vector is the assertion's.
        fact: Box<Fact>,
        /// Rows whose `known_until` becomes the new row's `known_from`, the longest known first.
        ended: Vec<usize>,
        /// What is left of ended rows' validity, as rows of their own, each with the row whose vector it keeps.
        rests: Vec<(usize, Fact)>,
    },
}

/// Works out what asserting `new` does, by the rules of [`FactStore`](crate::FactStore). Changes nothing.
///
/// - `believed`: the rows of the partition with the same subject and predicate that are believed now, in any order.
///   Others are left alone.
/// - `newest`: the largest `known_from` of the whole partition, of rows that are no longer believed as well.
///
/// The new rows' ids are drawn here. Of several rows that an assertion could reinforce, it is the one that was known
/// first, then the one that holds from the earliest moment, then until the earliest, then the least sure one.
#[must_use]
pub fn plan(new: &NewFact, believed: &[&Fact], newest: Option<Timestamp>) -> Plan {
    let same = |fact: &Fact| {
        fact.known_until.is_none() && fact.subject == new.subject && fact.predicate == new.predicate
    };
    let rows = || believed.iter().enumerate().filter(move |(_, fact)| same(fact));
    let mut rivals: Vec<(usize, &Fact)> = Vec::new();
    if new.cardinality == Cardinality::One {
        rivals.extend(rows().map(|(row, fact)| (row, *fact)).filter(|(_, fact)| fact.object != new.object));
    }
    let until = ends_at(new, &rivals);
    let covering = rows().filter(|(_, fact)| covers(fact, new, until)).min_by_key(|(_, fact)| {
        let mut sources = fact.sources.clone();
        sources.sort_unstable();
        (fact.known_from, fact.valid_from, end(fact.valid_until), fact.confidence, sources)
    });
    if let Some((row, fact)) = covering {
        return reinforce(row, fact, new);
    }
    let mut fact = Fact::from_new(FactId::fresh(), new);
    fact.confidence = fact.confidence.min(100);
    fact.known_from = newest.map_or(new.recorded_at, |newest| newest.max(new.recorded_at));
    fact.valid_until = until;
    let (ended, rests) = supersede(&fact, &rivals);
    Plan::Write { fact: Box::new(fact), ended, rests }
}

/// What an erasure does to a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a fact stays, stays with fewer sources, or goes")]
pub enum Fate {
    /// It stays as it is.
    Stays,
    /// It stays, and these are its sources from now on.
    Keeps(Vec<EpisodeId>),
    /// It goes.
    Goes,
}

/// What becomes of a fact with these `sources` that was known since `known_from`.
///
/// - `erased`: whether an episode goes with this erasure.
/// - `held`: whether an episode is still held afterwards.
/// - `unsourced_before`: what [`erases_unsourced_before`](super::erases_unsourced_before) says.
pub fn fate(
    sources: &[EpisodeId],
    known_from: Timestamp,
    erased: impl Fn(EpisodeId) -> bool,
    held: impl Fn(EpisodeId) -> bool,
    unsourced_before: Option<Timestamp>,
) -> Fate {
    let left: Vec<EpisodeId> = sources.iter().copied().filter(|id| !erased(*id)).collect();
    let touched = left.len() < sources.len();
    let supported = left.iter().any(|id| held(*id));
    let old = unsourced_before.is_some_and(|moment| known_from < moment);
    match (supported, touched, old) {
        (false, true, _) | (false, _, true) => Fate::Goes,
        (_, true, _) => Fate::Keeps(left),
        _ => Fate::Stays,
    }
}

/// Whether a row says already what is left of the assertion.
fn covers(fact: &Fact, new: &NewFact, until: Option<Timestamp>) -> bool {
    fact.object == new.object && fact.valid_from <= new.valid_from && end(fact.valid_until) >= end(until)
}

fn reinforce(row: usize, fact: &Fact, new: &NewFact) -> Plan {
    let mut sources = fact.sources.clone();
    for source in &new.sources {
        if !sources.contains(source) {
            sources.push(*source);
        }
    }
    Plan::Reinforce { row, confidence: fact.confidence.max(new.confidence.min(100)), sources }
}

/// What begins later stands, and ends the newcomer where it begins.
fn ends_at(new: &NewFact, rivals: &[(usize, &Fact)]) -> Option<Timestamp> {
    let later = rivals.iter().map(|(_, fact)| fact.valid_from);
    let later = later.filter(|from| *from > new.valid_from && begin(*from) < end(new.valid_until)).min();
    later.or(new.valid_until)
}

/// Which rivals the new row ends, and what is left of them.
fn supersede(fact: &Fact, rivals: &[(usize, &Fact)]) -> (Vec<usize>, Vec<(usize, Fact)>) {
    let overlaps = |old: &Fact| {
        begin(old.valid_from) < end(fact.valid_until) && begin(fact.valid_from) < end(old.valid_until)
    };
    let mut ended: Vec<(usize, &Fact)> = rivals.iter().copied().filter(|(_, old)| overlaps(old)).collect();
    ended.sort_unstable_by_key(|(_, old)| (old.known_from, old.id));
    let mut rests = Vec::new();
    for (row, old) in &ended {
        let mut keep = |from: Timestamp, until: Option<Timestamp>| {
            let mut rest = Fact::clone(old);
            (rest.id, rest.known_from) = (FactId::fresh(), fact.known_from);
            (rest.valid_from, rest.valid_until) = (from, until);
            rests.push((*row, rest));
        };
        if old.valid_from < fact.valid_from {
            keep(old.valid_from, Some(fact.valid_from));
        }
        if let Some(until) = fact.valid_until.filter(|until| begin(*until) < end(old.valid_until)) {
            keep(until, old.valid_until);
        }
    }
    (ended.into_iter().map(|(row, _)| row).collect(), rests)
}

fn begin(from: Timestamp) -> i64 {
    from.as_micros()
}

/// The end of a validity as a number; one that goes on ends after every moment that can be written.
fn end(until: Option<Timestamp>) -> i64 {
    until.map_or(i64::MAX, Timestamp::as_micros)
}

#[cfg(test)]
mod tests {
    use super::fate as what_becomes;
    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    fn believed(object: &str, from: i64, until: Option<i64>, known: i64) -> Fact {
        let new = NewFact::new("ada", "drinks", object, at(known)).with_validity(at(from), until.map(at));
        Fact::from_new(FactId::fresh(), &new)
    }

    fn one(object: &str, from: i64, until: Option<i64>, recorded: i64) -> NewFact {
        NewFact::new("ada", "drinks", object, at(recorded))
            .with_validity(at(from), until.map(at))
            .with_cardinality(Cardinality::One)
    }

    #[test]
    fn a_value_in_the_middle_leaves_both_ends_of_the_other() {
        let tea = believed("tea", 0, None, 5);
        let Plan::Write { fact, ended, rests } = plan(&one("coffee", 10, Some(20), 3), &[&tea], Some(at(7)))
        else {
            panic!("a row is written")
        };
        assert_eq!((fact.known_from, fact.valid_until, ended), (at(7), Some(at(20)), vec![0]));
        let rests: Vec<_> =
            rests.iter().map(|(row, f)| (*row, f.valid_from, f.valid_until, f.known_from)).collect();
        assert_eq!(rests, [(0, at(0), Some(at(10)), at(7)), (0, at(20), None, at(7))]);
    }

    #[test]
    fn what_begins_later_stands() {
        let tea = believed("tea", 10, None, 1);
        let Plan::Write { fact, ended, rests } = plan(&one("coffee", 0, None, 2), &[&tea], None) else {
            panic!("a row is written")
        };
        assert_eq!((fact.valid_until, ended.len(), rests.len()), (Some(at(10)), 0, 0));
    }

    #[test]
    fn what_is_left_of_an_assertion_may_be_known_already() {
        let (tea, coffee) = (believed("tea", 0, Some(10), 1), believed("coffee", 10, None, 2));
        let plan = plan(&one("tea", 0, None, 3), &[&tea, &coffee], Some(at(2)));
        assert!(matches!(plan, Plan::Reinforce { row: 0, .. }), "no second row of the same: {plan:?}");
    }

    #[test]
    fn the_first_known_of_several_is_reinforced() {
        let (young, old) = (believed("tea", 0, None, 9), believed("tea", 2, None, 3));
        let new = one("tea", 4, None, 10).with_sources(vec![EpisodeId::from_u128(1)]);
        let Plan::Reinforce { row, sources, .. } = plan(&new, &[&young, &old], None) else {
            panic!("no row is written")
        };
        assert_eq!((row, sources), (1, vec![EpisodeId::from_u128(1)]));
    }

    #[test]
    fn a_fact_goes_with_the_last_of_its_sources() {
        let id = EpisodeId::from_u128;
        let fate = |sources: &[EpisodeId], before| {
            what_becomes(sources, at(5), |e| e == id(1), |e| e == id(2), before)
        };
        assert_eq!(fate(&[id(1)], None), Fate::Goes);
        assert_eq!(fate(&[id(1), id(3)], None), Fate::Goes, "the other is not held either");
        assert_eq!(fate(&[id(1), id(2)], Some(at(9))), Fate::Keeps(vec![id(2)]));
        assert_eq!(fate(&[id(3)], None), Fate::Stays);
        assert_eq!(fate(&[], Some(at(6))), Fate::Goes);
        assert_eq!(fate(&[], Some(at(5))), Fate::Stays);
        assert_eq!(fate(&[id(2)], Some(at(6))), Fate::Stays);
    }
}
