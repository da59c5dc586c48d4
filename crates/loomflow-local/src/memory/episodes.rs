//! The episodes of one partition: kept in order of time, replayed by session, searched by words and vectors.
//!
//! A partition of a few turns is scanned, which is faster than any index and costs no memory. Past a threshold an index
//! of ids, sessions and postings is built and kept up to date.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use loomflow_core::rules::latest_that_fit;
use loomflow_core::rules::rank::{self, Probe, Scored};
use loomflow_core::rules::words::{self, Corpus, QueryTerms};
use loomflow_core::{
    Episode, EpisodeId, EpisodeMatch, HistoryLimit, Message, Owned, Owner, RecallQuery, SessionId, Timestamp,
};

/// How many episodes a partition may hold before it is indexed.
pub(super) const SCAN_LIMIT: usize = 32;

/// An episode with its owner as it was written.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) owner: Owner,
    pub(super) episode: Arc<Episode>,
    terms: Box<[u64]>,
}

impl Stored {
    /// Prepares an episode of `owner` for storage.
    pub(super) fn new(owner: Owner, episode: Episode) -> Self {
        let terms = words::of_episode(&episode.messages);
        Self { owner, episode: Arc::new(episode), terms }
    }

    fn key(&self) -> (Timestamp, EpisodeId) {
        (self.episode.at, self.episode.id)
    }

    /// Roughly how many bytes it takes, its share of the index included.
    pub(super) fn bytes(&self) -> u64 {
        let messages = self.episode.messages.iter().map(|m| {
            let calls = m.calls().iter().map(|c| 80 + c.id.len() + c.name.len() + c.arguments.len());
            80 + m.text.len() + m.tool_call_id.as_ref().map_or(0, |id| 16 + id.len()) + calls.sum::<usize>()
        });
        let vector = self.episode.embedding.as_ref().map_or(0, |e| 16 + 4 * e.vector.len());
        (224 + messages.sum::<usize>() + 16 * self.terms.len() + vector) as u64
    }
}

#[derive(Debug)]
struct Index {
    ids: HashSet<EpisodeId>,
    /// Slots by session, oldest first.
    sessions: HashMap<SessionId, VecDeque<u32>>,
    /// (slot, frequency) by term.
    postings: HashMap<u64, VecDeque<(u32, u32)>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Episodes {
    slots: Vec<Option<Stored>>,
    free: Vec<u32>,
    /// Slots, oldest first by (at, id).
    order: VecDeque<u32>,
    /// Terms over all episodes, repeats included.
    terms: u64,
    index: Option<Box<Index>>,
    scan_limit: usize,
}

impl Episodes {
    /// No episodes; more than `scan_limit` will be indexed.
    pub(super) fn new(scan_limit: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            order: VecDeque::new(),
            terms: 0,
            index: None,
            scan_limit,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn contains(&self, id: EpisodeId) -> bool {
        match &self.index {
            Some(index) => index.ids.contains(&id),
            None => self.oldest_first().any(|s| s.episode.id == id),
        }
    }

    /// The session id equal to `session` that is held already, so that a conversation shares one allocation.
    pub(super) fn intern(&self, session: SessionId) -> SessionId {
        let held = match &self.index {
            Some(index) => index.sessions.get_key_value(&session).map(|(held, _)| held),
            None => self.newest_first().map(|s| &s.episode.session).find(|held| **held == session),
        };
        held.cloned().unwrap_or(session)
    }

    /// All episodes, oldest first.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = &Stored> {
        self.order.iter().map(|slot| self.at(*slot))
    }

    /// All episodes, newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Stored> {
        self.order.iter().rev().map(|slot| self.at(*slot))
    }

    /// Adds an episode whose id is not held.
    pub(super) fn insert(&mut self, stored: Stored) {
        let key = stored.key();
        self.terms += stored.terms.len() as u64;
        let slot = self.allocate(stored);
        let place = place(&self.order, key, |s| self.at(s).key());
        self.order.insert(place, slot);
        if self.index.is_some() {
            self.index_one(slot);
        } else if self.order.len() > self.scan_limit {
            self.build_index();
        }
    }

    /// Takes the oldest episode out.
    pub(super) fn remove_oldest(&mut self) -> Option<Stored> {
        let slot = self.order.pop_front()?;
        let stored = self.slots[slot as usize].take().expect("an ordered slot is filled");
        self.free.push(slot);
        self.terms -= stored.terms.len() as u64;
        if let Some(index) = &mut self.index {
            index.remove(slot, &stored);
        }
        Some(stored)
    }

    /// Takes out every episode that `goes`.
    pub(super) fn remove_where(&mut self, goes: impl Fn(&Episode) -> bool) -> Vec<Stored> {
        if !self.oldest_first().any(|s| goes(&s.episode)) {
            return Vec::new();
        }
        let mut old = std::mem::replace(self, Self::new(self.scan_limit));
        let mut gone = Vec::new();
        while let Some(slot) = old.order.pop_front() {
            let stored = old.slots[slot as usize].take().expect("an ordered slot is filled");
            if goes(&stored.episode) { gone.push(stored) } else { self.insert(stored) }
        }
        gone
    }

    /// The latest messages of `session`, oldest first.
    pub(super) fn history(&self, session: &SessionId, limit: HistoryLimit) -> Vec<Owned<Message>> {
        let latest = self.latest(session, limit);
        // Sharing a text writes to its counter, and such writes wait for one another's cache misses. Reading the
        // counters first lets the misses overlap, which is what a user costs who was not here a moment ago.
        let (mut messages, mut counters) = (0, 0_usize);
        for slot in &latest {
            let said = &self.at(*slot).episode.messages;
            messages += said.len();
            counters = said.iter().fold(counters, |sum, m| sum.wrapping_add(Arc::strong_count(&m.text)));
        }
        std::hint::black_box(counters);
        let mut out = Vec::with_capacity(messages);
        for slot in latest.into_iter().rev() {
            let stored = self.at(slot);
            let owned = stored.episode.messages.iter().map(|m| Owned::new(stored.owner.clone(), m.clone()));
            out.extend(owned);
        }
        out
    }

    /// The episodes that match best.
    pub(super) fn recall(&self, query: &RecallQuery) -> Vec<Owned<EpisodeMatch>> {
        let mut excluded = match &query.exclude_history {
            Some((session, limit)) => self.latest(session, *limit),
            None => Vec::new(),
        };
        if query.limit == 0 || excluded.len() == self.len() {
            return Vec::new();
        }
        excluded.sort_unstable();
        let terms = QueryTerms::parse(&query.text);
        let open = |slot: &u32| excluded.binary_search(slot).is_err();
        if terms.is_empty() && query.embedding.is_none() {
            let latest = self.order.iter().rev().copied().filter(open).take(query.limit);
            return latest.map(|slot| self.matched(&self.candidate(slot))).collect();
        }
        let scores = if terms.is_empty() { Vec::new() } else { self.score_words(&terms) };
        let probe = query.embedding.as_ref().map(Probe::new);
        let mut found = Vec::new();
        for (place, slot) in self.order.iter().copied().enumerate().filter(|(_, slot)| open(slot)) {
            let bm25 = scores.get(place).copied().filter(|score| *score > 0.0);
            let vector = self.at(slot).episode.embedding.as_ref();
            let cosine = probe.as_ref().zip(vector).and_then(|(probe, vector)| probe.cosine(vector));
            if bm25.is_some() || cosine.is_some() {
                found.push(Scored { bm25, cosine, ..self.candidate(slot) });
            }
        }
        rank::fuse(found, query.limit).iter().map(|c| self.matched(c)).collect()
    }

    /// The slots of the latest episodes of `session` whose messages fit, newest first.
    fn latest(&self, session: &SessionId, limit: HistoryLimit) -> Vec<u32> {
        let messages = |slot: u32| self.at(slot).episode.messages.len();
        match &self.index {
            Some(index) => {
                let slots = index.sessions.get(session).into_iter().flatten().rev().copied();
                let fit = latest_that_fit(slots.clone().map(messages), limit);
                slots.take(fit).collect()
            }
            None => {
                let said = |slot: &u32| self.at(*slot).episode.session == *session;
                let slots = self.order.iter().rev().copied().filter(said);
                let fit = latest_that_fit(slots.clone().map(messages), limit);
                slots.take(fit).collect()
            }
        }
    }

    /// The BM25 score of every episode, oldest first; 0 where no word matches.
    fn score_words(&self, terms: &QueryTerms) -> Vec<f64> {
        let corpus = Corpus { documents: self.len(), terms: self.terms };
        let Some(index) = &self.index else {
            return words::score_all(terms, corpus, self.order.iter().map(|slot| &*self.at(*slot).terms));
        };
        let mut by_slot = vec![0.0; self.slots.len()];
        for term in terms.by_column() {
            let Some(postings) = index.postings.get(&term) else { continue };
            let idf = corpus.idf(postings.len());
            for (slot, frequency) in postings {
                let length = self.at(*slot).terms.len();
                by_slot[*slot as usize] += idf * words::saturation(*frequency, corpus.damping(length));
            }
        }
        self.order.iter().map(|slot| by_slot[*slot as usize]).collect()
    }

    fn candidate(&self, slot: u32) -> Scored {
        let (at, id) = self.at(slot).key();
        Scored { index: slot as usize, at, id: id.as_u128(), bm25: None, cosine: None, score: 0.0 }
    }

    fn matched(&self, found: &Scored) -> Owned<EpisodeMatch> {
        let stored = self.stored(found.index);
        let matched = EpisodeMatch::new(stored.episode.clone(), found.score);
        Owned::new(stored.owner.clone(), matched.with_scores(found.bm25, found.cosine))
    }

    fn at(&self, slot: u32) -> &Stored {
        self.stored(slot as usize)
    }

    fn stored(&self, slot: usize) -> &Stored {
        self.slots[slot].as_ref().expect("an ordered slot is filled")
    }

    fn allocate(&mut self, stored: Stored) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(stored);
            return slot;
        }
        self.slots.push(Some(stored));
        u32::try_from(self.slots.len() - 1).expect("a partition is bounded far below 2^32 episodes")
    }

    fn build_index(&mut self) {
        let index = Index { ids: HashSet::new(), sessions: HashMap::new(), postings: HashMap::new() };
        self.index = Some(Box::new(index));
        for place in 0..self.order.len() {
            self.index_one(self.order[place]);
        }
    }

    fn index_one(&mut self, slot: u32) {
        let slots = &self.slots;
        let at = |slot: u32| slots[slot as usize].as_ref().expect("an indexed slot is filled");
        let stored = at(slot);
        let Some(index) = &mut self.index else { return };
        index.ids.insert(stored.episode.id);
        let session = index.sessions.entry_ref(&stored.episode.session).or_default();
        let place = place(session, stored.key(), |s| at(s).key());
        session.insert(place, slot);
        for (term, frequency) in words::frequencies(&stored.terms) {
            index.postings.entry(term).or_default().push_back((slot, frequency));
        }
    }
}

impl Index {
    fn remove(&mut self, slot: u32, stored: &Stored) {
        self.ids.remove(&stored.episode.id);
        if let Some(session) = self.sessions.get_mut(&stored.episode.session) {
            // The oldest goes, so it stands first.
            if let Some(at) = session.iter().position(|s| *s == slot) {
                session.remove(at);
            }
            if session.is_empty() {
                self.sessions.remove(&stored.episode.session);
            }
        }
        for (term, _) in words::frequencies(&stored.terms) {
            let Some(postings) = self.postings.get_mut(&term) else { continue };
            if let Some(at) = postings.iter().position(|(s, _)| *s == slot) {
                postings.remove(at);
            }
            if postings.is_empty() {
                self.postings.remove(&term);
            }
        }
    }
}

/// Where `key` belongs in `order`; nearly always at the end.
fn place<K: Ord>(order: &VecDeque<u32>, key: K, key_of: impl Fn(u32) -> K) -> usize {
    match order.back() {
        Some(last) if key_of(*last) > key => order.partition_point(|slot| key_of(*slot) < key),
        _ => order.len(),
    }
}
