//! The tenants of a measurement, and what they write and ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use loomflow_core::danger::assume_scope;
use loomflow_core::{
    Embedding, Epoch, Erase, Error, ErrorKind, FactQuery, Identity, MemoryStore, Message, Namespace,
    NewEpisode, NewFact, RecallQuery, Result, RunId, Scope, SessionId, Timestamp, UserId,
};

use super::load::Load;
use super::report::{Facts, Noise, Rate};
use super::{Args, Part};
use crate::draw::Draw;
use crate::progress::Progress;
use crate::stats::Latency;

/// Tenants of one writer, taken in turn.
const TENANTS_PER_WRITER: u64 = 8;
/// Episodes of each foreign tenant.
const EPISODES_PER_FOREIGNER: u64 = 100;
/// Loads that are not measured, such as filling and erasing.
const FILLERS: usize = 32;
/// Episodes that a tenant has of their own among the foreign ones, beside the relevant one.
const OWN: u64 = 20;

const TOPICS: [&str; 12] = [
    "parcel", "invoice", "bicycle", "holiday", "router", "kitchen", "passport", "concert", "garden", "tyre",
    "camera", "dentist",
];

#[derive(Debug)]
struct Inner {
    store: Arc<dyn MemoryStore>,
    namespace: Namespace,
    dimensions: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct World {
    inner: Arc<Inner>,
    args: Args,
    /// How many foreign episodes there are by now.
    foreign: AtomicU64,
}

impl Inner {
    fn scope(&self, kind: &str, n: u64, epoch: u64) -> Result<Scope> {
        let user = Identity::User(UserId::new(format!("{kind}_{n}"))?);
        Ok(assume_scope(self.namespace.clone(), user, Epoch::new(epoch)))
    }

    /// A unit vector of its number.
    fn vector(&self, n: u64) -> Option<Embedding> {
        if self.dimensions == 0 {
            return None;
        }
        let mut draw = Draw::at(n, [7, 7]);
        let parts: Vec<f32> =
            (0..self.dimensions).map(|_| (draw.below(2_001) as f32 - 1_000.0) / 1_000.0).collect();
        let norm = parts.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        Some(Embedding::new("bench", parts.into_iter().map(|x| x / norm).collect::<Vec<_>>()))
    }

    fn episode(&self, n: u64, text: &str) -> Result<NewEpisode> {
        let messages = vec![Message::user(text), Message::assistant("it is noted and will be looked after")];
        let at = Timestamp::from_micros(1_700_000_000_000_000 + i64::try_from(n).unwrap_or(0));
        let run = RunId::from_u128(u128::from(n) + 1);
        let mut episode = NewEpisode::new(run, SessionId::new(format!("s{}", n % 10))?, at, messages);
        episode.embedding = self.vector(n);
        Ok(episode)
    }

    async fn remember(&self, scope: &Scope, n: u64) -> Result<()> {
        self.store.remember(scope, self.episode(n, &said(n))?).await.map(drop)
    }
}

/// What turn `n` is about: everybody speaks of the same few things.
fn said(n: u64) -> String {
    let mut draw = Draw::at(n, [1, 1]);
    let mut topic = || TOPICS[draw.below(TOPICS.len() as u64) as usize];
    format!(
        "please look after the {} and the {} of order {n} before the {} is due",
        topic(),
        topic(),
        topic()
    )
}

fn facts(store: &dyn MemoryStore) -> Result<&dyn loomflow_core::FactStore> {
    store.facts().ok_or_else(|| Error::unsupported(store.store_name(), "facts"))
}

impl World {
    pub(super) fn new(store: Arc<dyn MemoryStore>, args: &Args) -> Result<Self> {
        let namespace = Namespace::new(format!("bench-{:016x}", rand::random::<u64>()))?;
        let inner = Inner { store, namespace, dimensions: args.dimensions };
        Ok(Self { inner: Arc::new(inner), args: args.clone(), foreign: AtomicU64::new(0) })
    }

    pub(super) fn store_name(&self) -> &str {
        self.inner.store.store_name()
    }

    fn progress(&self, total: u64, what: &str) -> Progress {
        Progress::over(total, what, self.args.quiet)
    }

    /// Writers that remember for so long.
    pub(super) async fn remember(&self, time: Duration) -> Result<Rate> {
        let load = Load { workers: self.args.writers, operations: u64::MAX, time };
        let (inner, tenants) = (self.inner.clone(), self.args.writers as u64 * TENANTS_PER_WRITER);
        let done = load
            .run(&self.progress(0, "episodes remembered"), move |n| {
                let inner = inner.clone();
                async move { inner.remember(&inner.scope("writer", n % tenants, 0)?, n).await }
            })
            .await?;
        Ok(Rate::new(self.args.writers, &done))
    }

    /// Asserts all facts, then asks for those of one user at a time.
    pub(super) async fn facts(&self) -> Result<Facts> {
        let (facts_of_all, users) = (self.args.facts, self.args.users.max(1));
        let inner = self.inner.clone();
        let filled = Load::of(FILLERS, facts_of_all)
            .run(&self.progress(facts_of_all, "facts asserted"), move |n| {
                let inner = inner.clone();
                async move {
                    let scope = inner.scope("knower", n % users, 0)?;
                    let topic = TOPICS[(n / users) as usize % TOPICS.len()];
                    let at = Timestamp::from_micros(1_700_000_000_000_000);
                    let mut fact = NewFact::new("me", &format!("likes {topic}"), format!("value {n}"), at);
                    fact.embedding = inner.vector(n);
                    facts(&*inner.store)?.assert(&scope, fact).await.map(drop)
                }
            })
            .await?;
        let asked = self.ask("facts queried", move |inner, n| async move {
            let scope = inner.scope("knower", Draw::at(n, [3, 3]).below(users), 0)?;
            let topic = TOPICS[n as usize % TOPICS.len()];
            let query = FactQuery::all(5).about(format!("what {topic} do I like"), inner.vector(n));
            let found = facts(&*inner.store)?.query(&scope, &query).await?;
            found.into_iter().try_for_each(|fact| fact.open(&scope).map(drop))
        });
        let (alone, together) = asked.await?;
        Ok(Facts { facts: facts_of_all, users, asserts_per_s: filled.per_second(), alone, together })
    }

    /// Fills up to `foreign` episodes of others, then lets one tenant look for the one that matters to them.
    pub(super) async fn foreign(&self, foreign: u64) -> Result<Noise> {
        let there = self.foreign.swap(foreign, Ordering::Relaxed);
        let inner = self.inner.clone();
        let missing = foreign.saturating_sub(there);
        Load::of(FILLERS, missing)
            .run(&self.progress(missing, "foreign episodes"), move |n| {
                let inner = inner.clone();
                let n = n + there;
                async move { inner.remember(&inner.scope("other", n / EPISODES_PER_FOREIGNER, 0)?, n).await }
            })
            .await?;
        let own = self.inner.scope("own", 0, 0)?;
        for n in 0..OWN {
            self.inner.remember(&own, n).await?;
        }
        let relevant = self.inner.episode(NEEDLE, "the lighthouse keeper is called Marguerite")?;
        self.inner.store.remember(&own, relevant).await?;
        let asked = self.ask("recalls", |inner, _| async move {
            let own = inner.scope("own", 0, 0)?;
            let mut query = RecallQuery::new("what is the name of the lighthouse keeper", 5);
            query.embedding = inner.vector(NEEDLE);
            let found = inner.store.recall(&own, &query).await?;
            let first = found.into_iter().next().map(|m| m.open(&own)).transpose()?;
            match first {
                Some(m) if m.episode.id.as_u128() == u128::from(NEEDLE) + 1 => Ok(()),
                _ => Err(Error::new(
                    ErrorKind::Internal,
                    "the relevant episode is not the first that is recalled",
                )),
            }
        });
        let (alone, together) = asked.await?;
        Ok(Noise { foreign, alone, together })
    }

    /// The same questions one after the other, and from all writers at once.
    async fn ask<F, Fut>(&self, what: &str, question: F) -> Result<(Latency, Latency)>
    where
        F: Fn(Arc<Inner>, u64) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        let queries = self.args.queries;
        let mut latencies = Vec::new();
        for (workers, warm) in [(1, true), (1, false), (self.args.writers, false)] {
            let (inner, question) = (self.inner.clone(), question.clone());
            let load = Load::of(workers, if warm { queries / 10 } else { queries });
            let progress = self.progress(load.operations, what);
            let done = load.run(&progress, move |n| question(inner.clone(), n)).await?;
            latencies.push(Latency::of(&done.latencies));
        }
        Ok((latencies[1], latencies[2]))
    }

    /// Erases every tenant that may have been written.
    pub(super) async fn clear(&self) -> Result<()> {
        let wanted = |part| self.args.only.is_empty() || self.args.only.contains(&part);
        let mut tenants: Vec<(&'static str, u64)> = Vec::new();
        let mut all = |kind, n| tenants.extend((0..n).map(|n| (kind, n)));
        if wanted(Part::Remembers) {
            all("writer", self.args.writers as u64 * TENANTS_PER_WRITER);
        }
        if wanted(Part::Facts) {
            all("knower", self.args.users.min(self.args.facts));
        }
        all("own", 1);
        all("other", self.foreign.load(Ordering::Relaxed).div_ceil(EPISODES_PER_FOREIGNER));
        let inner = self.inner.clone();
        let total = tenants.len() as u64;
        let progress = self.progress(total, "tenants erased");
        let load = Load::of(FILLERS, total).run(&progress, move |n| {
            let inner = inner.clone();
            let (kind, tenant) = tenants[n as usize];
            async move {
                let scope = inner.scope(kind, tenant, 1)?;
                inner.store.forget(&scope, &Erase::everything()).await.map(drop)
            }
        });
        load.await.map(drop)
    }
}

/// The run of the episode that matters.
const NEEDLE: u64 = u64::MAX >> 2;
