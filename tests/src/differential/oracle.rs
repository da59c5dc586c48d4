//! The contract again, in plain vectors and strings. Shares no code with what it judges.

use loomflow_core::{
    AssertOutcome, Asserted, Cardinality, Embedding, Episode, EpisodeId, Erase, Fact, FactId, FactQuery,
    MemoryBlock, MemoryProfile, Message, NewEpisode, NewFact, PutBlock, RecallQuery, Role, SessionId,
    Timestamp,
};

use super::ranking::{self, Doc, Hit, words};

/// Ids are drawn by the store: a row has this one until the store was asked for it.
const UNKNOWN: u128 = 0;

/// A fact and its vector.
pub(super) type Row = (Fact, Option<Embedding>);

/// Everything of one tenant.
#[derive(Default)]
pub(super) struct User {
    pub(super) epoch: u64,
    /// Newest first.
    pub(super) episodes: Vec<Episode>,
    pub(super) rows: Vec<Row>,
    pub(super) blocks: Vec<MemoryBlock>,
    space: Option<(String, usize)>,
    /// Episodes that the store dropped for want of room and that a fact still names.
    dropped: Vec<(EpisodeId, SessionId, Timestamp)>,
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
        self.episodes.sort_by_key(|e| std::cmp::Reverse((e.at, e.id)));
        while self.episodes.len() > max {
            let Some(e) = self.episodes.pop() else { break };
            if self.rows.iter().any(|(f, _)| f.sources.contains(&e.id)) {
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

    pub(super) fn recall(&self, q: &RecallQuery) -> Vec<(&Episode, Hit)> {
        let skip: Vec<EpisodeId> = match &q.exclude_history {
            Some((s, l)) => self.tail(s, l.messages).iter().map(|e| e.id).collect(),
            None => Vec::new(),
        };
        let said = |m: &&Message| m.role == Role::User || m.role == Role::Assistant;
        let doc = |e: &Episode| Doc {
            words: e.messages.iter().filter(said).flat_map(|m| words(&m.text)).collect(),
            vector: e.embedding.clone(),
            tie: (e.at, e.id.as_u128()),
            out: skip.contains(&e.id),
        };
        let docs: Vec<Doc> = self.episodes.iter().map(doc).collect();
        let hits = ranking::rank(&docs, &q.text, q.embedding.as_ref(), q.limit);
        hits.into_iter().map(|hit| (&self.episodes[hit.doc], hit)).collect()
    }

    pub(super) fn put_block(&mut self, put: PutBlock) {
        let old = self.blocks.iter().position(|b| b.name == put.name).map(|at| self.blocks.remove(at));
        if let Some(content) = put.content {
            let order = put.order.or(old.map(|b| b.order)).unwrap_or(0);
            self.blocks.push(MemoryBlock::new(put.name, content, order, put.at));
        }
        self.blocks.sort_by_key(|b| (b.order, b.name.clone()));
    }

    /// Asserts, and checks what the store answered. Which of several equal rows was reinforced is the store's to say.
    pub(super) fn assert(&mut self, new: &NewFact, answer: &Asserted) -> Result<(), String> {
        self.see(new.embedding.as_ref());
        if let Some(candidates) = self.reinforced(new) {
            let told = self.rows.iter().position(|(f, _)| f.id == answer.id);
            let Some(at) = told.filter(|at| candidates.contains(at)) else {
                return Err(format!(
                    "one of the rows {candidates:?} is reinforced, and not row {told:?}: {answer:?}"
                ));
            };
            let (fact, vector) = &mut self.rows[at];
            fact.confidence = fact.confidence.max(new.confidence);
            for source in &new.sources {
                if !fact.sources.contains(source) {
                    fact.sources.push(*source);
                }
            }
            *vector = vector.clone().or(new.embedding.clone());
            return expect(answer, AssertOutcome::Reinforced, &[]);
        }
        let ended = self.write(new, answer.id);
        expect(answer, AssertOutcome::New, &ended)
    }

    /// Where the assertion ends once what begins later has cut it.
    fn cut(&self, new: &NewFact) -> i64 {
        let (from, mut until) = (new.valid_from.as_micros(), end(new.valid_until));
        for (f, _) in &self.rows {
            let begins = f.valid_from.as_micros();
            if is_rival(f, new) && begins > from && begins < until {
                until = begins;
            }
        }
        until
    }

    /// The rows that an assertion strengthens: more than one when nothing tells them apart.
    fn reinforced(&self, new: &NewFact) -> Option<Vec<usize>> {
        let (from, asked) = (new.valid_from.as_micros(), self.cut(new));
        let covers = |f: &Fact| {
            f.subject == new.subject
                && f.predicate == new.predicate
                && f.object == new.object
                && f.known_until.is_none()
                && f.valid_from.as_micros() <= from
                && end(f.valid_until) >= asked
        };
        let key = |f: &Fact| {
            let mut sources = f.sources.clone();
            sources.sort();
            (f.known_from, f.valid_from, end(f.valid_until), f.confidence, sources)
        };
        let first = self.rows.iter().map(|(f, _)| f).filter(|f| covers(f)).map(key).min()?;
        let same = |at: &usize| covers(&self.rows[*at].0) && key(&self.rows[*at].0) == first;
        Some((0..self.rows.len()).filter(same).collect())
    }

    /// Writes a row, and returns the ids of those it ended, oldest first.
    fn write(&mut self, new: &NewFact, id: FactId) -> Vec<FactId> {
        let (from, until) = (new.valid_from.as_micros(), self.cut(new));
        let mut now = new.recorded_at;
        for (f, _) in &self.rows {
            now = now.max(f.known_from);
        }
        let rival = |f: &Fact| is_rival(f, new);
        let (mut ended, mut rests) = (Vec::new(), Vec::new());
        for (f, v) in &mut self.rows {
            let (a, z) = (f.valid_from.as_micros(), end(f.valid_until));
            if rival(f) && a < until && from < z {
                for (left, right) in [(a, from), (until, z)] {
                    if left < right {
                        let mut rest = f.clone();
                        rest.id = FactId::from_u128(UNKNOWN);
                        (rest.valid_from, rest.valid_until) = (Timestamp::from_micros(left), back(right));
                        rest.known_from = now;
                        rests.push((rest, v.clone()));
                    }
                }
                f.known_until = Some(now);
                ended.push((f.known_from, f.id));
            }
        }
        let mut fact = Fact::from_new(id, new);
        (fact.known_from, fact.valid_until) = (now, back(until));
        self.rows.push((fact, new.embedding.clone()));
        self.rows.append(&mut rests);
        ended.sort();
        ended.into_iter().map(|(_, id)| id).collect()
    }

    /// Compares all rows with those of the store, and learns the ids that it has drawn.
    pub(super) fn compare_rows(&mut self, mut stored: Vec<Row>) -> Result<(), String> {
        let unknown = |row: &Row| row.0.id.as_u128() == UNKNOWN;
        for row in self.rows.iter_mut().filter(|row| !unknown(row)) {
            let at = stored.iter().position(|(f, _)| f.id == row.0.id);
            let found = at.map(|at| stored.swap_remove(at));
            if found.as_ref().map(plain) != Some(plain(row)) {
                return Err(format!("the row {row:?} is stored as {found:?}"));
            }
            if let Some(found) = found {
                // Sources are a set; from here on in the store's order, so that facts can be compared whole.
                row.0.sources = found.0.sources;
            }
        }
        for row in self.rows.iter_mut().filter(|row| unknown(row)) {
            let Some(at) = stored.iter().position(|found| plain(found) == plain(row)) else {
                return Err(format!("the row {row:?} is not stored; there are {stored:?}"));
            };
            *row = stored.swap_remove(at);
        }
        if stored.is_empty() { Ok(()) } else { Err(format!("rows that should not be there: {stored:?}")) }
    }

    pub(super) fn facts(&self, q: &FactQuery) -> Vec<&Fact> {
        let matches = |f: &Fact| {
            q.subject.as_ref().is_none_or(|s| *s == f.subject)
                && q.predicate.as_ref().is_none_or(|p| *p == f.predicate)
                && q.object.as_ref().is_none_or(|o| *o == f.object)
                && q.valid_at.is_none_or(|t| f.valid_from <= t && f.valid_until.is_none_or(|u| t < u))
                && match q.known_at {
                    None => f.known_until.is_none(),
                    Some(t) => f.known_from <= t && f.known_until.is_none_or(|u| t < u),
                }
        };
        let rows: Vec<&Row> = self.rows.iter().filter(|(f, _)| matches(f)).collect();
        let doc = |(f, v): &&Row| Doc {
            words: words(&format!("{} {} {}", f.subject, f.predicate, f.object)),
            vector: v.clone(),
            tie: (f.known_from, f.id.as_u128()),
            out: false,
        };
        let docs: Vec<Doc> = rows.iter().map(doc).collect();
        let hits = ranking::rank(&docs, q.text.as_deref().unwrap_or(""), q.embedding.as_ref(), q.limit);
        hits.into_iter().map(|hit| &rows[hit.doc].0).collect()
    }

    pub(super) fn profile(&self, now: Timestamp) -> MemoryProfile {
        let mut profile = MemoryProfile::default();
        profile.episodes = self.episodes.len() as u64;
        profile.blocks = self.blocks.len() as u64;
        profile.last_seen = self.episodes.first().map(|e| e.at);
        for e in &self.episodes {
            if !profile.recent_sessions.contains(&e.session) {
                profile.recent_sessions.push(e.session.clone());
            }
        }
        profile.recent_sessions.truncate(10);
        let holds = self.facts(&FactQuery::all(usize::MAX).valid_at(now));
        profile.facts = holds.len() as u64;
        profile.sample_facts = holds.into_iter().take(10).cloned().collect();
        profile
    }

    /// Returns how many episodes, facts and blocks went.
    pub(super) fn forget(&mut self, what: &Erase) -> [u64; 3] {
        let before = [self.episodes.len(), self.rows.len(), self.blocks.len()];
        if what.session.is_none() && what.before.is_none() {
            *self = Self { epoch: self.epoch, ..Self::default() };
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
        self.rows.retain_mut(|(f, _)| {
            let lost = f.sources.iter().any(|s| erased.contains(s));
            f.sources.retain(|s| !erased.contains(s));
            if f.sources.iter().any(|s| alive.contains(s) || dropped.contains(s)) {
                return true;
            }
            let old = what.session.is_none() && what.before.is_some_and(|b| f.known_from < b);
            !lost && !old
        });
        self.dropped.retain(|d| self.rows.iter().any(|(f, _)| f.sources.contains(&d.0)));
        if let (None, Some(moment)) = (&what.session, what.before) {
            self.blocks.retain(|b| b.updated_at >= moment);
        }
        let after = [self.episodes.len(), self.rows.len(), self.blocks.len()];
        [0, 1, 2].map(|i| (before[i] - after[i]) as u64)
    }
}

fn expect(answer: &Asserted, outcome: AssertOutcome, superseded: &[FactId]) -> Result<(), String> {
    if answer.outcome == outcome && answer.superseded == superseded {
        return Ok(());
    }
    Err(format!("expected {outcome:?} that ends {superseded:?}, and not {answer:?}"))
}

/// A row but for its id and the order of its sources.
fn plain((fact, vector): &Row) -> Row {
    let mut fact = fact.clone();
    fact.id = FactId::from_u128(UNKNOWN);
    fact.sources.sort();
    (fact, vector.clone())
}

/// What goes on ends after every moment.
fn end(until: Option<Timestamp>) -> i64 {
    until.map_or(i64::MAX, Timestamp::as_micros)
}

fn back(until: i64) -> Option<Timestamp> {
    (until != i64::MAX).then(|| Timestamp::from_micros(until))
}

fn is_rival(f: &Fact, new: &NewFact) -> bool {
    new.cardinality == Cardinality::One
        && f.known_until.is_none()
        && f.subject == new.subject
        && f.predicate == new.predicate
        && f.object != new.object
}
