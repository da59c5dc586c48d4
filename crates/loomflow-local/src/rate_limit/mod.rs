//! The in-process rate limiter: GCRA, with nothing to start and nothing to connect to.
//!
//! How it keeps its word:
//!
//! - **One lock per user.** Users are spread over shards, and all limits are judged and taken inside one shard's lock. Limits of
//!   all users together have one table more, locked after the shard's, and only when such limits are set.
//! - **Forgetting gives nothing away.** An entry is dropped when all its limits are whole again, for then it says what no
//!   entry says. One that is held back stays; when the table is full of those, new users are refused.
//! - **The wall clock means nothing.** Time is the runtime's monotonic clock.
//! - **No names.** An entry is found by a keyed hash of the partition, and takes about 40 bytes.

mod stand_in;
mod table;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    Amounts, Clock, Entity, Erase, Erased, Error, ErrorKind, ExportItem, ExportStream, LimitReason, Limited,
    Namespace, Owned, RateLimitConfig, RateLimiter, RateRules, Resource, Result, Scope, Taken, Tats,
    TenantData, export_from,
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::ledger::keys::{Ident, Keys};
pub use stand_in::StandInRateLimiter;
use table::Table;

const STORE: &str = "rate_limit:inmemory";
const MAX_SHARDS: usize = 64;
/// Fewer users than this in a shard, and chance would fill one long before the others.
const LEAST_PER_SHARD: usize = 256;
/// Namespaces whose common limits are kept; of those that are whole again, any number.
const NAMESPACES: usize = 1_024;

/// The rate limits of one process.
///
/// A namespace is an application of its own, with limits of its own for all its users together; 1,024 of them can be held
/// back at once, and a call in a further one fails with [`ErrorKind::Capacity`].
///
/// What was taken is forgotten with the process. Replicas that must share limits use a limiter on a database.
pub struct StandardRateLimiter {
    rules: RateRules,
    keys: Keys,
    time: Time,
    shards: Box<[Mutex<Table<u128>>]>,
    /// The limits of all users together. Locked after a shard, never before.
    common: Mutex<Table<Namespace>>,
}

impl StandardRateLimiter {
    /// A limiter with these limits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] when the numbers make no sense.
    pub fn new(config: &RateLimitConfig) -> Result<Self> {
        config.rules().map(Self::with_rules)
    }

    /// A limiter with checked rules, such as a [share](RateRules::shared_by) of another's.
    #[must_use]
    pub fn with_rules(rules: RateRules) -> Self {
        let users = rules.max_users.unwrap_or(usize::MAX);
        // A power of two, and never more users than configured over all shards.
        let shards = match users / LEAST_PER_SHARD {
            0 | 1 => 1,
            n => MAX_SHARDS.min(1 << n.ilog2()),
        };
        Self {
            rules,
            keys: Keys::default(),
            time: Time::Monotonic(Instant::now()),
            shards: (0..shards).map(|_| Mutex::new(Table::new((users / shards).max(1)))).collect(),
            common: Mutex::new(Table::new(NAMESPACES)),
        }
    }

    /// Follows `clock` instead of the runtime's monotonic clock: for tests. One that is set back stands still until it is
    /// past where it was.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.time = Time::Turned(clock, AtomicI64::new(0));
        self
    }

    fn shard(&self, ident: Ident) -> &Mutex<Table<u128>> {
        &self.shards[ident.shard(self.shards.len())]
    }

    /// Does something with the times of a user and of all users together, all of it or, where it fails, nothing.
    fn change<T>(
        &self,
        scope: &Scope,
        work: impl FnOnce(&mut Tats, &mut Tats, u64) -> Result<T, Box<Limited>>,
    ) -> Result<T, Box<Limited>> {
        let limits = &self.rules.limits;
        let ident = self.keys.ident(scope.owner());
        let mut users = self.shard(ident).lock();
        let mut common = limits.binds(Entity::Global).then(|| self.common.lock());
        let now = self.time.now();
        let mut user = users.get(&ident.0);
        let mut all = common.as_ref().map_or([0; 3], |common| common.get(scope.namespace()));
        let before = (user, all);
        let done = work(&mut user, &mut all, now)?;
        // Room is made for both before either is written.
        if user != before.0 {
            users.make_room(&ident.0, now).map_err(|full| self.full(Entity::User, full))?;
        }
        if let Some(common) = common.as_mut().filter(|_| all != before.1) {
            common.make_room(scope.namespace(), now).map_err(|full| self.full(Entity::Global, full))?;
            common.put(scope.namespace().clone(), all);
        }
        if user != before.0 {
            users.put(ident.0, user);
        }
        Ok(done)
    }

    /// The answer of a full table, by what it holds and in how many nanoseconds the first of it may go.
    fn full(&self, entity: Entity, full: table::Full) -> Box<Limited> {
        let bound =
            Resource::ALL.into_iter().find(|resource| self.rules.limits.get(entity, *resource).is_some());
        let resource = bound.unwrap_or(Resource::Runs);
        let limited = Limited::new(LimitReason::Capacity, entity, resource, full.kept as u64);
        Box::new(limited.with_retry_after(Duration::from_nanos(full.first_free)))
    }
}

#[async_trait]
impl RateLimiter for StandardRateLimiter {
    async fn take(&self, scope: &Scope, ask: &Amounts) -> Result<Taken> {
        let limits = &self.rules.limits;
        match self.change(scope, |user, all, now| limits.take(user, all, now, ask)) {
            Ok(()) => Ok(Taken::Admitted),
            Err(limited) => Ok(Taken::Limited(limited)),
        }
    }

    async fn settle(&self, scope: &Scope, taken: &Amounts, used: &Amounts) -> Result<()> {
        let limits = &self.rules.limits;
        let settled = self.change(scope, |user, all, now| {
            limits.settle(user, all, now, taken, used);
            Ok(())
        });
        settled.map_err(|full| Error::new(ErrorKind::Capacity, full.to_string()).with_operation("settle"))
    }

    fn rules(&self) -> &RateRules {
        &self.rules
    }
}

#[async_trait]
impl TenantData for StandardRateLimiter {
    fn store_name(&self) -> &str {
        STORE
    }

    /// One item of kind `rate_limit` for each limit of the user's that is not whole: after how long it is.
    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let ident = self.keys.ident(scope.owner());
        let (now, tats) = (self.time.now(), self.shard(ident).lock().get(&ident.0));
        // An entry has no name on purpose; what it is stored under is the keyed hash of this very owner.
        let items = exported(&self.rules, tats, now).map(|item| Owned::new(scope.owner().clone(), item));
        Ok(export_from(items.collect()))
    }

    /// Keeps what is held back: an erasure would be a way to a fresh burst. It is kept without a name, and goes by itself.
    async fn forget(&self, scope: &Scope, _what: &Erase) -> Result<Erased> {
        let ident = self.keys.ident(scope.owner());
        let (now, tats) = (self.time.now(), self.shard(ident).lock().get(&ident.0));
        let line = Erased::new(STORE);
        Ok(if exported(&self.rules, tats, now).next().is_none() {
            line
        } else {
            line.with_retained(
                "when the user's limits are whole again, without the name and under a keyed hash, until that moment: \
                 erasing it would give a fresh burst",
            )
        })
    }
}

fn exported(rules: &RateRules, tats: Tats, now: u64) -> impl Iterator<Item = ExportItem> {
    Resource::ALL.into_iter().filter_map(move |resource| {
        let limit = rules.limits.get(Entity::User, resource)?;
        let level = limit.level(tats[resource as usize], now);
        let data = || json!({"limit": resource.config_key(Entity::User), "whole_again_in_ms": level.div_ceil(1_000_000)});
        (level > 0).then(|| ExportItem::new("rate_limit", data()))
    })
}

impl fmt::Debug for StandardRateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept: usize = self.shards.iter().map(|shard| shard.lock().len()).sum();
        f.debug_struct("StandardRateLimiter").field("rules", &self.rules).field("users", &kept).finish()
    }
}

/// What the limiter follows, in nanoseconds.
enum Time {
    Monotonic(Instant),
    /// A clock of a test, and the latest it said.
    Turned(Arc<dyn Clock>, AtomicI64),
}

impl Time {
    fn now(&self) -> u64 {
        match self {
            Self::Monotonic(since) => u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX >> 1),
            Self::Turned(clock, latest) => {
                let now = clock.now().as_micros();
                let now = latest.fetch_max(now, Ordering::AcqRel).max(now);
                u64::try_from(now).unwrap_or(0).saturating_mul(1_000)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    #[test]
    fn shards_never_keep_more_users_than_configured() {
        for users in [1, 255, 256, 511, 512, 1_000, 100_000, 5_000_000] {
            let limiter = StandardRateLimiter::new(&RateLimitConfig::new().max_users(users)).unwrap();
            let each = users / limiter.shards.len();
            assert!(limiter.shards.len().is_power_of_two() && each >= 1, "{users}");
            assert!(each * limiter.shards.len() <= users);
        }
        assert!(StandardRateLimiter::new(&RateLimitConfig::new().max_users(0)).is_err());
    }
}
