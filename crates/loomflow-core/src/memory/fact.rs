//! Facts with two time axes: when something holds, and when it was known.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::error::Result;
use crate::ids::{EpisodeId, FactId};
use crate::memory::Embedding;
use crate::scope::{Owned, Scope};

/// How many values a predicate has at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cardinality {
    /// One at a time (`lives_in`): a new value ends the old one where the new one begins.
    One,
    /// Any number (`likes`): values stand side by side.
    #[default]
    Many,
}

/// A fact to assert.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NewFact {
    /// Who or what it is about.
    pub subject: Arc<str>,
    /// What is said of it, in lower snake case (see [`canonical_predicate`]).
    pub predicate: Arc<str>,
    /// The value.
    pub object: Arc<str>,
    /// Whether a new value ends the old one.
    pub cardinality: Cardinality,
    /// How sure the source was, 0..=100 per cent.
    pub confidence: u8,
    /// Since when it holds.
    pub valid_from: Timestamp,
    /// Until when it holds, exclusive; `None` while it goes on.
    pub valid_until: Option<Timestamp>,
    /// When it became known.
    pub recorded_at: Timestamp,
    /// The episodes it came from. When one of them is erased and none of the rest is still held, the fact goes too.
    pub sources: Vec<EpisodeId>,
    /// The vector of its text, made by core.
    pub embedding: Option<Embedding>,
}

impl NewFact {
    /// A fact that holds and is known from `at` on. The predicate is brought into its canonical form.
    #[must_use]
    pub fn new(
        subject: impl Into<Arc<str>>,
        predicate: &str,
        object: impl Into<Arc<str>>,
        at: Timestamp,
    ) -> Self {
        Self {
            subject: subject.into(),
            predicate: canonical_predicate(predicate).into(),
            object: object.into(),
            cardinality: Cardinality::default(),
            confidence: 100,
            valid_from: at,
            valid_until: None,
            recorded_at: at,
            sources: Vec::new(),
            embedding: None,
        }
    }

    /// Sets how many values the predicate has at one time.
    #[must_use]
    pub fn with_cardinality(mut self, cardinality: Cardinality) -> Self {
        self.cardinality = cardinality;
        self
    }

    /// Sets since when and until when it holds.
    #[must_use]
    pub fn with_validity(mut self, from: Timestamp, until: Option<Timestamp>) -> Self {
        self.valid_from = from;
        self.valid_until = until;
        self
    }

    /// Names the episodes it came from.
    #[must_use]
    pub fn with_sources(mut self, sources: Vec<EpisodeId>) -> Self {
        self.sources = sources;
        self
    }

    /// Sets the confidence, 0..=100 per cent (more counts as 100).
    #[must_use]
    pub fn with_confidence(mut self, per_cent: u8) -> Self {
        self.confidence = per_cent.min(100);
        self
    }

    /// Attaches the vector of the fact's text.
    #[must_use]
    pub fn with_embedding(mut self, embedding: Embedding) -> Self {
        self.embedding = Some(embedding);
        self
    }
}

/// A fact as a store holds it: a row that is never changed but for its end on the transaction axis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Fact {
    /// Its id.
    pub id: FactId,
    /// Who or what it is about.
    pub subject: Arc<str>,
    /// What is said of it.
    pub predicate: Arc<str>,
    /// The value.
    pub object: Arc<str>,
    /// How sure the source was, per cent.
    pub confidence: u8,
    /// Since when it holds.
    pub valid_from: Timestamp,
    /// Until when it holds, exclusive.
    pub valid_until: Option<Timestamp>,
    /// Since when it was believed.
    pub known_from: Timestamp,
    /// Until when it was believed, exclusive; `None` while it is.
    pub known_until: Option<Timestamp>,
    /// The episodes it came from; those that were erased are no longer among them.
    pub sources: Vec<EpisodeId>,
}

impl Fact {
    /// A row made from an assertion, believed from its `recorded_at` on.
    #[must_use]
    pub fn from_new(id: FactId, new: &NewFact) -> Self {
        Self {
            id,
            subject: new.subject.clone(),
            predicate: new.predicate.clone(),
            object: new.object.clone(),
            confidence: new.confidence,
            valid_from: new.valid_from,
            valid_until: new.valid_until,
            known_from: new.recorded_at,
            known_until: None,
            sources: new.sources.clone(),
        }
    }

    /// Whether it holds at `t`: `valid_from ≤ t < valid_until`.
    #[must_use]
    pub fn holds_at(&self, t: Timestamp) -> bool {
        self.valid_from <= t && self.valid_until.is_none_or(|until| t < until)
    }

    /// Whether it was believed at `t`: `known_from ≤ t < known_until`.
    #[must_use]
    pub fn known_at(&self, t: Timestamp) -> bool {
        self.known_from <= t && self.known_until.is_none_or(|until| t < until)
    }

    /// The fact as a line of text: what recall searches and a prompt shows.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{} {} {}", self.subject, self.predicate.replace('_', " "), self.object)
    }
}

/// Which facts to return. Without times, those that hold and are believed now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FactQuery {
    /// Only facts about this subject.
    pub subject: Option<Arc<str>>,
    /// Only facts of this predicate (canonical form).
    pub predicate: Option<Arc<str>>,
    /// Only facts with this value.
    pub object: Option<Arc<str>>,
    /// Ranks by these words as [`RecallQuery`](crate::RecallQuery) ranks episodes, and leaves out what does not match.
    pub text: Option<Arc<str>>,
    /// The vector of the words, made by core.
    pub embedding: Option<Embedding>,
    /// Only facts that hold at this moment; `None` takes every valid time.
    pub valid_at: Option<Timestamp>,
    /// As believed at this moment; `None` takes what is believed now.
    pub known_at: Option<Timestamp>,
    /// The most facts to return.
    pub limit: usize,
}

impl FactQuery {
    /// Every fact that is believed now, whenever it holds; at most `limit`.
    #[must_use]
    pub fn all(limit: usize) -> Self {
        Self {
            subject: None,
            predicate: None,
            object: None,
            text: None,
            embedding: None,
            valid_at: None,
            known_at: None,
            limit,
        }
    }

    /// Facts that hold at `now` and are believed; at most `limit`.
    #[must_use]
    pub fn current(now: Timestamp, limit: usize) -> Self {
        Self::all(limit).valid_at(now)
    }

    /// Only facts about `subject`.
    #[must_use]
    pub fn subject(mut self, subject: impl Into<Arc<str>>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Only facts of `predicate`.
    #[must_use]
    pub fn predicate(mut self, predicate: &str) -> Self {
        self.predicate = Some(canonical_predicate(predicate).into());
        self
    }

    /// Only facts with this value.
    #[must_use]
    pub fn object(mut self, object: impl Into<Arc<str>>) -> Self {
        self.object = Some(object.into());
        self
    }

    /// Ranks by words, and by their vector when there is one.
    #[must_use]
    pub fn about(mut self, text: impl Into<Arc<str>>, embedding: Option<Embedding>) -> Self {
        self.text = Some(text.into());
        self.embedding = embedding;
        self
    }

    /// Only facts that hold at `t`.
    #[must_use]
    pub fn valid_at(mut self, t: Timestamp) -> Self {
        self.valid_at = Some(t);
        self
    }

    /// As believed at `t`.
    #[must_use]
    pub fn known_at(mut self, t: Timestamp) -> Self {
        self.known_at = Some(t);
        self
    }
}

/// What became of an assertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AssertOutcome {
    /// A new row was written.
    New,
    /// The same triple was believed already over that time: its sources and confidence were reinforced, no row added.
    Reinforced,
}

/// The answer to an assertion.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Asserted {
    /// The row that now stands for it.
    pub id: FactId,
    /// What became of it.
    pub outcome: AssertOutcome,
    /// The rows that it ended, oldest first.
    pub superseded: Vec<FactId>,
}

impl Asserted {
    /// The answer of a store.
    #[must_use]
    pub fn new(id: FactId, outcome: AssertOutcome, superseded: Vec<FactId>) -> Self {
        Self { id, outcome, superseded }
    }
}

/// Bi-temporal facts: append-only, with valid time and transaction time.
///
/// # Assertion
///
/// Let `new` be asserted with validity `[from, until)` at `recorded_at`.
///
/// - For [`Cardinality::One`], a believed row of the same subject and predicate with another object that begins after `from`
///   and before `until` is left alone, and `until` becomes the earliest such beginning: a late arrival about the past does
///   not undo the present.
/// - A believed row with the same subject, predicate and object whose validity covers `[from, until)` is reinforced:
///   sources are united, confidence is the larger of the two, the vector is taken where the row has none, and no row is
///   written. [`rules::facts::plan`](crate::rules::facts::plan) says which of several.
/// - For [`Cardinality::One`], every believed row with the same subject and predicate, another object and an
///   overlapping validity stops being believed at `recorded_at` (`known_until`), and what of its validity lies outside
///   the overlap is written again as rows known from `recorded_at`.
/// - `recorded_at` never runs backwards within a partition: a store takes the larger of the given time and its newest
///   `known_from`.
///
/// # Queries
///
/// Filtered as [`FactQuery`] says. Without words: newest `known_from` first, ties by larger id. With words: fused rank
/// (BM25 and cosine, RRF with k = 60), ties newest first, then larger id; what matches neither is left out. BM25 reads
/// [`Fact::text`] and is that of [`MemoryStore`](crate::MemoryStore); its statistics are over the rows that pass the
/// filters, whether a word of the query is in them or not.
#[async_trait]
pub trait FactStore: fmt::Debug + Send + Sync + 'static {
    /// Asserts a fact, atomically with what it supersedes, even against another process.
    ///
    /// - Fails with [`ErrorKind::Erased`](crate::ErrorKind::Erased) when the scope is older than the last erasure.
    /// - An empty subject, predicate or object, or `until ≤ from`, is
    ///   [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput). A text of blanks alone counts as empty.
    async fn assert(&self, scope: &Scope, fact: NewFact) -> Result<Asserted>;

    /// The facts that match. An unknown partition has none.
    async fn query(&self, scope: &Scope, query: &FactQuery) -> Result<Vec<Owned<Fact>>>;
}

/// The canonical form of a predicate: camel case, blanks and hyphens become lower snake case.
#[must_use]
pub fn canonical_predicate(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 4);
    let mut lower_before = false;
    for c in text.trim().chars() {
        if c.is_whitespace() || c == '-' || c == '_' {
            if !out.is_empty() && !out.ends_with('_') {
                out.push('_');
            }
            lower_before = false;
            continue;
        }
        if c.is_uppercase() && lower_before && !out.ends_with('_') {
            out.push('_');
        }
        lower_before = c.is_lowercase() || c.is_ascii_digit();
        out.extend(c.to_lowercase());
    }
    out.truncate(out.trim_end_matches('_').len());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predicates_have_one_form() {
        for text in ["livesIn", "lives in", "lives-in", " Lives  In ", "lives_in", "LivesIn_"] {
            assert_eq!(canonical_predicate(text), "lives_in", "{text:?}");
        }
        assert_eq!(canonical_predicate("HTTPStatus"), "httpstatus");
    }
}
