//! Everything held of one tenant. No operation of a partition knows that there are others.

use std::sync::Arc;

use hashbrown::HashSet;
use loomflow_core::rules::{self, PROFILE_SAMPLES, Space, erases, erases_unsourced_before};
use loomflow_core::{
    Asserted, Embedding, Episode, EpisodeId, Epoch, Erase, Error, ErrorKind, Fact, FactQuery, MemoryBlock,
    MemoryProfile, NewEpisode, NewFact, Owned, Owner, PutBlock, Result, SessionId, Timestamp,
};

use super::config::MemoryConfig;
use super::episodes::{Episodes, SCAN_LIMIT, Stored};
use super::facts::{FactTable, Row};

/// What a partition costs before it holds anything.
const BASE_BYTES: u64 = 320;
const MAX_BLOCKS: usize = 1_024;

/// What one user may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) episodes: usize,
    pub(super) facts: usize,
    pub(super) bytes: u64,
    /// How many episodes are scanned before they are indexed.
    pub(super) scan: usize,
}

impl From<&MemoryConfig> for Limits {
    fn from(config: &MemoryConfig) -> Self {
        Self {
            episodes: config.max_episodes_per_user.max(1),
            facts: config.max_facts_per_user.max(1),
            bytes: config.max_bytes_per_user,
            scan: SCAN_LIMIT,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct StoredBlock {
    pub(super) owner: Owner,
    pub(super) block: MemoryBlock,
}

/// What is not dropped for want of room. Most users have none of it and pay one pointer.
#[derive(Debug, Default)]
struct Pinned {
    /// By order, then by name.
    blocks: Vec<StoredBlock>,
    facts: FactTable,
    bytes: u64,
}

impl Pinned {
    fn weigh(&mut self) {
        let block = |b: &StoredBlock| (112 + b.block.name.len() + b.block.content.len()) as u64;
        self.bytes = self.facts.bytes() + self.blocks.iter().map(block).sum::<u64>();
    }
}

/// How much a partition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) episodes: u64,
    pub(super) bytes: u64,
    /// Episodes dropped for want of room since the partition was made.
    pub(super) dropped: u64,
}

/// How many records an erasure took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gone {
    pub(super) episodes: u64,
    pub(super) facts: u64,
    pub(super) blocks: u64,
}

/// One record of an export, shared with the store.
#[derive(Debug)]
pub(super) enum Record {
    Episode(Arc<Episode>),
    Fact(Box<Row>),
    Block(MemoryBlock),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) epoch: Epoch,
    /// Evicted: whoever still holds this must look its partition up again.
    pub(super) evicted: bool,
    episodes: Episodes,
    episode_bytes: u64,
    dropped: u64,
    /// What the first vector was of.
    space: Option<Space>,
    pinned: Option<Box<Pinned>>,
}

impl Partition {
    /// An empty partition that was erased up to `epoch`.
    pub(super) fn new(epoch: Epoch, limits: Limits) -> Self {
        Self {
            epoch,
            evicted: false,
            episodes: Episodes::new(limits.scan),
            episode_bytes: 0,
            dropped: 0,
            space: None,
            pinned: None,
        }
    }

    pub(super) fn held(&self) -> Held {
        let pinned = self.pinned_bytes();
        Held {
            episodes: self.episodes.len() as u64,
            bytes: BASE_BYTES + self.episode_bytes + pinned,
            dropped: self.dropped,
        }
    }

    pub(super) fn episodes(&self) -> &Episodes {
        &self.episodes
    }

    /// Stores an episode of `owner`, unless its run was stored before.
    pub(super) fn remember(&mut self, owner: Owner, new: NewEpisode, limits: Limits) -> Result<EpisodeId> {
        let mut episode = Episode::from(new);
        let id = episode.id;
        if self.episodes.contains(id) {
            return Ok(id);
        }
        self.check_vector(episode.embedding.as_ref(), "remember")?;
        episode.session = self.episodes.intern(episode.session);
        let stored = Stored::new(owner, episode);
        let bytes = stored.bytes();
        if BASE_BYTES + self.pinned_bytes() + bytes > limits.bytes {
            return Err(full("remember", "the episode alone is larger than what is kept of one user"));
        }
        self.episode_bytes += bytes;
        self.space = self.space.take().or_else(|| stored.episode.embedding.as_ref().map(Space::of));
        self.episodes.insert(stored);
        self.make_room(limits);
        Ok(id)
    }

    /// All blocks, in their order.
    pub(super) fn blocks(&self) -> Vec<Owned<MemoryBlock>> {
        let blocks = self.pinned.iter().flat_map(|p| &p.blocks);
        blocks.map(|b| Owned::new(b.owner.clone(), b.block.clone())).collect()
    }

    /// Writes or removes a block whose name was checked.
    pub(super) fn put_block(&mut self, owner: Owner, put: PutBlock, limits: Limits) -> Result<()> {
        let others = self.pinned_bytes();
        let old = self.pinned.iter().flat_map(|p| &p.blocks).position(|b| b.block.name == put.name);
        let Some(content) = put.content else {
            if let (Some(pinned), Some(at)) = (&mut self.pinned, old) {
                pinned.blocks.remove(at);
                pinned.weigh();
            }
            return Ok(());
        };
        let pinned = self.pinned.get_or_insert_default();
        if old.is_none() && pinned.blocks.len() >= MAX_BLOCKS {
            return Err(full("put_block", "the user has as many blocks as are kept"));
        }
        let replaced = old.map_or(0, |at| pinned.blocks[at].block.content.len() as u64);
        let added = (112 + put.name.len() + content.len()) as u64;
        if BASE_BYTES + (others + added).saturating_sub(replaced) > limits.bytes {
            return Err(full("put_block", "the block does not fit into what is kept of one user"));
        }
        let order = old.map_or(0, |at| pinned.blocks[at].block.order);
        if let Some(at) = old {
            pinned.blocks.remove(at);
        }
        let block = MemoryBlock::new(put.name, content, put.order.unwrap_or(order), put.at);
        let place =
            pinned.blocks.partition_point(|b| (b.block.order, &b.block.name) < (block.order, &block.name));
        pinned.blocks.insert(place, StoredBlock { owner, block });
        pinned.weigh();
        self.make_room(limits);
        Ok(())
    }

    /// Asserts a fact of `owner`.
    pub(super) fn assert(&mut self, owner: &Owner, fact: NewFact, limits: Limits) -> Result<Asserted> {
        rules::facts::check(&fact)?;
        self.check_vector(fact.embedding.as_ref(), "assert")?;
        let texts = fact.subject.len() + fact.predicate.len() + fact.object.len() + 16 * fact.sources.len();
        let vector = fact.embedding.as_ref().map_or(0, |e| 4 * e.vector.len());
        if BASE_BYTES + self.pinned_bytes() + (512 + 8 * texts + vector) as u64 > limits.bytes {
            return Err(full("assert", "the fact does not fit into what is kept of one user"));
        }
        let space = fact.embedding.as_ref().map(Space::of);
        let pinned = self.pinned.get_or_insert_default();
        let asserted = pinned.facts.assert(owner, fact, limits.facts)?;
        pinned.weigh();
        self.space = self.space.take().or(space);
        self.make_room(limits);
        Ok(asserted)
    }

    /// The facts that match.
    pub(super) fn facts(&self, query: &FactQuery) -> Vec<Owned<Fact>> {
        self.pinned.as_ref().map_or_else(Vec::new, |p| p.facts.query(query))
    }

    /// What is held, counted; facts are those that hold at `now`.
    pub(super) fn profile(&self, now: Timestamp) -> MemoryProfile {
        let mut profile = MemoryProfile::default();
        profile.episodes = self.episodes.len() as u64;
        profile.last_seen = self.episodes.newest_first().next().map(|s| s.episode.at);
        let mut seen: HashSet<&SessionId> = HashSet::new();
        let sessions = self.episodes.newest_first().map(|s| &s.episode.session);
        profile.recent_sessions =
            sessions.filter(|s| seen.insert(s)).take(PROFILE_SAMPLES).cloned().collect();
        if let Some(pinned) = &self.pinned {
            profile.blocks = pinned.blocks.len() as u64;
            (profile.facts, profile.sample_facts) = pinned.facts.current(now, PROFILE_SAMPLES);
        }
        profile
    }

    /// Whose a record is that is not `owner`'s, should there be one.
    pub(super) fn stranger(&self, owner: &Owner) -> Option<&Owner> {
        let episodes = self.episodes.oldest_first().map(|s| &s.owner);
        let pinned = self.pinned.iter().flat_map(|p| {
            p.blocks.iter().map(|b| &b.owner).chain(p.facts.rows().iter().map(|row| &row.owner))
        });
        episodes.chain(pinned).find(|found| *found != owner)
    }

    /// Every record with its owner, oldest first.
    pub(super) fn records(&self) -> Vec<(Owner, Record)> {
        let mut all: Vec<(Timestamp, (Owner, Record))> = Vec::with_capacity(self.episodes.len());
        for stored in self.episodes.oldest_first() {
            let record = Record::Episode(stored.episode.clone());
            all.push((stored.episode.at, (stored.owner.clone(), record)));
        }
        if let Some(pinned) = &self.pinned {
            for row in pinned.facts.rows() {
                let record = Record::Fact(Box::new(row.clone()));
                all.push((row.fact.known_from, (row.owner.clone(), record)));
            }
            for b in &pinned.blocks {
                let record = Record::Block(b.block.clone());
                all.push((b.block.updated_at, (b.owner.clone(), record)));
            }
        }
        all.sort_by_key(|(at, _)| *at);
        all.into_iter().map(|(_, record)| record).collect()
    }

    /// Erases `what` and raises the epoch to at least `epoch`.
    pub(super) fn erase(&mut self, epoch: Epoch, what: &Erase, limits: Limits) -> Gone {
        self.epoch = self.epoch.max(epoch);
        if what.is_everything() {
            return self.erase_everything(limits);
        }
        let goes = |session: &SessionId, at: Timestamp| erases(what, session, at);
        let erased = self.episodes.remove_where(|e| goes(&e.session, e.at));
        self.episode_bytes -= erased.iter().map(Stored::bytes).sum::<u64>();
        let ids: HashSet<EpisodeId> = erased.iter().map(|s| s.episode.id).collect();
        let mut gone = Gone { episodes: ids.len() as u64, ..Gone::default() };
        let Some(pinned) = &mut self.pinned else { return gone };
        let by_time = erases_unsourced_before(what);
        gone.facts = pinned.facts.erase(&ids, goes, |id| self.episodes.contains(id), by_time);
        let blocks = pinned.blocks.len();
        pinned.blocks.retain(|b| by_time.is_none_or(|moment| b.block.updated_at >= moment));
        gone.blocks = (blocks - pinned.blocks.len()) as u64;
        pinned.weigh();
        if pinned.blocks.is_empty() && pinned.facts.rows().is_empty() {
            self.pinned = None;
        }
        gone
    }

    fn erase_everything(&mut self, limits: Limits) -> Gone {
        let pinned = self.pinned.take();
        let gone = Gone {
            episodes: self.episodes.len() as u64,
            facts: pinned.as_ref().map_or(0, |p| p.facts.rows().len() as u64),
            blocks: pinned.as_ref().map_or(0, |p| p.blocks.len() as u64),
        };
        self.episodes = Episodes::new(limits.scan);
        self.episode_bytes = 0;
        self.space = None;
        gone
    }

    /// Whether a vector can be compared with those that are held.
    pub(super) fn check_vector(&self, vector: Option<&Embedding>, operation: &'static str) -> Result<()> {
        rules::check_embedding(vector, operation)?;
        Space::check(self.space.as_ref(), vector, operation)
    }

    fn pinned_bytes(&self) -> u64 {
        self.pinned.as_ref().map_or(0, |p| p.bytes)
    }

    fn make_room(&mut self, limits: Limits) {
        while self.episodes.len() > limits.episodes || self.held().bytes > limits.bytes {
            let Some(dropped) = self.episodes.remove_oldest() else { break };
            self.episode_bytes -= dropped.bytes();
            self.dropped += 1;
            if let Some(pinned) = &mut self.pinned {
                let episode = &dropped.episode;
                pinned.facts.dropped(episode.id, &episode.session, episode.at);
            }
        }
    }
}

fn full(operation: &'static str, why: &str) -> Error {
    Error::new(ErrorKind::Capacity, format!("{why}; nothing was written")).with_operation(operation)
}
