//! Facts: planned here by the rules, committed there if nobody wrote meanwhile.

use std::sync::Arc;

use loomflow_core::rules::facts::{self, Plan};
use loomflow_core::rules::rank::{self, Candidate, Scored};
use loomflow_core::rules::words::{self, Corpus, QueryTerms};
use loomflow_core::rules::{Space, check_embedding};
use loomflow_core::{
    AssertOutcome, Asserted, Cardinality, Fact, FactId, FactQuery, NewFact, Owned, Owner, Result, Scope,
    Timestamp,
};

use crate::codec::{self, Row, believed_key, believed_prefix};
use crate::tenant::{Commit, Committed, Meta, PLAN_TRIES, Scan, Tenant, check_own, outrun, pause};

/// A row as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) owner: Owner,
    pub(crate) fact: Fact,
    pub(crate) vector: bool,
}

impl Held {
    pub(crate) fn read(row: &[u8], last: &mut Option<Owner>) -> Result<Self> {
        let row = Row::<Fact>::read(row)?;
        let owner = row.owner(last.as_ref())?;
        *last = Some(owner.clone());
        Ok(Self { owner, fact: row.v, vector: row.x })
    }

    fn id(&self) -> u128 {
        self.fact.id.as_u128()
    }
}

/// The rows among `entries`.
pub(crate) fn read_rows(entries: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<Held>> {
    let mut last = None;
    entries.iter().map(|(_, row)| Held::read(row, &mut last)).collect()
}

impl Tenant<'_> {
    pub(crate) async fn assert(&self, scope: &Scope, new: &NewFact) -> Result<Asserted> {
        facts::check(new)?;
        check_embedding(new.embedding.as_ref(), "assert")?;
        let index = match &new.embedding {
            Some(vector) => self.shared.may_index(&vector.vector).await,
            None => false,
        };
        // A value of many is only ever reinforced by one with the same object.
        let object = (new.cardinality == Cardinality::Many).then_some(&*new.object);
        let prefix = believed_prefix(&new.subject, &new.predicate, object);
        let _alone = self.shared.alone(scope.owner(), "assert").await?;
        for tries in 1..=PLAN_TRIES {
            let (meta, rows) = self.believed("assert", &prefix).await?;
            let rows = read_rows(&rows)?;
            rows.iter().try_for_each(|row| check_own(scope, &row.owner, "assert"))?;
            let (commit, asserted) = plan(scope.owner(), new, &meta, &rows, index)?;
            if self.commit(scope, commit).await? != Committed::Moved {
                return Ok(asserted);
            }
            pause(tries).await;
        }
        Err(outrun("assert"))
    }

    pub(crate) async fn query(&self, query: &FactQuery) -> Result<Vec<Owned<Fact>>> {
        let vector = query.embedding.as_ref();
        check_embedding(vector, "query")?;
        let scan = self.candidates(query).await?;
        Space::check(scan.meta.space.as_ref(), vector, "query")?;
        let mut rows = read_rows(&scan.entries)?;
        rows.retain(|row| matches(query, &row.fact));
        let terms = query.text.as_deref().map_or_else(|| QueryTerms::parse(""), QueryTerms::parse);
        let found = if terms.is_empty() && vector.is_none() {
            rank::newest(rows.iter().enumerate().map(unscored).collect(), query.limit)
        } else {
            self.ranked(query, &terms, &scan, &rows).await?
        };
        let owned =
            |found: Scored| Owned::new(rows[found.index].owner.clone(), rows[found.index].fact.clone());
        Ok(found.into_iter().map(owned).collect())
    }

    /// How many facts are believed and hold at `now`, and the newest `limit` of them.
    pub(crate) async fn current(&self, now: Timestamp, limit: usize) -> Result<(u64, Vec<Fact>)> {
        let query = FactQuery::current(now, limit);
        let scan = self.scan("profile", "fa", "", true).await?;
        let mut rows = read_rows(&scan.entries)?;
        rows.retain(|row| matches(&query, &row.fact));
        let newest = rank::newest(rows.iter().enumerate().map(unscored).collect(), limit);
        Ok((rows.len() as u64, newest.into_iter().map(|found| rows[found.index].fact.clone()).collect()))
    }

    /// Rows among which are all that match.
    async fn candidates(&self, query: &FactQuery) -> Result<Scan> {
        if let (Some(subject), Some(predicate), None) = (&query.subject, &query.predicate, query.known_at)
            && query.embedding.is_none()
        {
            let prefix = believed_prefix(subject, predicate, query.object.as_deref());
            let (meta, entries) = self.believed("query", &prefix).await?;
            return Ok(Scan { meta, entries, ..Scan::default() });
        }
        let vectors = if query.embedding.is_some() { "fv" } else { "" };
        self.scan("query", "fa", vectors, true).await
    }

    async fn ranked(
        &self,
        query: &FactQuery,
        terms: &QueryTerms,
        scan: &Scan,
        rows: &[Held],
    ) -> Result<Vec<Scored>> {
        let cosines = match &query.embedding {
            Some(vector) => {
                let with: Vec<u128> = rows.iter().filter(|row| row.vector).map(Held::id).collect();
                self.cosines("query", "fv", scan, &with, vector).await?
            }
            None => Default::default(),
        };
        let documents: Vec<Box<[u64]>> = rows.iter().map(|row| words::of_fact(&row.fact)).collect();
        let corpus = Corpus { documents: rows.len(), terms: documents.iter().map(|d| d.len() as u64).sum() };
        let candidates: Vec<Candidate<'_>> = rows
            .iter()
            .zip(&documents)
            .map(|(row, terms)| Candidate {
                at: row.fact.known_from,
                id: row.id(),
                terms,
                cosine: cosines.get(&row.id()).copied(),
                hidden: false,
            })
            .collect();
        Ok(rank::rank(terms, corpus, &candidates, query.limit))
    }
}

/// What asserting `new` changes, and the answer to it.
fn plan<'a>(
    owner: &Owner,
    new: &'a NewFact,
    meta: &Meta,
    rows: &[Held],
    index: bool,
) -> Result<(Commit<'a>, Asserted)> {
    let believed: Vec<&Fact> = rows.iter().map(|row| &row.fact).collect();
    let commit =
        Commit::new("assert").with_vector(new.embedding.as_ref()).expecting("fver", &meta.facts_version);
    match facts::plan(new, &believed, meta.newest) {
        Plan::Reinforce { row, confidence, sources } => {
            let held = &rows[row];
            let mut fact = held.fact.clone();
            (fact.confidence, fact.sources) = (confidence, sources);
            let id = fact.id;
            let mut commit = commit.with_newest(meta.newest);
            let vector = held.vector || new.embedding.is_some();
            commit.op("set", "fa", &key(id), codec::fact_row(&held.owner, &fact, vector)?);
            if let (false, Some(embedding)) = (held.vector, &new.embedding) {
                commit.op("set", "fv", &key(id), rank::vector_to_bytes(&embedding.vector));
                if index {
                    commit.op("index", "f", &key(id), Vec::new());
                }
            }
            Ok((commit, Asserted::new(id, AssertOutcome::Reinforced, Vec::new())))
        }
        Plan::Write { fact, ended, rests } => {
            let (id, now) = (fact.id, fact.known_from);
            let mut commit = commit.unless_known("fa", id.as_u128()).with_newest(Some(now));
            write(&mut commit, owner, &fact, new.embedding.is_some())?;
            if let Some(embedding) = &new.embedding {
                commit.op("set", "fv", &key(id), rank::vector_to_bytes(&embedding.vector));
                if index {
                    commit.op("index", "f", &key(id), Vec::new());
                }
            }
            for (row, rest) in &rests {
                let held = &rows[*row];
                write(&mut commit, &held.owner, rest, held.vector)?;
                if held.vector {
                    commit.op("copy", "fv", &key(rest.id), key(held.fact.id).to_vec());
                }
            }
            let mut superseded = Vec::with_capacity(ended.len());
            for row in ended {
                let held = &rows[row];
                let mut over = held.fact.clone();
                over.known_until = Some(now);
                commit.op("set", "fa", &key(over.id), codec::fact_row(&held.owner, &over, held.vector)?);
                commit.op("rem", "fb", &believed_key(&over), Vec::new());
                superseded.push(over.id);
            }
            Ok((commit, Asserted::new(id, AssertOutcome::New, superseded)))
        }
    }
}

fn write(commit: &mut Commit<'_>, owner: &Owner, fact: &Fact, vector: bool) -> Result<()> {
    commit.op("set", "fa", &key(fact.id), codec::fact_row(owner, fact, vector)?);
    commit.op("add", "fb", &believed_key(fact), Vec::new());
    Ok(())
}

pub(crate) fn key(id: FactId) -> [u8; 16] {
    id.as_u128().to_be_bytes()
}

fn matches(query: &FactQuery, fact: &Fact) -> bool {
    let is = |wanted: &Option<Arc<str>>, text: &str| wanted.as_deref().is_none_or(|w| w == text);
    query.known_at.map_or_else(|| fact.known_until.is_none(), |t| fact.known_at(t))
        && query.valid_at.is_none_or(|t| fact.holds_at(t))
        && is(&query.subject, &fact.subject)
        && is(&query.predicate, &fact.predicate)
        && is(&query.object, &fact.object)
}

fn unscored((index, row): (usize, &Held)) -> Scored {
    let at = row.fact.known_from;
    Scored { index, at, id: row.id(), bm25: None, cosine: None, score: 0.0 }
}
