//! The store: episodes, blocks and the whole of a partition. Facts are in `facts`.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use loomflow_core::resilience::Readiness;
use loomflow_core::rules::rank::{self, Candidate, Probe, Scored};
use loomflow_core::rules::words::{Corpus, QueryTerms};
use loomflow_core::rules::{
    PROFILE_SAMPLES, Space, check_block_name, check_embedding, export_block, export_episode, export_fact,
    latest_that_fit,
};
use loomflow_core::{
    Capabilities, Clock, Episode, EpisodeId, EpisodeMatch, Epoch, Erase, Erased, Error, ErrorKind,
    ExportItem, ExportStream, FactQuery, FactStore, HistoryLimit, MemoryBlock, MemoryProfile, MemoryStore,
    Message, NewEpisode, Owned, Owner, PutBlock, RecallQuery, Result, Scope, SessionId, SystemClock,
    TenantData, Timestamp,
};
use qdrant_client::qdrant::Condition;

use crate::cells::Step;
use crate::config::QdrantMemoryConfig;
use crate::error::busy;
use crate::facts::choose;
use crate::head::TURNS;
use crate::keys::{Kind, Partition, field};
use crate::record::{self, Sketch};
use crate::server::{Fields, Server};

const NAME: &str = "memory:qdrant";
/// How many episodes an export reads at a time.
const EXPORT_PAGE: usize = 64;

/// Memory on a Qdrant server, shared by every process that names the same collection.
///
/// See the crate's documentation for what it rests on. Cloning gives another handle to the same connections.
#[derive(Clone)]
pub struct QdrantMemory {
    server: Arc<Server>,
    clock: Arc<dyn Clock>,
}

impl QdrantMemory {
    /// Connects, checks the server, and brings the collection up to date or, without
    /// [`migrate`](QdrantMemoryConfig::migrate), checks that it is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for a URL, a key or a server that cannot be used, and for a collection that is older or newer
    /// than this program; [`ErrorKind::Unreachable`] when nobody answers.
    pub async fn connect(config: QdrantMemoryConfig) -> Result<Self> {
        let server = Server::new(&config)?;
        server.check_server().await?;
        if config.migrate {
            server.migrate().await?
        } else {
            server.check_schema().await?
        }
        Ok(Self { server: Arc::new(server), clock: Arc::new(SystemClock) })
    }

    /// Creates the collection, or brings it up to date, and does nothing else.
    ///
    /// # Errors
    ///
    /// As [`QdrantMemory::connect`].
    pub async fn migrate(config: &QdrantMemoryConfig) -> Result<()> {
        let server = Server::new(config)?;
        server.check_server().await?;
        server.migrate().await
    }

    /// Takes the wall clock from `clock`; only [`MemoryStore::profile`] reads it.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    pub(crate) fn partition(&self, scope: &Scope) -> Partition {
        Partition::of(scope.owner(), self.server.loses_partition_filter)
    }

    /// What is known of the episodes without reading them; in no order.
    async fn sketches(
        &self,
        partition: &Partition,
        also: Option<Condition>,
        more: &[&str],
        operation: &'static str,
    ) -> Result<Vec<Sketch>> {
        let fields: Vec<&str> = Sketch::FIELDS.iter().chain(more).copied().collect();
        let rows = self.server.scan(partition, Kind::Episode, also, Fields::Some(&fields), operation).await?;
        rows.into_iter().filter(record::Row::is_live).map(|row| Sketch::of(row, operation)).collect()
    }

    /// The chosen episodes in their order; `None` when one of them is gone meanwhile.
    async fn fetch(
        &self,
        partition: &Partition,
        chosen: &[&Sketch],
        operation: &'static str,
    ) -> Result<Option<Vec<(Owner, Arc<Episode>)>>> {
        let ids: Vec<&str> = chosen.iter().map(|s| s.point.as_str()).collect();
        let rows = self.server.get_all(partition, &ids, Fields::All, operation).await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in rows.into_iter().filter(record::Row::is_live) {
            let episode = Arc::new(record::to_episode(&row, operation)?);
            found.insert(row.id, (row.owner, episode));
        }
        Ok(ids.into_iter().map(|id| found.remove(id)).collect())
    }

    async fn blocks_of(
        &self,
        partition: &Partition,
        operation: &'static str,
    ) -> Result<Vec<(Owner, MemoryBlock)>> {
        let rows = self.server.scan(partition, Kind::Block, None, Fields::All, operation).await?;
        let mut blocks = Vec::with_capacity(rows.len());
        for row in rows.into_iter().filter(record::Row::is_live) {
            let block = row.record(operation)?;
            blocks.push((row.owner, block));
        }
        blocks.sort_by(|(_, a): &(Owner, MemoryBlock), (_, b)| (a.order, &a.name).cmp(&(b.order, &b.name)));
        Ok(blocks)
    }

    /// Everything of a partition, oldest first; the episodes by their place alone.
    async fn entries(&self, partition: &Partition) -> Result<Vec<(Timestamp, Entry)>> {
        let mut entries = Vec::new();
        for sketch in newest_first(self.sketches(partition, None, &[], "export").await?).into_iter().rev() {
            entries.push((sketch.at, Entry::Episode(sketch)));
        }
        for (owner, row) in self.server.facts(partition, "export").await? {
            let item = export_fact(&row.fact, row.embedding.as_ref())?;
            entries.push((row.fact.known_from, Entry::Item(Owned::new(owner, item))));
        }
        let rows = self.server.scan(partition, Kind::Block, None, Fields::All, "export").await?;
        for row in rows.into_iter().filter(record::Row::is_live) {
            let block: MemoryBlock = row.record("export")?;
            entries.push((block.updated_at, Entry::Item(Owned::new(row.owner, export_block(&block)?))));
        }
        entries.sort_by_key(|(at, _)| *at);
        Ok(entries)
    }

    async fn page(self, partition: Arc<Partition>, entries: Vec<Entry>) -> Vec<Result<Owned<ExportItem>>> {
        match self.read_page(&partition, entries).await {
            Ok(items) => items.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        }
    }

    async fn read_page(&self, partition: &Partition, entries: Vec<Entry>) -> Result<Vec<Owned<ExportItem>>> {
        let chosen: Vec<&Sketch> = entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Episode(sketch) => Some(sketch),
                Entry::Item(_) => None,
            })
            .collect();
        let Some(episodes) = self.fetch(partition, &chosen, "export").await? else {
            let message = "the tenant's data was erased while it was exported; export it again";
            return Err(Error::new(ErrorKind::Conflict, message)
                .with_operation("export")
                .with_retryable(true));
        };
        let mut episodes = episodes.into_iter();
        let mut items = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry {
                Entry::Item(item) => items.push(item),
                Entry::Episode(_) => {
                    let Some((owner, episode)) = episodes.next() else { continue };
                    items.push(Owned::new(owner, export_episode(&episode)?));
                }
            }
        }
        Ok(items)
    }
}

/// A record of an export.
#[derive(Debug)]
enum Entry {
    /// Read when its turn comes.
    Episode(Sketch),
    Item(Owned<ExportItem>),
}

impl fmt::Debug for QdrantMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QdrantMemory({}, {:?})", self.server.collection, self.server.guard)
    }
}

#[async_trait]
impl TenantData for QdrantMemory {
    fn store_name(&self) -> &str {
        NAME
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        let head = self.server.settled(&self.partition(scope), "epoch").await?;
        Ok(Epoch::new(head.state.epoch))
    }

    async fn ready(&self) -> Readiness {
        let answer = self.server.check_server().await;
        self.server.guard.readiness(&answer)
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let partition = self.partition(scope);
        for _ in 0..TURNS {
            let head = self.server.settled(&partition, "export").await?;
            let entries = self.entries(&partition).await?;
            if !self.server.head(&partition, "export").await?.is(&head) {
                continue;
            }
            let mut pages: Vec<Vec<Entry>> = Vec::new();
            for (_, entry) in entries {
                match pages.last_mut() {
                    Some(page) if page.len() < EXPORT_PAGE => page.push(entry),
                    _ => pages.push(vec![entry]),
                }
            }
            let (memory, partition) = (self.clone(), Arc::new(partition));
            let items = stream::iter(pages)
                .then(move |page| memory.clone().page(partition.clone(), page))
                .flat_map(stream::iter);
            return Ok(Box::pin(items));
        }
        Err(busy("export"))
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let line = match self.server.erase(scope, what).await? {
            Some(counts) => Erased::new(NAME)
                .with_count("episode", counts.episodes)
                .with_count("fact", counts.facts)
                .with_count("block", counts.blocks),
            None => Erased::new(NAME).with_retained(
                "nothing of what was to be erased; how much it was is not known any more, because more erasures followed \
                 at once than receipts are kept",
            ),
        };
        Ok(match what.is_everything() {
            true => line.with_retained(
                "the namespace and the user id, with the epoch and the counts of the last erasures: they keep writes \
                 that are older than the erasure out",
            ),
            false => line,
        })
    }
}

#[async_trait]
impl MemoryStore for QdrantMemory {
    async fn remember(&self, scope: &Scope, episode: NewEpisode) -> Result<EpisodeId> {
        let episode = Episode::from(episode);
        let id = episode.id;
        let name = id.as_u128().to_be_bytes();
        let step = |seen: &crate::cells::Seen<'_>| {
            if seen.row.is_some() {
                return Ok(Step::Done(id));
            }
            check_embedding(episode.embedding.as_ref(), "remember")?;
            Space::check(seen.space, episode.embedding.as_ref(), "remember")?;
            match (seen.space, &episode.embedding) {
                (None, Some(embedding)) => Ok(Step::Claim(embedding.clone())),
                _ => Ok(Step::Fill(record::of_episode(episode.clone())?, id)),
            }
        };
        self.server.write(scope, Kind::Episode, &[&name], "remember", step).await
    }

    async fn recall(&self, scope: &Scope, query: &RecallQuery) -> Result<Vec<Owned<EpisodeMatch>>> {
        check_embedding(query.embedding.as_ref(), "recall")?;
        let partition = self.partition(scope);
        let terms = QueryTerms::parse(&query.text);
        let mut fields = Vec::new();
        if !terms.is_empty() {
            fields.push(Sketch::WORDS);
        }
        if query.embedding.is_some() {
            fields.extend(Sketch::VECTOR);
        }
        for _ in 0..TURNS {
            let head = self.server.settled(&partition, "recall").await?;
            Space::check(head.state.space().as_ref(), query.embedding.as_ref(), "recall")?;
            let sketches = newest_first(self.sketches(&partition, None, &fields, "recall").await?);
            let ranked = ranked(&sketches, &terms, query);
            let chosen: Vec<&Sketch> = ranked.iter().map(|found| &sketches[found.index]).collect();
            let episodes = self.fetch(&partition, &chosen, "recall").await?;
            let same = self.server.head(&partition, "recall").await?.is(&head);
            let Some(episodes) = episodes.filter(|_| same) else { continue };
            let matched = |((owner, episode), found): ((Owner, Arc<Episode>), &Scored)| {
                let matched = EpisodeMatch::new(episode, found.score);
                Owned::new(owner, matched.with_scores(found.bm25, found.cosine))
            };
            return Ok(episodes.into_iter().zip(&ranked).map(matched).collect());
        }
        Err(busy("recall"))
    }

    async fn history(
        &self,
        scope: &Scope,
        session: &SessionId,
        limit: HistoryLimit,
    ) -> Result<Vec<Owned<Message>>> {
        let partition = self.partition(scope);
        for _ in 0..TURNS {
            let head = self.server.settled(&partition, "history").await?;
            let of = Condition::matches(format!("{}.session", field::LIVE), session.as_str().to_owned());
            let sketches = newest_first(self.sketches(&partition, Some(of), &[], "history").await?);
            let fit = latest_that_fit(sketches.iter().map(|s| s.messages), limit);
            let chosen: Vec<&Sketch> = sketches[..fit].iter().rev().collect();
            let episodes = self.fetch(&partition, &chosen, "history").await?;
            let same = self.server.head(&partition, "history").await?.is(&head);
            let Some(episodes) = episodes.filter(|_| same) else { continue };
            let messages = episodes.into_iter().flat_map(|(owner, episode)| {
                episode.messages.iter().map(|m| Owned::new(owner.clone(), m.clone())).collect::<Vec<_>>()
            });
            return Ok(messages.collect());
        }
        Err(busy("history"))
    }

    async fn blocks(&self, scope: &Scope) -> Result<Vec<Owned<MemoryBlock>>> {
        let partition = self.partition(scope);
        for _ in 0..TURNS {
            let head = self.server.settled(&partition, "blocks").await?;
            let blocks = self.blocks_of(&partition, "blocks").await?;
            if self.server.head(&partition, "blocks").await?.is(&head) {
                return Ok(blocks.into_iter().map(|(owner, block)| Owned::new(owner, block)).collect());
            }
        }
        Err(busy("blocks"))
    }

    async fn put_block(&self, scope: &Scope, put: PutBlock) -> Result<()> {
        check_block_name(&put.name)?;
        let step = |seen: &crate::cells::Seen<'_>| {
            let Some(content) = &put.content else {
                return Ok(if seen.row.is_some() { Step::Remove(()) } else { Step::Done(()) });
            };
            let old: Option<MemoryBlock> = seen.row.map(|row| row.record("put_block")).transpose()?;
            let order = put.order.unwrap_or_else(|| old.map_or(0, |block| block.order));
            let block = MemoryBlock::new(put.name.clone(), content.clone(), order, put.at);
            Ok(Step::Fill(record::of_block(&block)?, ()))
        };
        self.server.write(scope, Kind::Block, &[put.name.as_bytes()], "put_block", step).await
    }

    async fn profile(&self, scope: &Scope) -> Result<Owned<MemoryProfile>> {
        let partition = self.partition(scope);
        for _ in 0..TURNS {
            let head = self.server.settled(&partition, "profile").await?;
            let sketches = newest_first(self.sketches(&partition, None, &[], "profile").await?);
            let facts = self.server.facts(&partition, "profile").await?;
            let blocks = self.blocks_of(&partition, "profile").await?;
            if !self.server.head(&partition, "profile").await?.is(&head) {
                continue;
            }
            // One foreign record makes the whole profile foreign.
            let mut owners = sketches
                .iter()
                .map(|s| &s.owner)
                .chain(facts.iter().map(|f| &f.0))
                .chain(blocks.iter().map(|b| &b.0));
            let owner = owners.find(|owner| !scope.owns(owner)).unwrap_or(scope.owner()).clone();
            let current = choose(facts, &FactQuery::current(self.clock.now(), usize::MAX));
            let mut profile = MemoryProfile::default();
            profile.episodes = sketches.len() as u64;
            profile.facts = current.len() as u64;
            profile.blocks = blocks.len() as u64;
            profile.last_seen = sketches.first().map(|s| s.at);
            let mut seen = HashSet::new();
            profile.recent_sessions = sketches
                .iter()
                .map(|s| &s.session)
                .filter(|s| seen.insert(*s))
                .take(PROFILE_SAMPLES)
                .cloned()
                .collect();
            profile.sample_facts = current.into_iter().take(PROFILE_SAMPLES).map(|(_, fact)| fact).collect();
            return Ok(Owned::new(owner, profile));
        }
        Err(busy("profile"))
    }

    fn facts(&self) -> Option<&dyn FactStore> {
        Some(self)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_durable(true).with_shared(true).with_vectors(true).with_lexical(true)
    }
}

fn newest_first(mut sketches: Vec<Sketch>) -> Vec<Sketch> {
    sketches.sort_unstable_by_key(|s| std::cmp::Reverse((s.at, s.id)));
    sketches
}

/// The best of `sketches`, which are in their order of time.
fn ranked(sketches: &[Sketch], terms: &QueryTerms, query: &RecallQuery) -> Vec<Scored> {
    let mut hidden: HashSet<usize> = HashSet::new();
    if let Some((session, limit)) = &query.exclude_history {
        let said: Vec<usize> = (0..sketches.len()).filter(|at| sketches[*at].session == *session).collect();
        let fit = latest_that_fit(said.iter().map(|at| sketches[*at].messages), *limit);
        hidden.extend(&said[..fit]);
    }
    if terms.is_empty() && query.embedding.is_none() {
        let scored = |index: usize| {
            let Sketch { at, id, .. } = sketches[index];
            Scored { index, at, id: id.as_u128(), bm25: None, cosine: None, score: 0.0 }
        };
        let open = (0..sketches.len()).filter(|index| !hidden.contains(index));
        return rank::newest(open.map(scored).collect(), query.limit);
    }
    let corpus =
        Corpus { documents: sketches.len(), terms: sketches.iter().map(|s| s.words.len() as u64).sum() };
    let probe = query.embedding.as_ref().map(Probe::new);
    let candidates: Vec<Candidate<'_>> = sketches
        .iter()
        .enumerate()
        .map(|(index, s)| Candidate {
            at: s.at,
            id: s.id.as_u128(),
            terms: &s.words,
            cosine: probe.as_ref().zip(s.embedding.as_ref()).and_then(|(probe, e)| probe.cosine(e)),
            hidden: hidden.contains(&index),
        })
        .collect();
    rank::rank(terms, corpus, &candidates, query.limit)
}
