//! Ranking of what a partition holds: one pass over its terms and vectors, kept off the runtime's threads when it is long.

use loomflow_core::rules::rank::{self, Candidate, Scored};
use loomflow_core::rules::words::{self, Corpus, QueryTerms};
use loomflow_core::{Error, ErrorKind, Result, Timestamp};

/// How many candidates are ranked at once on a thread that others wait for.
const INLINE: usize = 512;
/// After how many rows a pass lets others run.
const BREATH: usize = 256;

/// A record that a query looks at, and what its store wants back for it.
#[derive(Debug)]
pub(crate) struct Found<T> {
    pub(crate) at: Timestamp,
    pub(crate) id: u128,
    pub(crate) cosine: Option<f32>,
    pub(crate) hidden: bool,
    pub(crate) value: T,
}

/// Collects candidates, and counts those that cannot match for the statistics alone.
#[derive(Debug)]
pub(crate) struct Pass<T> {
    query: QueryTerms,
    /// The query's terms, sorted.
    wanted: Vec<u64>,
    corpus: Corpus,
    found: Vec<(Found<T>, Box<[u64]>)>,
}

impl<T: Send + 'static> Pass<T> {
    pub(crate) fn new(query: QueryTerms) -> Self {
        let mut wanted = query.by_column();
        wanted.sort_unstable();
        Self { query, wanted, corpus: Corpus::default(), found: Vec::new() }
    }

    /// Whether terms have to be read at all.
    pub(crate) fn has_words(&self) -> bool {
        !self.query.is_empty()
    }

    /// Looks at the next row. `found` is made for those alone that can be returned, or that weigh as a match.
    pub(crate) async fn see(
        &mut self,
        terms: &[u8],
        cosine: Option<f32>,
        found: impl FnOnce() -> Result<Found<T>>,
    ) -> Result<()> {
        let terms = words::from_bytes(terms);
        self.corpus.documents += 1;
        self.corpus.terms += terms.len() as u64;
        if cosine.is_some() || self.wanted.iter().any(|term| terms.binary_search(term).is_ok()) {
            self.found.push((found()?, terms));
        }
        if self.corpus.documents.is_multiple_of(BREATH) {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// The best `limit`, best first.
    pub(crate) async fn rank(self, limit: usize) -> Result<Vec<(T, Scored)>> {
        if self.found.len() <= INLINE {
            return Ok(self.ranked(limit));
        }
        let ranked = tokio::task::spawn_blocking(move || self.ranked(limit)).await;
        ranked.map_err(|e| Error::new(ErrorKind::Internal, "ranking panicked").with_source(e))
    }

    fn ranked(self, limit: usize) -> Vec<(T, Scored)> {
        let candidates: Vec<Candidate<'_>> =
            self.found.iter().map(|(found, terms)| candidate(found, terms)).collect();
        let scored = rank::rank(&self.query, self.corpus, &candidates, limit);
        let mut values: Vec<Option<T>> = self.found.into_iter().map(|(found, _)| Some(found.value)).collect();
        let take =
            |scored: Scored| (values[scored.index].take().expect("a candidate is ranked once"), scored);
        scored.into_iter().map(take).collect()
    }
}

fn candidate<'t, T>(found: &Found<T>, terms: &'t [u64]) -> Candidate<'t> {
    Candidate { at: found.at, id: found.id, terms, cosine: found.cosine, hidden: found.hidden }
}
