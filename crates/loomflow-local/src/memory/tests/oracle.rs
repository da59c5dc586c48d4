//! The contract again, in plain vectors and strings. Shares no code with what it judges.

use std::collections::BTreeMap;

use loomflow_core::{
    Cardinality, Embedding, Episode, EpisodeId, Erase, Fact, FactId, FactQuery, MemoryBlock, Message,
    NewEpisode, NewFact, Owner, PutBlock, RecallQuery, Role, SessionId, Timestamp,
};

#[derive(Default)]
pub(super) struct User {
    pub(super) epoch: u64,
    pub(super) episodes: Vec<Episode>,
    pub(super) facts: Vec<(Fact, Option<Embedding>)>,
    pub(super) blocks: Vec<MemoryBlock>,
    pub(super) space: Option<(String, usize)>,
    dropped: Vec<(EpisodeId, SessionId, Timestamp)>,
}

pub(super) struct Oracle {
    pub(super) users: BTreeMap<Owner, User>,
    pub(super) max_episodes: usize,
}

impl Oracle {
    pub(super) fn user(&mut self, owner: &Owner) -> &mut User {
        self.users.entry(owner.clone()).or_default()
    }
}

fn newest_first(list: &mut [Episode]) {
    list.sort_by_key(|e| std::cmp::Reverse((e.at, e.id)));
}

impl User {
    /// Whether a vector is of another kind than those that are held.
    pub(super) fn clashes(&self, vector: Option<&Embedding>) -> bool {
        matches!((&self.space, vector), (Some((model, n)), Some(v)) if **model != *v.model || *n != v.vector.len())
    }

    fn see(&mut self, vector: Option<&Embedding>) {
        if let (None, Some(v)) = (&self.space, vector) {
            self.space = Some((v.model.to_string(), v.vector.len()));
        }
    }

    pub(super) fn remember(&mut self, new: NewEpisode, max: usize) {
        let episode = Episode::from(new);
        if self.episodes.iter().any(|e| e.id == episode.id) {
            return;
        }
        self.see(episode.embedding.as_ref());
        self.episodes.push(episode);
        newest_first(&mut self.episodes);
        while self.episodes.len() > max {
            let e = self.episodes.pop().unwrap();
            if self.facts.iter().any(|(f, _)| f.sources.contains(&e.id)) {
                self.dropped.push((e.id, e.session, e.at));
            }
        }
    }

    fn tail(&self, session: &SessionId, limit: usize) -> Vec<&Episode> {
        let mut out: Vec<&Episode> = Vec::new();
        let mut used = 0;
        for e in self.episodes.iter().filter(|e| e.session == *session) {
            used += e.messages.len();
            if used > limit {
                break;
            }
            out.insert(0, e);
        }
        out
    }

    pub(super) fn history(&self, session: &SessionId, limit: usize) -> Vec<Message> {
        self.tail(session, limit).iter().flat_map(|e| e.messages.to_vec()).collect()
    }

    pub(super) fn recall(&self, q: &RecallQuery) -> Vec<(EpisodeId, f64)> {
        let skip: Vec<EpisodeId> = match &q.exclude_history {
            Some((s, l)) => self.tail(s, l.messages).iter().map(|e| e.id).collect(),
            None => Vec::new(),
        };
        let text = |e: &Episode| {
            let said: Vec<&str> = e
                .messages
                .iter()
                .filter(|m| m.role == Role::User || m.role == Role::Assistant)
                .map(|m| &*m.text)
                .collect();
            said.join(" ")
        };
        let docs: Vec<Doc> = self
            .episodes
            .iter()
            .map(|e| Doc {
                words: words(&text(e)),
                vector: e.embedding.clone(),
                tie: (e.at, e.id.as_u128()),
                out: skip.contains(&e.id),
            })
            .collect();
        rank(&docs, &q.text, q.embedding.as_ref(), q.limit)
            .into_iter()
            .map(|(at, score)| (self.episodes[at].id, score))
            .collect()
    }

    pub(super) fn put_block(&mut self, put: PutBlock) {
        let old = self.blocks.iter().position(|b| b.name == put.name).map(|at| self.blocks.remove(at));
        if let Some(content) = put.content {
            let order = put.order.or(old.map(|b| b.order)).unwrap_or(0);
            self.blocks.push(MemoryBlock::new(put.name, content, order, put.at));
        }
        self.blocks.sort_by_key(|b| (b.order, b.name.clone()));
    }

    /// Returns whether a row was written, and how many were ended.
    pub(super) fn assert(&mut self, new: &NewFact) -> (bool, usize) {
        const FOREVER: i64 = i64::MAX;
        self.see(new.embedding.as_ref());
        let until = |t: Option<Timestamp>| t.map_or(FOREVER, Timestamp::as_micros);
        let back = |t: i64| if t == FOREVER { None } else { Some(Timestamp::from_micros(t)) };
        let (from, asked) = (new.valid_from.as_micros(), until(new.valid_until));
        let mut covering: Vec<usize> = Vec::new();
        for (i, (f, _)) in self.facts.iter().enumerate() {
            let same = f.subject == new.subject && f.predicate == new.predicate && f.object == new.object;
            if same
                && f.known_until.is_none()
                && f.valid_from.as_micros() <= from
                && until(f.valid_until) >= asked
            {
                covering.push(i);
            }
        }
        covering.sort_by_key(|i| {
            let f = &self.facts[*i].0;
            let mut sources = f.sources.clone();
            sources.sort();
            (f.known_from, f.valid_from, until(f.valid_until), f.confidence, sources)
        });
        if let Some(i) = covering.first() {
            let (f, v) = &mut self.facts[*i];
            f.confidence = f.confidence.max(new.confidence);
            for source in &new.sources {
                if !f.sources.contains(source) {
                    f.sources.push(*source);
                }
            }
            *v = v.clone().or(new.embedding.clone());
            return (false, 0);
        }
        let now = self.facts.iter().map(|(f, _)| f.known_from).chain([new.recorded_at]).max().unwrap();
        let rival = |f: &Fact| {
            new.cardinality == Cardinality::One
                && f.known_until.is_none()
                && f.subject == new.subject
                && f.predicate == new.predicate
                && f.object != new.object
        };
        let mut end = asked;
        for (f, _) in &self.facts {
            let begins = f.valid_from.as_micros();
            if rival(f) && begins > from && begins < asked {
                end = end.min(begins);
            }
        }
        let mut rests = Vec::new();
        let mut ended = 0;
        for (f, v) in &mut self.facts {
            let (a, z) = (f.valid_from.as_micros(), until(f.valid_until));
            if rival(f) && a < end && from < z {
                for (left, right) in [(a, from), (end, z)] {
                    if left < right {
                        let mut rest = f.clone();
                        rest.valid_from = Timestamp::from_micros(left);
                        rest.valid_until = back(right);
                        rest.known_from = now;
                        rests.push((rest, v.clone()));
                    }
                }
                f.known_until = Some(now);
                ended += 1;
            }
        }
        let mut fact = Fact::from_new(FactId::from_u128(0), new);
        fact.known_from = now;
        fact.valid_until = back(end);
        self.facts.push((fact, new.embedding.clone()));
        self.facts.append(&mut rests);
        (true, ended)
    }

    pub(super) fn facts(&self, q: &FactQuery) -> Vec<Fact> {
        let matches = |f: &&(Fact, Option<Embedding>)| {
            let f = &f.0;
            q.subject.as_ref().is_none_or(|s| *s == f.subject)
                && q.predicate.as_ref().is_none_or(|p| *p == f.predicate)
                && q.object.as_ref().is_none_or(|o| *o == f.object)
                && q.valid_at.is_none_or(|t| f.valid_from <= t && f.valid_until.is_none_or(|u| t < u))
                && match q.known_at {
                    None => f.known_until.is_none(),
                    Some(t) => f.known_from <= t && f.known_until.is_none_or(|u| t < u),
                }
        };
        self.facts.iter().filter(matches).map(|(f, _)| f.clone()).collect()
    }

    pub(super) fn forget(&mut self, what: &Erase) -> [u64; 3] {
        let before = [self.episodes.len(), self.facts.len(), self.blocks.len()];
        if what.session.is_none() && what.before.is_none() {
            let epoch = self.epoch;
            *self = Self { epoch, ..Self::default() };
            return before.map(|n| n as u64);
        }
        let hit = |s: &SessionId, at: Timestamp| {
            what.session.as_ref().is_none_or(|w| w == s) && what.before.is_none_or(|b| at < b)
        };
        let mut erased = Vec::new();
        self.episodes.retain(|e| {
            let goes = hit(&e.session, e.at);
            if goes {
                erased.push(e.id);
            }
            !goes
        });
        let alive: Vec<EpisodeId> = self.episodes.iter().map(|e| e.id).collect();
        self.dropped.retain(|(id, s, at)| {
            let goes = hit(s, *at) && !alive.contains(id);
            if goes {
                erased.push(*id);
            }
            !goes
        });
        let dropped: Vec<EpisodeId> = self.dropped.iter().map(|d| d.0).collect();
        self.facts.retain_mut(|(f, _)| {
            let lost = f.sources.iter().any(|s| erased.contains(s));
            f.sources.retain(|s| !erased.contains(s));
            if f.sources.iter().any(|s| alive.contains(s) || dropped.contains(s)) {
                return true;
            }
            let old = what.session.is_none() && what.before.is_some_and(|b| f.known_from < b);
            !lost && !old
        });
        self.dropped.retain(|d| self.facts.iter().any(|(f, _)| f.sources.contains(&d.0)));
        if let (None, Some(moment)) = (&what.session, what.before) {
            self.blocks.retain(|b| b.updated_at >= moment);
        }
        let after = [self.episodes.len(), self.facts.len(), self.blocks.len()];
        [0, 1, 2].map(|i| (before[i] - after[i]) as u64)
    }
}

pub(super) struct Doc {
    pub(super) words: Vec<String>,
    pub(super) vector: Option<Embedding>,
    pub(super) tie: (Timestamp, u128),
    pub(super) out: bool,
}

pub(super) fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|w| !w.is_empty())
        .map(|w| w.chars().flat_map(char::to_lowercase).collect())
        .collect()
}

/// Ranks of documents, by the formulas as they are written.
pub(super) fn rank(docs: &[Doc], text: &str, vector: Option<&Embedding>, limit: usize) -> Vec<(usize, f64)> {
    let mut query: Vec<String> = Vec::new();
    for word in words(text) {
        if !query.contains(&word) {
            query.push(word);
        }
    }
    let open: Vec<usize> = (0..docs.len()).filter(|i| !docs[*i].out).collect();
    let newest = |list: &mut Vec<(usize, f64)>| {
        list.sort_by(|(a, x), (b, y)| y.total_cmp(x).then(docs[*b].tie.cmp(&docs[*a].tie)));
    };
    if query.is_empty() && vector.is_none() {
        let mut all: Vec<(usize, f64)> = open.into_iter().map(|i| (i, 0.0)).collect();
        newest(&mut all);
        all.truncate(limit);
        return all;
    }
    let n = docs.len() as f64;
    let average = docs.iter().map(|d| d.words.len()).sum::<usize>() as f64 / n;
    let bm25 = |doc: &Doc| {
        let mut score = 0.0;
        for word in &query {
            let df = docs.iter().filter(|d| d.words.contains(word)).count() as f64;
            let tf = doc.words.iter().filter(|w| *w == word).count() as f64;
            if tf > 0.0 {
                let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
                score += idf
                    * (tf * (1.2 + 1.0)
                        / (tf + 1.2 * (1.0 - 0.75 + 0.75 * (doc.words.len() as f64 / average))));
            }
        }
        score
    };
    let cosine = |doc: &Doc| {
        let (q, d) = (vector?, doc.vector.as_ref()?);
        if q.model != d.model || q.vector.len() != d.vector.len() {
            return None;
        }
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        let value =
            dot(&q.vector, &d.vector) / (dot(&q.vector, &q.vector) * dot(&d.vector, &d.vector)).sqrt();
        // Rounded, so that vectors of one direction tie.
        (value > 1e-7).then(|| (value * 1e6).round())
    };
    let mut by_words: Vec<(usize, f64)> =
        open.iter().map(|i| (*i, bm25(&docs[*i]))).filter(|(_, s)| *s > 0.0).collect();
    let mut by_vector: Vec<(usize, f64)> =
        open.iter().filter_map(|i| Some((*i, cosine(&docs[*i])?))).collect();
    newest(&mut by_words);
    newest(&mut by_vector);
    let mut fused: BTreeMap<usize, f64> = BTreeMap::new();
    for list in [by_words, by_vector] {
        for (rank, (i, _)) in list.into_iter().enumerate() {
            *fused.entry(i).or_default() += 1.0 / (60.0 + (rank as f64 + 1.0));
        }
    }
    let mut out: Vec<(usize, f64)> = fused.into_iter().collect();
    newest(&mut out);
    out.truncate(limit);
    out
}
