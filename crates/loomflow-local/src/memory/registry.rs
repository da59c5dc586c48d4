//! From an owner to its partition: sharded, bounded, evicted by least recent use.
//!
//! A shard's lock is held to find a partition and never while one is worked on; each partition has a lock of its own.
//! Locks are taken in the order shard, partition, and whoever holds a partition's lock takes no shard's.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};
use loomflow_core::{Epoch, Owned, Owner, Result, Scope};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::config::{MemoryConfig, MemoryStats};
use super::partition::{Held, Limits, Partition};
use crate::epochs::{EpochTable, check_newer};

const MAX_SHARDS: usize = 64;
/// A small store has one shard, so that "least recently used" is meant of all its users.
const USERS_PER_SHARD: usize = 1_024;
const NONE: u32 = u32::MAX;

/// One tenant's partition, with the owner it was made for.
#[derive(Debug)]
struct Tenant {
    owner: Owner,
    partition: Mutex<Partition>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Registry {
    shards: Box<[Mutex<Shard>]>,
    hasher: DefaultHashBuilder,
    limits: Limits,
    max_users: u64,
    max_bytes: u64,
    idle_ttl: Option<Duration>,
    counters: Counters,
    /// Held while making room, so that two who do it at once do not evict one user too many.
    making_room: Mutex<()>,
}

#[derive(Debug, Default)]
struct Counters {
    users: AtomicU64,
    episodes: AtomicU64,
    bytes: AtomicU64,
    evictions: AtomicU64,
    idle_evictions: AtomicU64,
    dropped: AtomicU64,
}

impl Registry {
    pub(super) fn new(config: &MemoryConfig) -> Self {
        Self::with_limits(config, Limits::from(config))
    }

    pub(super) fn with_limits(config: &MemoryConfig, limits: Limits) -> Self {
        let wanted = config.max_users.map_or(MAX_SHARDS, |users| users / USERS_PER_SHARD);
        let shards = wanted.clamp(1, MAX_SHARDS).next_power_of_two();
        let tombstones = config.max_tombstones.div_ceil(shards);
        Self {
            shards: (0..shards).map(|_| Mutex::new(Shard::new(tombstones))).collect(),
            hasher: DefaultHashBuilder::default(),
            limits,
            max_users: config.max_users.map_or(u64::MAX, |n| n.max(1) as u64),
            max_bytes: config.max_bytes.unwrap_or(u64::MAX),
            idle_ttl: config.user_idle_ttl,
            counters: Counters::default(),
            making_room: Mutex::new(()),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn stats(&self) -> MemoryStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MemoryStats {
            users: get(&self.counters.users),
            episodes: get(&self.counters.episodes),
            bytes: get(&self.counters.bytes),
            evictions: get(&self.counters.evictions),
            idle_evictions: get(&self.counters.idle_evictions),
            dropped_episodes: get(&self.counters.dropped),
        }
    }

    /// Looks at the partition of `scope`, if there is one. Counts as a use.
    pub(super) fn read<R>(&self, scope: &Scope, look: impl FnOnce(&Partition) -> R) -> Option<R> {
        let tenant = self.find(scope)?;
        let partition = tenant.partition.lock();
        (!partition.evicted).then(|| look(&partition))
    }

    /// As [`Registry::read`], with the owner the partition was made for.
    pub(super) fn read_owned<R>(
        &self,
        scope: &Scope,
        look: impl FnOnce(&Partition) -> R,
    ) -> Option<Owned<R>> {
        let tenant = self.find(scope)?;
        let partition = tenant.partition.lock();
        (!partition.evicted).then(|| Owned::new(tenant.owner.clone(), look(&partition)))
    }

    /// Changes the partition of `scope`, made if need be, and refuses a scope that is older than its last erasure.
    /// The owner that is passed on is the one to write beside a record.
    pub(super) fn write<R>(
        &self,
        scope: &Scope,
        operation: &'static str,
        change: impl FnOnce(Owner, &mut Partition) -> Result<R>,
    ) -> Result<R> {
        loop {
            let tenant = self.find_or_make(scope, operation)?;
            let mut partition = tenant.partition.lock();
            if partition.evicted {
                continue;
            }
            scope.check_epoch(partition.epoch, operation)?;
            // Equal owners are kept once; should the two differ, the record carries the one it was written under.
            let owner = if scope.owns(&tenant.owner) { &tenant.owner } else { scope.owner() };
            let before = partition.held();
            let result = change(owner.clone(), &mut partition);
            self.account(before, partition.held());
            drop(partition);
            self.make_room(&tenant);
            return result;
        }
    }

    /// Changes the partition of `owner`, made if need be, whatever was erased: for a row that the conformance suite
    /// plants.
    pub(super) fn plant<R>(
        &self,
        owner: &Owner,
        change: impl FnOnce(&mut Partition) -> Result<R>,
    ) -> Result<R> {
        let hash = self.hash(owner);
        let mut shard = self.shard(owner).lock();
        let known = shard.touch(hash, owner, Instant::now());
        let tenant = known.unwrap_or_else(|| self.make(&mut shard, hash, owner));
        // A partition that is in its shard is not evicted, and this keeps it there.
        let mut partition = tenant.partition.lock();
        let before = partition.held();
        let result = change(&mut partition);
        self.account(before, partition.held());
        result
    }

    /// Erases from the partition of `scope`, if there is one. If there is none, only the epoch is raised. Refused when
    /// the scope is not newer than the last erasure.
    pub(super) fn erase<R>(
        &self,
        scope: &Scope,
        change: impl FnOnce(&mut Partition) -> R,
    ) -> Result<Option<R>> {
        loop {
            let mut shard = self.shard(scope.owner()).lock();
            let Some(tenant) = shard.touch(self.hash(scope.owner()), scope.owner(), Instant::now()) else {
                shard.tombstones.advance(scope)?;
                return Ok(None);
            };
            drop(shard);
            let mut partition = tenant.partition.lock();
            if partition.evicted {
                continue;
            }
            check_newer(scope, partition.epoch)?;
            let before = partition.held();
            let result = change(&mut partition);
            self.account(before, partition.held());
            return Ok(Some(result));
        }
    }

    /// The epoch of the partition of `scope`.
    pub(super) fn epoch(&self, scope: &Scope) -> Epoch {
        loop {
            let shard = self.shard(scope.owner()).lock();
            let Some(tenant) = shard.peek(self.hash(scope.owner()), scope.owner()) else {
                return shard.tombstones.get(scope.owner());
            };
            drop(shard);
            let partition = tenant.partition.lock();
            if !partition.evicted {
                return partition.epoch;
            }
        }
    }

    /// Evicts every user that is idle; returns how many.
    pub(super) fn evict_idle(&self) -> u64 {
        let now = Instant::now();
        let mut evicted = 0;
        for shard in &self.shards {
            loop {
                let gone = self.expire(&mut shard.lock(), now);
                if gone.is_none() {
                    break;
                }
                evicted += 1;
            }
        }
        evicted
    }

    fn find(&self, scope: &Scope) -> Option<Arc<Tenant>> {
        let hash = self.hash(scope.owner());
        let now = Instant::now();
        let mut shard = self.shard(scope.owner()).lock();
        // A look-up expires at most one idle user, and its own if that is idle; dropped after the lock.
        let _expired = self.expire(&mut shard, now);
        let _own = self.expire_own(&mut shard, hash, scope.owner(), now);
        let found = shard.touch(hash, scope.owner(), now);
        drop(shard);
        found
    }

    fn find_or_make(&self, scope: &Scope, operation: &'static str) -> Result<Arc<Tenant>> {
        if let Some(tenant) = self.find(scope) {
            return Ok(tenant);
        }
        let hash = self.hash(scope.owner());
        let now = Instant::now();
        let mut shard = self.shard(scope.owner()).lock();
        if let Some(tenant) = shard.touch(hash, scope.owner(), now) {
            return Ok(tenant);
        }
        shard.tombstones.check(scope, operation)?;
        Ok(self.make(&mut shard, hash, scope.owner()))
    }

    /// Puts an empty partition of `owner`, who has none, into its shard.
    fn make(&self, shard: &mut Shard, hash: u64, owner: &Owner) -> Arc<Tenant> {
        let partition = Partition::new(shard.tombstones.take(owner), self.limits);
        let held = partition.held();
        let tenant = Arc::new(Tenant { owner: owner.clone(), partition: Mutex::new(partition) });
        shard.insert(hash, tenant.clone(), Instant::now());
        self.counters.users.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes.fetch_add(held.bytes, Ordering::Relaxed);
        tenant
    }

    /// Evicts the least recently used users until the store is within its bounds again; never `keep`.
    fn make_room(&self, keep: &Arc<Tenant>) {
        let over = || {
            self.counters.users.load(Ordering::Relaxed) > self.max_users
                || self.counters.bytes.load(Ordering::Relaxed) > self.max_bytes
        };
        if !over() {
            return;
        }
        let _alone = self.making_room.lock();
        let first = self.shard_of(self.hash(&keep.owner));
        for step in 0..self.shards.len() {
            let shard = &self.shards[(first + step) % self.shards.len()];
            while over() {
                let gone = {
                    let mut shard = shard.lock();
                    let victim = shard.least_recent(keep);
                    victim.map(|node| self.evict(&mut shard, node))
                };
                // Its data is freed here, outside the lock.
                if gone.is_none() {
                    break;
                }
            }
        }
    }

    fn expire(&self, shard: &mut Shard, now: Instant) -> Option<Arc<Tenant>> {
        let oldest = shard.tail;
        let touched = shard.nodes.get(oldest as usize)?.touched;
        self.is_idle(touched, now).then(|| self.evict_as_idle(shard, oldest))
    }

    fn expire_own(&self, shard: &mut Shard, hash: u64, owner: &Owner, now: Instant) -> Option<Arc<Tenant>> {
        let node = shard.position(hash, owner)?;
        let touched = shard.nodes[node as usize].touched;
        self.is_idle(touched, now).then(|| self.evict_as_idle(shard, node))
    }

    fn is_idle(&self, touched: Instant, now: Instant) -> bool {
        self.idle_ttl.is_some_and(|ttl| now.saturating_duration_since(touched) >= ttl)
    }

    fn evict_as_idle(&self, shard: &mut Shard, node: u32) -> Arc<Tenant> {
        self.counters.idle_evictions.fetch_add(1, Ordering::Relaxed);
        self.evict(shard, node)
    }

    /// Takes a user out of its shard. What was revoked stays revoked: an erasure's epoch moves to the tombstones.
    fn evict(&self, shard: &mut Shard, node: u32) -> Arc<Tenant> {
        let tenant = shard.remove(node);
        let mut partition = tenant.partition.lock();
        partition.evicted = true;
        let held = partition.held();
        shard.tombstones.raise(&tenant.owner, partition.epoch);
        drop(partition);
        self.counters.users.fetch_sub(1, Ordering::Relaxed);
        self.counters.episodes.fetch_sub(held.episodes, Ordering::Relaxed);
        self.counters.bytes.fetch_sub(held.bytes, Ordering::Relaxed);
        self.counters.evictions.fetch_add(1, Ordering::Relaxed);
        tenant
    }

    fn account(&self, before: Held, after: Held) {
        // Wrapping: a counter takes a difference of either sign.
        let moves = [
            (&self.counters.episodes, after.episodes.wrapping_sub(before.episodes)),
            (&self.counters.bytes, after.bytes.wrapping_sub(before.bytes)),
            (&self.counters.dropped, after.dropped.wrapping_sub(before.dropped)),
        ];
        for (counter, by) in moves {
            if by != 0 {
                counter.fetch_add(by, Ordering::Relaxed);
            }
        }
    }

    fn hash(&self, owner: &Owner) -> u64 {
        self.hasher.hash_one(owner)
    }

    fn shard(&self, owner: &Owner) -> &Mutex<Shard> {
        &self.shards[self.shard_of(self.hash(owner))]
    }

    fn shard_of(&self, hash: u64) -> usize {
        // The table inside a shard uses the low and the highest bits.
        (hash >> 32) as usize & (self.shards.len() - 1)
    }
}

/// Tenants by owner, in a list from the most to the least recently used.
#[derive(Debug)]
struct Shard {
    nodes: Vec<Node>,
    table: HashTable<u32>,
    head: u32,
    tail: u32,
    tombstones: EpochTable,
}

#[derive(Debug)]
struct Node {
    tenant: Arc<Tenant>,
    hash: u64,
    touched: Instant,
    newer: u32,
    older: u32,
}

impl Shard {
    fn new(tombstones: usize) -> Self {
        Self {
            nodes: Vec::new(),
            table: HashTable::new(),
            head: NONE,
            tail: NONE,
            tombstones: EpochTable::new(tombstones),
        }
    }

    fn position(&self, hash: u64, owner: &Owner) -> Option<u32> {
        self.table.find(hash, |node| self.nodes[*node as usize].tenant.owner == *owner).copied()
    }

    fn peek(&self, hash: u64, owner: &Owner) -> Option<Arc<Tenant>> {
        self.position(hash, owner).map(|node| self.nodes[node as usize].tenant.clone())
    }

    fn touch(&mut self, hash: u64, owner: &Owner, now: Instant) -> Option<Arc<Tenant>> {
        let node = self.position(hash, owner)?;
        self.nodes[node as usize].touched = now;
        if self.head != node {
            self.unlink(node);
            self.link_first(node);
        }
        Some(self.nodes[node as usize].tenant.clone())
    }

    fn insert(&mut self, hash: u64, tenant: Arc<Tenant>, now: Instant) {
        let node = u32::try_from(self.nodes.len()).expect("a shard is bounded far below 2^32 users");
        self.nodes.push(Node { tenant, hash, touched: now, newer: NONE, older: NONE });
        let nodes = &self.nodes;
        self.table.insert_unique(hash, node, |n| nodes[*n as usize].hash);
        self.link_first(node);
    }

    /// The least recently used tenant that is not `keep`.
    fn least_recent(&self, keep: &Arc<Tenant>) -> Option<u32> {
        let last = self.nodes.get(self.tail as usize)?;
        let node = if Arc::ptr_eq(&last.tenant, keep) { last.newer } else { self.tail };
        (node != NONE).then_some(node)
    }

    /// Takes a node out; the last one moves into its place, so that the list has no holes.
    fn remove(&mut self, node: u32) -> Arc<Tenant> {
        self.unlink(node);
        let hash = self.nodes[node as usize].hash;
        if let Ok(entry) = self.table.find_entry(hash, |n| *n == node) {
            entry.remove();
        }
        let last = u32::try_from(self.nodes.len() - 1).expect("a shard is bounded far below 2^32 users");
        if last != node {
            let moved = &self.nodes[last as usize];
            let (hash, newer, older) = (moved.hash, moved.newer, moved.older);
            if let Some(at) = self.table.find_mut(hash, |n| *n == last) {
                *at = node;
            }
            self.set_older(newer, node);
            self.set_newer(older, node);
        }
        self.nodes.swap_remove(node as usize).tenant
    }

    fn unlink(&mut self, node: u32) {
        let Node { newer, older, .. } = self.nodes[node as usize];
        self.set_older(newer, older);
        self.set_newer(older, newer);
    }

    fn link_first(&mut self, node: u32) {
        let head = self.head;
        (self.nodes[node as usize].newer, self.nodes[node as usize].older) = (NONE, head);
        self.set_newer(head, node);
        self.head = node;
    }

    /// Says which node is older than `node`; the list's head stands before its first node.
    fn set_older(&mut self, node: u32, older: u32) {
        match self.nodes.get_mut(node as usize) {
            Some(node) => node.older = older,
            None => self.head = older,
        }
    }

    /// Says which node is newer than `node`; the list's tail stands after its last node.
    fn set_newer(&mut self, node: u32, newer: u32) {
        match self.nodes.get_mut(node as usize) {
            Some(node) => node.newer = newer,
            None => self.tail = newer,
        }
    }
}
