//! A naive memory: rows in lists.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use loomflow_conformance::memory::{Harness, Planted};
use loomflow_core::{
    AssertOutcome, Asserted, Capabilities, Cardinality, Clock, Embedding, Episode, EpisodeId, EpisodeMatch,
    Epoch, Erase, Erased, Error, ErrorKind, ExportItem, ExportStream, Fact, FactId, FactQuery, FactStore,
    HistoryLimit, MemoryBlock, MemoryProfile, MemoryStore, Message, NewEpisode, NewFact, Owned, Owner,
    PutBlock, RecallQuery, Result, Scope, SessionId, SystemClock, TenantData, Timestamp, export_from,
};

use super::{Bug, found, key, newer};

#[derive(Clone, Debug)]
struct Row<T> {
    key: String,
    owner: Owner,
    value: T,
}

#[derive(Debug, Default)]
struct State {
    episodes: Vec<Row<Arc<Episode>>>,
    blocks: Vec<Row<MemoryBlock>>,
    facts: Vec<Row<Fact>>,
    epochs: HashMap<String, Epoch>,
    ghosts: Vec<(String, Arc<Episode>)>,
    spaces: HashMap<String, (Arc<str>, usize)>,
}

#[derive(Debug)]
pub(crate) struct Memory {
    bug: Bug,
    state: Mutex<State>,
}

pub(crate) fn harness(bug: Bug) -> Harness {
    let memory = Arc::new(Memory { bug, state: Mutex::default() });
    let raw = memory.clone();
    Harness::new(memory).with_plant(move |order| {
        let raw = raw.clone();
        async move {
            let mut state = raw.state.lock().unwrap();
            let (key, owner) = (key(raw.bug, order.scope.owner()), order.foreign);
            match order.record {
                Planted::Episode(new) => state.episodes.push(Row { key, owner, value: Arc::new(new.into()) }),
                Planted::Block(put) => {
                    let value =
                        MemoryBlock::new(put.name, put.content.unwrap(), put.order.unwrap_or(0), put.at);
                    state.blocks.push(Row { key, owner, value });
                }
                Planted::Fact(new) => {
                    state.facts.push(Row { key, owner, value: Fact::from_new(FactId::fresh(), &new) });
                }
                other => panic!("unknown record {other:?}"),
            }
            Ok(())
        }
    })
}

fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
}

/// BM25 of each text, `None` where no word matches. `corpus` is what the statistics are taken from.
fn bm25(query: &str, texts: &[String], corpus: &[String]) -> Vec<Option<f64>> {
    let corpus: Vec<Vec<String>> = corpus.iter().map(|t| words(t)).collect();
    let n = corpus.len() as f64;
    let average = corpus.iter().map(Vec::len).sum::<usize>() as f64 / n.max(1.0);
    let mut asked = words(query);
    asked.sort();
    asked.dedup();
    let score = |text: &String| {
        let text = words(text);
        let mut total = None;
        for word in &asked {
            let tf = text.iter().filter(|w| *w == word).count() as f64;
            if tf > 0.0 {
                let df = corpus.iter().filter(|t| t.contains(word)).count() as f64;
                let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
                let norm = 1.2 * (1.0 - 0.75 + 0.75 * text.len() as f64 / average);
                *total.get_or_insert(0.0) += idf * tf * 2.2 / (tf + norm);
            }
        }
        total
    };
    texts.iter().map(score).collect()
}

fn cosine(a: &Embedding, b: &Embedding) -> Option<f32> {
    if a.model != b.model || a.vector.len() != b.vector.len() {
        return None;
    }
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
    let norm = (dot(&a.vector, &a.vector) * dot(&b.vector, &b.vector)).sqrt();
    Some(dot(&a.vector, &b.vector) / norm).filter(|c| *c > 0.0)
}

/// Positions that have a score, best first; equal ones in the order `tie` gives.
fn ranked<K: Ord>(scores: &[Option<f64>], tie: impl Fn(usize) -> K) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|i| scores[*i].is_some()).collect();
    order.sort_by(|a, b| scores[*b].partial_cmp(&scores[*a]).unwrap().then_with(|| tie(*b).cmp(&tie(*a))));
    order
}

fn fuse<K: Ord>(rankings: &[Vec<usize>], n: usize, tie: impl Fn(usize) -> K) -> Vec<(usize, f64)> {
    let mut scores = vec![None; n];
    for ranking in rankings {
        for (rank, i) in ranking.iter().enumerate() {
            *scores[*i].get_or_insert(0.0) += 1.0 / (61.0 + rank as f64);
        }
    }
    ranked(&scores, tie).into_iter().map(|i| (i, scores[i].unwrap())).collect()
}

fn episode_text(e: &Episode) -> String {
    e.searchable().collect::<Vec<_>>().join(" ")
}

impl Memory {
    fn rows<T: Clone>(&self, scope: &Scope, rows: &[Row<T>]) -> Vec<Row<T>> {
        let asked = key(self.bug, scope.owner());
        let mut rows: Vec<Row<T>> =
            rows.iter().filter(|r| found(self.bug, &r.key, &asked)).cloned().collect();
        match self.bug {
            Bug::OwnerFromArgument => rows.iter_mut().for_each(|r| r.owner = scope.owner().clone()),
            Bug::DropForeign => rows.retain(|r| r.owner == *scope.owner()),
            // So that a wrong key is a leak, and not merely seen by the tripwire.
            Bug::CaseFold | Bug::PrefixMatch | Bug::NoDelimiter => {
                rows.iter_mut().for_each(|r| r.owner = scope.owner().clone());
            }
            _ => {}
        }
        rows
    }

    fn check(&self, state: &State, scope: &Scope, what: &'static str) -> Result<()> {
        if self.bug == Bug::EpochIgnored {
            return Ok(());
        }
        scope.check_epoch(self.stored(state, scope), what)
    }

    /// Refuses a vector of another kind than the partition's; a first one settles its kind when it is to be `kept`.
    fn check_vector(
        &self,
        state: &mut State,
        scope: &Scope,
        given: Option<&Embedding>,
        kept: bool,
    ) -> Result<()> {
        let Some(given) = given else { return Ok(()) };
        if given.vector.is_empty() || given.vector.iter().any(|x| !x.is_finite()) {
            return if self.bug == Bug::AnyVector { Ok(()) } else { Err(Error::invalid_input("bad vector")) };
        }
        let key = key(self.bug, scope.owner());
        let kind = (given.model.clone(), given.vector.len());
        match state.spaces.get(&key) {
            Some(held) if *held != kind && self.bug != Bug::MixedVectors => {
                Err(Error::new(ErrorKind::Config, "a vector of another kind"))
            }
            None if kept => {
                state.spaces.insert(key, kind);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn stored(&self, state: &State, scope: &Scope) -> Epoch {
        if self.bug == Bug::EpochOfEverybody {
            return state.epochs.values().max().copied().unwrap_or_default();
        }
        state.epochs.get(&key(self.bug, scope.owner())).copied().unwrap_or_default()
    }

    fn history_of(
        &self,
        state: &State,
        scope: &Scope,
        s: &SessionId,
        limit: usize,
    ) -> Vec<Row<Arc<Episode>>> {
        let mut rows = self.rows(scope, &state.episodes);
        rows.retain(|r| match self.bug {
            Bug::SessionsByPrefix => r.value.session.as_str().starts_with(s.as_str()),
            _ => r.value.session == *s,
        });
        rows.sort_by_key(|r| (r.value.at, r.value.id));
        let (mut left, mut kept) = (limit, Vec::new());
        while let Some(row) = rows.pop() {
            match left.checked_sub(row.value.messages.len()) {
                Some(rest) => left = rest,
                None => break,
            }
            kept.push(row);
        }
        kept.reverse();
        kept
    }
}

#[async_trait]
impl TenantData for Memory {
    fn store_name(&self) -> &str {
        "memory:reference"
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        let state = self.state.lock().unwrap();
        Ok(self.stored(&state, scope))
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let state = self.state.lock().unwrap();
        let everybody = self.bug == Bug::ExportEverybody;
        let me = scope.owner();
        let mut items = Vec::new();
        let mut add = |owner: Owner, kind: &str, data| {
            let owner = if everybody { me.clone() } else { owner };
            items.push(Owned::new(owner, ExportItem::new(kind, data)));
        };
        let mut episodes = if everybody { state.episodes.clone() } else { self.rows(scope, &state.episodes) };
        episodes.sort_by_key(|r| (r.value.at, r.value.id));
        for row in episodes {
            add(row.owner, "episode", serde_json::to_value(&*row.value).unwrap());
        }
        for row in self.rows(scope, &state.blocks) {
            add(row.owner, "block", serde_json::to_value(&row.value).unwrap());
        }
        for row in self.rows(scope, &state.facts) {
            add(row.owner, "fact", serde_json::to_value(&row.value).unwrap());
        }
        Ok(export_from(items))
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let mut guard = self.state.lock().unwrap();
        let state = &mut *guard;
        let asked = key(self.bug, scope.owner());
        let bug = self.bug;
        let mine = |k: &str| bug == Bug::ForgetEverybody || found(bug, k, &asked);
        newer(bug, scope, state.epochs.get(&asked))?;
        let known = state.episodes.iter().any(|r| mine(&r.key));
        let mut gone = HashSet::new();
        let before = state.episodes.len() + state.blocks.len() + state.facts.len();
        let ghosts = &mut state.ghosts;
        state.episodes.retain(|r| {
            let hit = mine(&r.key)
                && what.session.as_ref().is_none_or(|s| r.value.session == *s)
                && what.before.is_none_or(|t| r.value.at < t);
            if hit {
                gone.insert(r.value.id);
                ghosts.push((r.key.clone(), r.value.clone()));
            }
            !hit
        });
        let all = what.is_everything();
        if all && bug != Bug::KindOutlivesErasure {
            state.spaces.remove(&asked);
        }
        state.blocks.retain(|r| !(all && mine(&r.key)));
        state.facts.retain_mut(|r| {
            if !mine(&r.key) || bug == Bug::ForgetKeepsCopies {
                return true;
            }
            let from_gone = r.value.sources.iter().any(|s| gone.contains(s));
            if bug != Bug::ForgetSessionTakesSharedFacts {
                r.value.sources.retain(|s| !gone.contains(s));
            } else if from_gone {
                return false;
            }
            !(all || (from_gone && r.value.sources.is_empty()))
        });
        let after = state.episodes.len() + state.blocks.len() + state.facts.len();
        let skip = (bug == Bug::EpochOnlyOfKnown && !known) || (bug == Bug::EpochNotByParts && !all);
        if !skip {
            let stored = state.epochs.entry(asked).or_default();
            *stored = if bug == Bug::EpochGoesBack { scope.epoch() } else { scope.epoch().max(*stored) };
        }
        Ok(Erased::new(self.store_name()).with_count("record", (before - after) as u64))
    }
}

#[async_trait]
impl MemoryStore for Memory {
    async fn remember(&self, scope: &Scope, episode: NewEpisode) -> Result<EpisodeId> {
        if self.bug == Bug::HalfAWrite {
            let half = NewEpisode::new(
                episode.run,
                episode.session.clone(),
                episode.at,
                vec![episode.messages[0].clone()],
            );
            let row = Row {
                key: key(self.bug, scope.owner()),
                owner: scope.owner().clone(),
                value: Arc::new(half.into()),
            };
            self.state.lock().unwrap().episodes.push(row);
            tokio::task::yield_now().await;
            self.state.lock().unwrap().episodes.pop();
        }
        let mut state = self.state.lock().unwrap();
        self.check(&state, scope, "remember")?;
        let key = key(self.bug, scope.owner());
        let episode = Arc::new(Episode::from(episode));
        let id = episode.id;
        let same =
            |r: &Row<Arc<Episode>>| r.value.id == id && (r.key == key || self.bug == Bug::RunIdsAreGlobal);
        let known = state.episodes.iter().position(same);
        if known.is_none() {
            self.check_vector(&mut state, scope, episode.embedding.as_ref(), true)?;
        }
        match known {
            Some(at) if self.bug == Bug::RememberReplaces => state.episodes[at].value = episode,
            Some(_) if self.bug != Bug::RememberTwice => {}
            _ => state.episodes.push(Row { key, owner: scope.owner().clone(), value: episode }),
        }
        Ok(id)
    }

    async fn recall(&self, scope: &Scope, query: &RecallQuery) -> Result<Vec<Owned<EpisodeMatch>>> {
        let mut state = self.state.lock().unwrap();
        self.check_vector(&mut state, scope, query.embedding.as_ref(), false)?;
        let mut rows = self.rows(scope, &state.episodes);
        if self.bug == Bug::CutBeforeFilter {
            let mut all = state.episodes.clone();
            all.sort_by_key(|r| (r.value.at, r.value.id));
            let newest: Vec<_> = all.iter().rev().take(query.limit).map(|r| r.value.id).collect();
            rows.retain(|r| newest.contains(&r.value.id));
        }
        if let Some((s, limit)) = &query.exclude_history {
            let shown = self.history_of(&state, scope, s, limit.messages);
            rows.retain(|r| !shown.iter().any(|h| h.value.id == r.value.id));
        }
        let older = self.bug == Bug::TiesOldestFirst;
        let tie = |i: usize| {
            let at = rows[i].value.at.as_micros();
            (if older { -at } else { at }, rows[i].value.id)
        };
        let texts: Vec<String> = rows.iter().map(|r| episode_text(&r.value)).collect();
        let asked = key(self.bug, scope.owner());
        let mut corpus: Vec<String> = match self.bug {
            Bug::SharedStatistics => state.episodes.iter().map(|r| episode_text(&r.value)).collect(),
            _ => self.rows(scope, &state.episodes).iter().map(|r| episode_text(&r.value)).collect(),
        };
        if self.bug == Bug::ForgetKeepsStatistics {
            corpus.extend(state.ghosts.iter().filter(|(k, _)| *k == asked).map(|(_, e)| episode_text(e)));
        }
        if query.text.is_empty() && query.embedding.is_none() {
            let newest = ranked(&vec![Some(0.0); rows.len()], tie);
            let newest = newest.into_iter().take(query.limit);
            let of =
                |i: usize| Owned::new(rows[i].owner.clone(), EpisodeMatch::new(rows[i].value.clone(), 0.0));
            return Ok(newest.map(of).collect());
        }
        let by_words = bm25(&query.text, &texts, &corpus);
        let near: Vec<Option<f32>> =
            rows.iter().map(|r| cosine(query.embedding.as_ref()?, r.value.embedding.as_ref()?)).collect();
        let by_vectors: Vec<Option<f64>> = near.iter().map(|c| c.map(f64::from)).collect();
        let fused = fuse(&[ranked(&by_words, tie), ranked(&by_vectors, tie)], rows.len(), tie);
        let of = |(i, score): (usize, f64)| {
            let found = EpisodeMatch::new(rows[i].value.clone(), score).with_scores(by_words[i], near[i]);
            Owned::new(rows[i].owner.clone(), found)
        };
        Ok(fused.into_iter().take(query.limit).map(of).collect())
    }

    async fn history(
        &self,
        scope: &Scope,
        s: &SessionId,
        limit: HistoryLimit,
    ) -> Result<Vec<Owned<Message>>> {
        let state = self.state.lock().unwrap();
        let split = self.bug == Bug::HistorySplitsEpisodes;
        let rows = self.history_of(&state, scope, s, if split { usize::MAX } else { limit.messages });
        let said =
            rows.iter().flat_map(|r| r.value.messages.iter().map(|m| Owned::new(r.owner.clone(), m.clone())));
        let mut said: Vec<_> = said.collect();
        let over = said.len().saturating_sub(limit.messages);
        said.drain(..over);
        Ok(said)
    }

    async fn blocks(&self, scope: &Scope) -> Result<Vec<Owned<MemoryBlock>>> {
        let state = self.state.lock().unwrap();
        let mut rows = self.rows(scope, &state.blocks);
        rows.sort_by(|a, b| (a.value.order, &a.value.name).cmp(&(b.value.order, &b.value.name)));
        Ok(rows.into_iter().map(|r| Owned::new(r.owner, r.value)).collect())
    }

    async fn put_block(&self, scope: &Scope, put: PutBlock) -> Result<()> {
        if put.name.is_empty() || put.name.len() > 128 || put.name.chars().any(char::is_control) {
            return Err(Error::invalid_input("bad block name"));
        }
        let mut state = self.state.lock().unwrap();
        self.check(&state, scope, "put_block")?;
        let key = key(self.bug, scope.owner());
        let at = state.blocks.iter().position(|r| r.key == key && r.value.name == put.name);
        let old = at.map(|at| state.blocks.remove(at).value.order);
        if let Some(content) = put.content {
            let order = put.order.or(old).unwrap_or(0);
            let value = MemoryBlock::new(put.name, content, order, put.at);
            state.blocks.push(Row { key, owner: scope.owner().clone(), value });
        }
        Ok(())
    }

    async fn profile(&self, scope: &Scope) -> Result<Owned<MemoryProfile>> {
        let state = self.state.lock().unwrap();
        let mut episodes = self.rows(scope, &state.episodes);
        if self.bug == Bug::ProfileOfEverybody {
            episodes.clone_from(&state.episodes);
        }
        episodes.sort_by_key(|r| (r.value.at, r.value.id));
        let clock: SystemClock = Default::default();
        let now = clock.now();
        let mut facts = self.rows(scope, &state.facts);
        facts.retain(|r| r.value.known_until.is_none() && r.value.holds_at(now));
        facts.sort_by_key(|r| (r.value.known_from, r.value.id));
        let mut profile = MemoryProfile::default();
        profile.episodes = episodes.len() as u64;
        profile.facts = facts.len() as u64;
        profile.blocks = self.rows(scope, &state.blocks).len() as u64;
        profile.last_seen = episodes.last().map(|r| r.value.at);
        for row in episodes.iter().rev() {
            if !profile.recent_sessions.contains(&row.value.session) && profile.recent_sessions.len() < 10 {
                profile.recent_sessions.push(row.value.session.clone());
            }
        }
        let blocks = self.rows(scope, &state.blocks);
        let owners = episodes.iter().map(|r| &r.owner).chain(facts.iter().map(|r| &r.owner));
        let mut owners = owners.chain(blocks.iter().map(|r| &r.owner));
        let owner = owners.find(|o| *o != scope.owner()).unwrap_or(scope.owner()).clone();
        profile.sample_facts = facts.into_iter().rev().take(10).map(|r| r.value).collect();
        Ok(Owned::new(owner, profile))
    }

    fn facts(&self) -> Option<&dyn FactStore> {
        Some(self)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_lexical(true).with_vectors(true)
    }
}

fn covers(row: &Fact, from: Timestamp, until: Option<Timestamp>) -> bool {
    row.valid_from <= from && row.valid_until.is_none_or(|end| until.is_some_and(|u| u <= end))
}

fn overlaps(row: &Fact, from: Timestamp, until: Option<Timestamp>) -> bool {
    row.valid_until.is_none_or(|end| from < end) && until.is_none_or(|end| row.valid_from < end)
}

#[async_trait]
impl FactStore for Memory {
    async fn assert(&self, scope: &Scope, new: NewFact) -> Result<Asserted> {
        let empty = new.subject.is_empty() || new.predicate.is_empty() || new.object.is_empty();
        if empty || new.valid_until.is_some_and(|until| until <= new.valid_from) {
            return Err(Error::invalid_input("bad fact"));
        }
        let mut guard = self.state.lock().unwrap();
        self.check(&guard, scope, "assert")?;
        self.check_vector(&mut guard, scope, new.embedding.as_ref(), true)?;
        let key = key(self.bug, scope.owner());
        let foreign = self.bug == Bug::FactsEndForeignFacts;
        let mut rows: Vec<&mut Row<Fact>> =
            guard.facts.iter_mut().filter(|r| foreign || r.key == key).collect();
        let newest = rows.iter().map(|r| r.value.known_from).max();
        let known = newest.map_or(new.recorded_at, |newest| newest.max(new.recorded_at));
        rows.retain(|r| {
            r.value.known_until.is_none()
                && r.value.subject == new.subject
                && r.value.predicate == new.predicate
        });
        let same = |r: &&mut Row<Fact>| {
            r.value.object == new.object && r.key == key && covers(&r.value, new.valid_from, new.valid_until)
        };
        if let Some(at) = rows.iter().position(same) {
            let fact = &mut rows[at].value;
            fact.confidence = fact.confidence.max(new.confidence);
            for source in new.sources {
                if !fact.sources.contains(&source) {
                    fact.sources.push(source);
                }
            }
            return Ok(Asserted::new(fact.id, AssertOutcome::Reinforced, Vec::new()));
        }
        let mut fact = Fact::from_new(FactId::fresh(), &new);
        fact.known_from = known;
        let (mut ended, mut pieces) = (Vec::new(), Vec::new());
        if new.cardinality == Cardinality::One {
            rows.retain(|r| {
                r.value.object != new.object && overlaps(&r.value, new.valid_from, new.valid_until)
            });
            rows.sort_by_key(|r| r.value.valid_from);
            for row in &rows {
                if row.value.valid_from > new.valid_from && self.bug != Bug::LateFactWins {
                    let end = row.value.valid_from;
                    fact.valid_until = Some(fact.valid_until.map_or(end, |until| until.min(end)));
                }
            }
            for row in rows {
                let later = row.value.valid_from > new.valid_from && self.bug != Bug::LateFactWins;
                if later || !overlaps(&row.value, fact.valid_from, fact.valid_until) {
                    continue;
                }
                row.value.known_until = Some(known);
                ended.push(row.value.id);
                let piece = |from, until| {
                    let mut piece = row.value.clone();
                    piece.id = FactId::fresh();
                    (piece.valid_from, piece.valid_until) = (from, until);
                    (piece.known_from, piece.known_until) = (known, None);
                    piece
                };
                if row.value.valid_from < fact.valid_from {
                    pieces.push(piece(row.value.valid_from, Some(fact.valid_from)));
                }
                if let Some(end) = fact.valid_until
                    && row.value.valid_until.is_none_or(|until| end < until)
                {
                    pieces.push(piece(end, row.value.valid_until));
                }
            }
        }
        let id = fact.id;
        for value in pieces.into_iter().chain([fact]) {
            guard.facts.push(Row { key: key.clone(), owner: scope.owner().clone(), value });
        }
        Ok(Asserted::new(id, AssertOutcome::New, ended))
    }

    async fn query(&self, scope: &Scope, query: &FactQuery) -> Result<Vec<Owned<Fact>>> {
        let mut state = self.state.lock().unwrap();
        self.check_vector(&mut state, scope, query.embedding.as_ref(), false)?;
        let mut rows = self.rows(scope, &state.facts);
        let corpus: Vec<String> = rows.iter().map(|r| r.value.text()).collect();
        rows.retain(|r| {
            let f = &r.value;
            query.subject.as_ref().is_none_or(|s| *s == f.subject)
                && query.predicate.as_ref().is_none_or(|p| *p == f.predicate)
                && query.object.as_ref().is_none_or(|o| *o == f.object)
                && query.valid_at.is_none_or(|t| f.holds_at(t))
                && query.known_at.map_or(f.known_until.is_none(), |t| f.known_at(t))
        });
        let tie = |i: usize| (rows[i].value.known_from, rows[i].value.id);
        let texts: Vec<String> = rows.iter().map(|r| r.value.text()).collect();
        let scores = match &query.text {
            Some(text) => bm25(text, &texts, &corpus),
            None => vec![Some(0.0); rows.len()],
        };
        let order = ranked(&scores, tie).into_iter().take(query.limit);
        Ok(order.map(|i| Owned::new(rows[i].owner.clone(), rows[i].value.clone())).collect())
    }
}
