//! The facts of one partition, with valid time and transaction time.

use std::sync::Arc;

use hashbrown::HashSet;
use loomflow_core::rules::facts::{Fate, Plan, fate, plan};
use loomflow_core::rules::rank::{self, Candidate, Probe, Scored};
use loomflow_core::rules::words::{self, Corpus, QueryTerms};
use loomflow_core::{
    AssertOutcome, Asserted, Embedding, EpisodeId, Error, ErrorKind, Fact, FactId, FactQuery, NewFact, Owned,
    Owner, Result, SessionId, Timestamp,
};

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
        let key = words::pair(&new.subject, &new.predicate);
        let believed: Vec<usize> = (0..self.rows.len())
            .filter(|at| self.rows[*at].believed() && self.rows[*at].key == key)
            .collect();
        let facts: Vec<&Fact> = believed.iter().map(|at| &self.rows[*at].fact).collect();
        let newest = self.rows.iter().map(|r| r.fact.known_from).max();
        let (fact, ended, rests) = match plan(&new, &facts, newest) {
            Plan::Reinforce { row, confidence, sources } => {
                let row = &mut self.rows[believed[row]];
                (row.fact.confidence, row.fact.sources) = (confidence, sources);
                if row.embedding.is_none() {
                    row.embedding = new.embedding;
                }
                return Ok(Asserted::new(row.fact.id, AssertOutcome::Reinforced, Vec::new()));
            }
            Plan::Write { fact, ended, rests } => (*fact, ended, rests),
        };
        let (id, now) = (fact.id, fact.known_from);
        let terms = words::of_fact(&fact);
        let mut added = vec![Row { owner: owner.clone(), fact, embedding: new.embedding, terms, key }];
        added.extend(rests.into_iter().map(|(row, fact)| Row { fact, ..self.rows[believed[row]].clone() }));
        // Room is made of rows that were superseded before, and found wanting before anything is changed.
        let excess = (self.rows.len() + added.len()).saturating_sub(max_rows);
        let droppable = self.droppable(excess)?;
        let mut superseded = Vec::with_capacity(ended.len());
        for row in ended {
            let fact = &mut self.rows[believed[row]].fact;
            fact.known_until = Some(now);
            superseded.push(fact.id);
        }
        if !droppable.is_empty() {
            self.rows.retain(|row| !droppable.contains(&row.fact.id));
        }
        self.rows.append(&mut added);
        Ok(Asserted::new(id, AssertOutcome::New, superseded))
    }

    /// The facts that match.
    pub(super) fn query(&self, query: &FactQuery) -> Vec<Owned<Fact>> {
        if query.limit == 0 {
            return Vec::new();
        }
        let terms = query.text.as_deref().map_or_else(|| QueryTerms::parse(""), QueryTerms::parse);
        let plain = terms.is_empty() && query.embedding.is_none();
        let matching: Vec<usize> = self.matching(query).collect();
        if plain {
            let newest =
                rank::newest(matching.into_iter().map(|at| self.unscored(at)).collect(), query.limit);
            return newest.iter().map(|found| self.owned(found.index)).collect();
        }
        let ranked = self.scored(&matching, &terms, query.embedding.as_ref(), query.limit);
        ranked.iter().map(|found| self.owned(matching[found.index])).collect()
    }

    /// How many facts are believed and hold at `now`, and the newest `limit` of them.
    pub(super) fn current(&self, now: Timestamp, limit: usize) -> (u64, Vec<Fact>) {
        let found: Vec<Scored> =
            self.matching(&FactQuery::current(now, limit)).map(|at| self.unscored(at)).collect();
        let count = found.len() as u64;
        let newest = rank::newest(found, limit);
        (count, newest.iter().map(|c| self.rows[c.index].fact.clone()).collect())
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
            let fact = &mut row.fact;
            let goes = |id| erased.contains(&id) || gone.contains(&id);
            let stays = |id| held(id) || kept_ids.contains(&id);
            match fate(&fact.sources, fact.known_from, goes, stays, unsourced_before) {
                Fate::Goes => return false,
                Fate::Keeps(sources) => fact.sources = sources,
                Fate::Stays => {}
            }
            true
        });
        self.rows.shrink_to_fit();
        let named = |g: &Ghost| self.rows.iter().any(|row| row.fact.sources.contains(&g.id));
        self.ghosts = kept.into_iter().filter(named).collect();
        (before - self.rows.len()) as u64
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
    fn scored(
        &self,
        rows: &[usize],
        terms: &QueryTerms,
        vector: Option<&Embedding>,
        limit: usize,
    ) -> Vec<Scored> {
        let terms_in = |at: &usize| self.rows[*at].terms.len() as u64;
        let corpus = Corpus { documents: rows.len(), terms: rows.iter().map(terms_in).sum() };
        let probe = vector.map(Probe::new);
        let candidates: Vec<Candidate<'_>> = rows
            .iter()
            .map(|at| {
                let row = &self.rows[*at];
                let cosine = probe.as_ref().zip(row.embedding.as_ref()).and_then(|(p, own)| p.cosine(own));
                let (at, id) = (row.fact.known_from, row.fact.id.as_u128());
                Candidate { at, id, terms: &row.terms, cosine, hidden: false }
            })
            .collect();
        rank::rank(terms, corpus, &candidates, limit)
    }

    fn unscored(&self, at: usize) -> Scored {
        let fact = &self.rows[at].fact;
        Scored { index: at, at: fact.known_from, id: fact.id.as_u128(), bm25: None, cosine: None, score: 0.0 }
    }

    fn owned(&self, at: usize) -> Owned<Fact> {
        let row = &self.rows[at];
        Owned::new(row.owner.clone(), row.fact.clone())
    }
}
