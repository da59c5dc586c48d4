//! The facts of one partition, with valid time and transaction time.

use std::sync::Arc;

use hashbrown::HashSet;
use loomflow_core::{
    AssertOutcome, Asserted, Cardinality, Embedding, EpisodeId, Error, ErrorKind, Fact, FactId, FactQuery,
    NewFact, Owned, Owner, Result, SessionId, Timestamp,
};

use super::lexical::{self, Corpus, QueryTerms};
use super::rank::{self, Candidate, Probe};

/// A row with its owner as it was written.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) owner: Owner,
    pub(super) fact: Fact,
    pub(super) embedding: Option<Embedding>,
    terms: Box<[u64]>,
    /// A hash of subject and predicate, so that a scan need not look at the texts of other rows.
    key: u64,
}

impl Row {
    /// Roughly how many bytes it takes.
    pub(super) fn bytes(&self) -> u64 {
        let fact = &self.fact;
        let texts = fact.subject.len() + fact.predicate.len() + fact.object.len();
        let vector = self.embedding.as_ref().map_or(0, |e| 16 + 4 * e.vector.len());
        (288 + texts + 16 * fact.sources.len() + 8 * self.terms.len() + vector) as u64
    }

    fn believed(&self) -> bool {
        self.fact.known_until.is_none()
    }
}

/// Where a dropped episode came from that a fact still names, so that erasing its session reaches the fact.
#[derive(Clone, Debug)]
struct Ghost {
    id: EpisodeId,
    session: SessionId,
    at: Timestamp,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct FactTable {
    rows: Vec<Row>,
    ghosts: Vec<Ghost>,
}

/// What an assertion will do, worked out before anything is changed.
struct Plan {
    until: Option<Timestamp>,
    /// Rows that stop being believed, and what is left of their validity.
    ended: Vec<usize>,
    rests: Vec<(usize, Timestamp, Option<Timestamp>)>,
}

impl FactTable {
    /// All rows, superseded ones included, in the order they were written.
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub(super) fn bytes(&self) -> u64 {
        self.rows.iter().map(Row::bytes).sum::<u64>() + 64 * self.ghosts.len() as u64
    }

    /// Asserts `new`, all or nothing.
    pub(super) fn assert(&mut self, owner: &Owner, new: NewFact, max_rows: usize) -> Result<Asserted> {
        check(&new)?;
        let key = lexical::pair(&new.subject, &new.predicate);
        if let Some(id) = self.reinforce(key, &new) {
            return Ok(Asserted::new(id, AssertOutcome::Reinforced, Vec::new()));
        }
        let plan = match new.cardinality {
            Cardinality::One => self.plan(key, &new),
            _ => Plan { until: new.valid_until, ended: Vec::new(), rests: Vec::new() },
        };
        let newest = self.rows.iter().map(|r| r.fact.known_from).max();
        let now = newest.map_or(new.recorded_at, |newest| newest.max(new.recorded_at));
        let mut fact = Fact::from_new(FactId::fresh(), &new);
        (fact.known_from, fact.valid_until) = (now, plan.until);
        fact.confidence = fact.confidence.min(100);
        let id = fact.id;
        let terms = lexical::document([&*fact.subject, &*fact.predicate, &*fact.object].into_iter());
        let mut added = vec![Row { owner: owner.clone(), fact, embedding: new.embedding, terms, key }];
        for (at, from, until) in &plan.rests {
            let mut rest = self.rows[*at].clone();
            rest.fact.id = FactId::fresh();
            (rest.fact.valid_from, rest.fact.valid_until, rest.fact.known_from) = (*from, *until, now);
            added.push(rest);
        }
        // Room is made of rows that were superseded before, and found wanting before anything is changed.
        let excess = (self.rows.len() + added.len()).saturating_sub(max_rows);
        let droppable = self.droppable(excess)?;
        let mut superseded: Vec<(Timestamp, FactId)> = Vec::with_capacity(plan.ended.len());
        for at in plan.ended {
            let fact = &mut self.rows[at].fact;
            fact.known_until = Some(now);
            superseded.push((fact.known_from, fact.id));
        }
        superseded.sort_unstable();
        if !droppable.is_empty() {
            self.rows.retain(|row| !droppable.contains(&row.fact.id));
        }
        self.rows.append(&mut added);
        Ok(Asserted::new(id, AssertOutcome::New, superseded.into_iter().map(|(_, id)| id).collect()))
    }

    /// The facts that match.
    pub(super) fn query(&self, query: &FactQuery) -> Vec<Owned<Fact>> {
        if query.limit == 0 {
            return Vec::new();
        }
        let terms = query.text.as_deref().map_or_else(|| QueryTerms::parse(""), QueryTerms::parse);
        let plain = terms.is_empty() && query.embedding.is_none();
        let matching: Vec<usize> = self.matching(query).collect();
        let ranked = if plain {
            rank::newest(matching.into_iter().map(|at| self.candidate(at)).collect(), query.limit)
        } else {
            rank::fuse(self.scored(&matching, &terms, query.embedding.as_ref()), query.limit)
        };
        ranked.iter().map(|c| self.owned(c.slot as usize)).collect()
    }

    /// How many facts are believed and hold at `now`, and the newest `limit` of them.
    pub(super) fn current(&self, now: Timestamp, limit: usize) -> (u64, Vec<Fact>) {
        let found: Vec<Candidate> =
            self.matching(&FactQuery::current(now, limit)).map(|at| self.candidate(at)).collect();
        let count = found.len() as u64;
        let newest = rank::newest(found, limit);
        (count, newest.iter().map(|c| self.rows[c.slot as usize].fact.clone()).collect())
    }

    /// Notes that an episode was dropped for want of room, if a fact names it.
    pub(super) fn dropped(&mut self, id: EpisodeId, session: &SessionId, at: Timestamp) {
        if self.rows.iter().any(|row| row.fact.sources.contains(&id)) {
            self.ghosts.push(Ghost { id, session: session.clone(), at });
        }
    }

    /// Takes out the facts that came from the erased episodes alone, and, when `unsourced_before` is given, those that
    /// name no episode that is known and were known before that moment. Returns how many rows went.
    ///
    /// `erased` are the episodes that go; `goes` says which of the dropped ones would have; `held` says which stay.
    pub(super) fn erase(
        &mut self,
        erased: &HashSet<EpisodeId>,
        goes: impl Fn(&SessionId, Timestamp) -> bool,
        held: impl Fn(EpisodeId) -> bool,
        unsourced_before: Option<Timestamp>,
    ) -> u64 {
        let (gone, kept): (Vec<Ghost>, Vec<Ghost>) =
            std::mem::take(&mut self.ghosts).into_iter().partition(|g| goes(&g.session, g.at) && !held(g.id));
        let gone: HashSet<EpisodeId> = gone.into_iter().map(|g| g.id).collect();
        let kept_ids: HashSet<EpisodeId> = kept.iter().map(|g| g.id).collect();
        let before = self.rows.len();
        self.rows.retain_mut(|row| {
            let sources = row.fact.sources.len();
            row.fact.sources.retain(|id| !erased.contains(id) && !gone.contains(id));
            let touched = row.fact.sources.len() < sources;
            let supported = row.fact.sources.iter().any(|id| held(*id) || kept_ids.contains(id));
            let old = unsourced_before.is_some_and(|moment| row.fact.known_from < moment);
            supported || !(touched || old)
        });
        self.rows.shrink_to_fit();
        let named = |g: &Ghost| self.rows.iter().any(|row| row.fact.sources.contains(&g.id));
        self.ghosts = kept.into_iter().filter(named).collect();
        (before - self.rows.len()) as u64
    }

    fn reinforce(&mut self, key: u64, new: &NewFact) -> Option<FactId> {
        let row = self.rows.iter_mut().find(|row| {
            row.believed()
                && same_subject(row, key, new)
                && row.fact.object == new.object
                && row.fact.valid_from <= new.valid_from
                && end(row.fact.valid_until) >= end(new.valid_until)
        })?;
        let fact = &mut row.fact;
        fact.confidence = fact.confidence.max(new.confidence.min(100));
        for source in &new.sources {
            if !fact.sources.contains(source) {
                fact.sources.push(*source);
            }
        }
        if row.embedding.is_none() {
            row.embedding.clone_from(&new.embedding);
        }
        Some(row.fact.id)
    }

    fn plan(&self, key: u64, new: &NewFact) -> Plan {
        let overlapping = |until: Option<Timestamp>| {
            self.rows.iter().enumerate().filter(move |(_, row)| {
                row.believed()
                    && same_subject(row, key, new)
                    && row.fact.object != new.object
                    && begin(row.fact.valid_from) < end(until)
                    && begin(new.valid_from) < end(row.fact.valid_until)
            })
        };
        // What begins later stands, and ends the newcomer where it begins.
        let later = overlapping(new.valid_until).map(|(_, row)| row.fact.valid_from);
        let until = later.filter(|from| *from > new.valid_from).min().or(new.valid_until);
        let mut plan = Plan { until, ended: Vec::new(), rests: Vec::new() };
        for (at, row) in overlapping(until) {
            plan.ended.push(at);
            if row.fact.valid_from < new.valid_from {
                plan.rests.push((at, row.fact.valid_from, Some(new.valid_from)));
            }
            if let Some(until) = until.filter(|until| begin(*until) < end(row.fact.valid_until)) {
                plan.rests.push((at, until, row.fact.valid_until));
            }
        }
        plan
    }

    /// The `excess` rows that stopped being believed first.
    fn droppable(&self, excess: usize) -> Result<HashSet<FactId>> {
        if excess == 0 {
            return Ok(HashSet::new());
        }
        let mut past: Vec<(Timestamp, FactId)> =
            self.rows.iter().filter_map(|row| Some((row.fact.known_until?, row.fact.id))).collect();
        if past.len() < excess {
            return Err(Error::new(
                ErrorKind::Capacity,
                "the user has as many believed facts as the memory keeps; nothing was written",
            )
            .with_operation("assert"));
        }
        past.sort_unstable();
        Ok(past.into_iter().take(excess).map(|(_, id)| id).collect())
    }

    fn matching(&self, query: &FactQuery) -> impl Iterator<Item = usize> {
        let is = |wanted: &Option<Arc<str>>, text: &str| wanted.as_deref().is_none_or(|w| w == text);
        self.rows.iter().enumerate().filter_map(move |(at, row)| {
            let fact = &row.fact;
            let known = query.known_at.map_or_else(|| row.believed(), |t| fact.known_at(t));
            let matches = known
                && query.valid_at.is_none_or(|t| fact.holds_at(t))
                && is(&query.subject, &fact.subject)
                && is(&query.predicate, &fact.predicate)
                && is(&query.object, &fact.object);
            matches.then_some(at)
        })
    }

    /// The rows that match by words or by vector. The statistics of BM25 are those of the rows that pass the filters.
    fn scored(&self, rows: &[usize], terms: &QueryTerms, vector: Option<&Embedding>) -> Vec<Candidate> {
        let documents = rows.iter().map(|at| &*self.rows[*at].terms);
        let corpus = Corpus { documents: rows.len(), terms: documents.clone().map(|d| d.len() as u64).sum() };
        let words = if terms.is_empty() { Vec::new() } else { lexical::score_all(terms, corpus, documents) };
        let probe = vector.map(Probe::new);
        let mut found = Vec::new();
        for (place, at) in rows.iter().enumerate() {
            let bm25 = words.get(place).copied().filter(|score| *score > 0.0);
            let own = self.rows[*at].embedding.as_ref();
            let cosine = probe.as_ref().zip(own).and_then(|(probe, own)| probe.cosine(own));
            if bm25.is_some() || cosine.is_some() {
                found.push(Candidate { bm25, cosine, ..self.candidate(*at) });
            }
        }
        found
    }

    fn candidate(&self, at: usize) -> Candidate {
        let fact = &self.rows[at].fact;
        let slot = u32::try_from(at).expect("a partition is bounded far below 2^32 facts");
        Candidate { slot, at: fact.known_from, id: fact.id.as_u128(), bm25: None, cosine: None, score: 0.0 }
    }

    fn owned(&self, at: usize) -> Owned<Fact> {
        let row = &self.rows[at];
        Owned::new(row.owner.clone(), row.fact.clone())
    }
}

fn check(new: &NewFact) -> Result<()> {
    let parts = [("subject", &new.subject), ("predicate", &new.predicate), ("object", &new.object)];
    for (name, text) in parts {
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

fn same_subject(row: &Row, key: u64, new: &NewFact) -> bool {
    row.key == key && row.fact.subject == new.subject && row.fact.predicate == new.predicate
}

fn begin(from: Timestamp) -> i64 {
    from.as_micros()
}

/// The end of a validity as a number; one that goes on ends after every moment that can be written.
fn end(until: Option<Timestamp>) -> i64 {
    until.map_or(i64::MAX, Timestamp::as_micros)
}
