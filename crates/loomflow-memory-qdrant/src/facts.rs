//! The facts: one point for each subject and predicate, so that a row and what it supersedes are one write.

use async_trait::async_trait;
use loomflow_core::rules::facts::{Plan, check, plan};
use loomflow_core::rules::rank::{self, Candidate, Probe, Scored};
use loomflow_core::rules::words::{self, Corpus, QueryTerms};
use loomflow_core::rules::{Space, check_embedding};
use loomflow_core::{
    AssertOutcome, Asserted, Fact, FactQuery, FactStore, NewFact, Owned, Owner, Result, Scope,
};

use crate::cells::{Seen, Step};
use crate::error::busy;
use crate::head::TURNS;
use crate::keys::{Kind, Partition};
use crate::record::{self, FactRow};
use crate::server::{Fields, Server};
use crate::store::QdrantMemory;

#[async_trait]
impl FactStore for QdrantMemory {
    async fn assert(&self, scope: &Scope, fact: NewFact) -> Result<Asserted> {
        let name = [fact.subject.as_bytes(), fact.predicate.as_bytes()];
        self.server().write(scope, Kind::Track, &name, "assert", |seen| step(&fact, seen)).await
    }

    async fn query(&self, scope: &Scope, query: &FactQuery) -> Result<Vec<Owned<Fact>>> {
        check_embedding(query.embedding.as_ref(), "facts")?;
        let server = self.server();
        let partition = self.partition(scope);
        for _ in 0..TURNS {
            let head = server.settled(&partition, "facts").await?;
            Space::check(head.state.space().as_ref(), query.embedding.as_ref(), "facts")?;
            let rows = server.facts(&partition, "facts").await?;
            if server.head(&partition, "facts").await?.is(&head) {
                let owned = |(owner, fact)| Owned::new(owner, fact);
                return Ok(choose(rows, query).into_iter().map(owned).collect());
            }
        }
        Err(busy("facts"))
    }
}

impl Server {
    /// Every row of a partition, with its owner.
    pub(crate) async fn facts(
        &self,
        partition: &Partition,
        operation: &'static str,
    ) -> Result<Vec<(Owner, FactRow)>> {
        let mut all = Vec::new();
        for track in self.scan(partition, Kind::Track, None, Fields::All, operation).await? {
            if track.is_live() {
                let rows: Vec<FactRow> = track.record(operation)?;
                all.extend(rows.into_iter().map(|row| (track.owner.clone(), row)));
            }
        }
        Ok(all)
    }
}

/// What asserting `new` does to its track.
fn step(new: &NewFact, seen: &Seen<'_>) -> Result<Step<Asserted>> {
    check(new)?;
    check_embedding(new.embedding.as_ref(), "assert")?;
    Space::check(seen.space, new.embedding.as_ref(), "assert")?;
    if let (None, Some(embedding)) = (seen.space, &new.embedding) {
        return Ok(Step::Claim(embedding.clone()));
    }
    let mut rows: Vec<FactRow> = seen.row.map_or_else(|| Ok(Vec::new()), |row| row.record("assert"))?;
    let believed: Vec<usize> = (0..rows.len()).filter(|at| rows[*at].fact.known_until.is_none()).collect();
    let facts: Vec<&Fact> = believed.iter().map(|at| &rows[*at].fact).collect();
    let asserted = match plan(new, &facts, seen.newest) {
        Plan::Reinforce { row, confidence, sources } => {
            let row = &mut rows[believed[row]];
            (row.fact.confidence, row.fact.sources) = (confidence, sources);
            if row.embedding.is_none() {
                row.embedding.clone_from(&new.embedding);
            }
            Asserted::new(row.fact.id, AssertOutcome::Reinforced, Vec::new())
        }
        Plan::Write { fact, ended, rests } => {
            let id = fact.id;
            let mut added: Vec<FactRow> = rests
                .into_iter()
                .map(|(row, fact)| FactRow { fact, embedding: rows[believed[row]].embedding.clone() })
                .collect();
            let mut superseded = Vec::with_capacity(ended.len());
            for row in ended {
                let old = &mut rows[believed[row]].fact;
                old.known_until = Some(fact.known_from);
                superseded.push(old.id);
            }
            rows.push(FactRow { fact: *fact, embedding: new.embedding.clone() });
            rows.append(&mut added);
            Asserted::new(id, AssertOutcome::New, superseded)
        }
    };
    Ok(Step::Fill(record::of_track(&rows)?, asserted))
}

/// The rows that match, in their order.
pub(crate) fn choose(rows: Vec<(Owner, FactRow)>, query: &FactQuery) -> Vec<(Owner, Fact)> {
    if query.limit == 0 {
        return Vec::new();
    }
    let rows: Vec<(Owner, FactRow)> = rows.into_iter().filter(|(_, row)| passes(&row.fact, query)).collect();
    let query_terms = QueryTerms::parse(query.text.as_deref().unwrap_or(""));
    let ranked = if query_terms.is_empty() && query.embedding.is_none() {
        let all = rows.iter().enumerate().map(|(index, (_, row))| unscored(index, &row.fact));
        rank::newest(all.collect(), query.limit)
    } else {
        let terms: Vec<Box<[u64]>> = rows.iter().map(|(_, row)| words::of_fact(&row.fact)).collect();
        let corpus = Corpus { documents: rows.len(), terms: terms.iter().map(|t| t.len() as u64).sum() };
        let probe = query.embedding.as_ref().map(Probe::new);
        let candidates: Vec<Candidate<'_>> = rows
            .iter()
            .zip(&terms)
            .map(|((_, row), terms)| Candidate {
                at: row.fact.known_from,
                id: row.fact.id.as_u128(),
                terms,
                cosine: probe.as_ref().zip(row.embedding.as_ref()).and_then(|(p, e)| p.cosine(e)),
                hidden: false,
            })
            .collect();
        rank::rank(&query_terms, corpus, &candidates, query.limit)
    };
    let owned = |found: &Scored| {
        let (owner, row) = &rows[found.index];
        (owner.clone(), row.fact.clone())
    };
    ranked.iter().map(owned).collect()
}

fn unscored(index: usize, fact: &Fact) -> Scored {
    Scored { index, at: fact.known_from, id: fact.id.as_u128(), bm25: None, cosine: None, score: 0.0 }
}

fn passes(fact: &Fact, query: &FactQuery) -> bool {
    query.subject.as_ref().is_none_or(|s| *s == fact.subject)
        && query.predicate.as_ref().is_none_or(|p| *p == fact.predicate)
        && query.object.as_ref().is_none_or(|o| *o == fact.object)
        && query.valid_at.is_none_or(|t| fact.holds_at(t))
        && query.known_at.map_or(fact.known_until.is_none(), |t| fact.known_at(t))
}
