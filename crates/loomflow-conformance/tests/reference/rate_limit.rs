//! A naive rate limiter: buckets that leak, in a list.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_conformance::doubles::ManualClock;
use loomflow_conformance::rate_limit;
use loomflow_core::{
    Amounts, Clock as _, Entity, Erase, Erased, ExportItem, ExportStream, LimitReason, Limited, Owned, Owner,
    RateLimitConfig, RateLimiter, RateRules, Resource, Result, Scope, Taken, TenantData, export_from,
};
use serde_json::json;

use super::{Bug, found, key};

/// How much is in a bucket, in nanoseconds of leaking, and since when.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    content: i128,
    at: i128,
}

#[derive(Clone, Debug)]
struct Row {
    key: String,
    owner: Owner,
    entity: Entity,
    resource: Resource,
    bucket: Bucket,
}

#[derive(Debug)]
struct Limiter {
    bug: Bug,
    rules: RateRules,
    clock: Arc<ManualClock>,
    rows: Mutex<Vec<Row>>,
}

pub(crate) fn open(bug: Bug, config: RateLimitConfig) -> rate_limit::Instance {
    let clock = Arc::new(ManualClock::default());
    let rules = config.rules().unwrap();
    let limiter = Limiter { bug, rules, clock: clock.clone(), rows: Mutex::default() };
    rate_limit::Instance::new(Arc::new(limiter)).with_clock(clock)
}

pub(crate) fn harness(bug: Bug) -> rate_limit::Harness {
    rate_limit::Harness::new(move |config| async move { open(bug, config) })
}

impl Limiter {
    fn now(&self) -> i128 {
        i128::from(self.clock.now().as_micros()) * 1_000
    }

    /// The key of a bucket: the user's, or the namespace's.
    fn key(&self, scope: &Scope, entity: Entity) -> String {
        match entity {
            Entity::Global if self.bug == Bug::NoNamespace => "\u{1}all".to_owned(),
            Entity::Global => format!("\u{1}{}", scope.namespace()),
            _ => key(self.bug, scope.owner()),
        }
    }

    /// The bucket of a limit, leaked until `now`.
    fn bucket(&self, rows: &[Row], scope: &Scope, entity: Entity, resource: Resource, now: i128) -> Bucket {
        let asked = self.key(scope, entity);
        let row = rows.iter().find(|row| {
            row.entity == entity && row.resource == resource && found(self.bug, &row.key, &asked)
        });
        let Some(Row { bucket, .. }) = row else { return Bucket { content: 0, at: now } };
        // A clock that was set back lets nothing leak, and what leaked stays leaked.
        let passed = if self.bug == Bug::ResetOnClockChange && now < bucket.at {
            i128::MAX >> 1
        } else if self.bug == Bug::LeaseNeverEnds {
            0
        } else if self.bug == Bug::ClockLocksOut && now < bucket.at {
            now - bucket.at
        } else {
            (now - bucket.at).max(0)
        };
        let floor = if self.bug == Bug::RefundAboveBurst { bucket.content.min(0) } else { 0 };
        Bucket { content: (bucket.content - passed).max(floor), at: now.max(bucket.at) }
    }

    fn put(&self, rows: &mut Vec<Row>, scope: &Scope, entity: Entity, resource: Resource, bucket: Bucket) {
        let key = self.key(scope, entity);
        let owner = scope.owner().clone();
        rows.retain(|row| row.key != key || row.entity != entity || row.resource != resource);
        rows.push(Row { key, owner, entity, resource, bucket });
        if let (Bug::EvictionRefills, Some(max)) = (self.bug, self.rules.max_users) {
            let surplus = rows.len().saturating_sub(max);
            rows.drain(..surplus);
        }
    }

    fn nanos(limit: loomflow_core::rules::gcra::Gcra, n: u64) -> i128 {
        i128::from(n) * limit.interval().as_nanos() as i128
    }

    /// Whether a new user has room: everybody in the list counts whose bucket is not empty.
    fn is_full(&self, rows: &[Row], scope: &Scope, now: i128) -> bool {
        let own = self.key(scope, Entity::User);
        let held = |row: &&Row| row.entity == Entity::User && row.bucket.content > now - row.bucket.at;
        let mut keys: Vec<&str> = rows.iter().filter(held).map(|row| row.key.as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        self.bug != Bug::EvictionRefills
            && !keys.contains(&own.as_str())
            && self.rules.max_users.is_some_and(|max| keys.len() >= max)
    }

    fn judge(&self, rows: &[Row], scope: &Scope, ask: &Amounts, now: i128) -> Option<Limited> {
        let mut longest: Option<Limited> = None;
        for (entity, resource, limit, n) in self.rules.limits.asked(ask) {
            if entity == Entity::Global && self.bug == Bug::GlobalNotCounted {
                continue;
            }
            let of = |reason| Limited::new(reason, entity, resource, limit.burst());
            let burst = Self::nanos(limit, limit.burst() + u64::from(self.bug == Bug::BurstAndOne));
            let over =
                self.bucket(rows, scope, entity, resource, now).content + Self::nanos(limit, n) - burst;
            let limited = if n > limit.burst() && self.bug != Bug::TooLargeWaits {
                of(LimitReason::TooLarge)
            } else if over > 0 {
                let slack = if self.bug == Bug::RetryTooSoon { 2_000 } else { 0 };
                of(LimitReason::Rate).with_retry_after(Duration::from_nanos((over - slack).max(1) as u64))
            } else {
                continue;
            };
            let longer = |other: &Limited| {
                let of = |l: &Limited| l.retry_after.unwrap_or(Duration::MAX);
                if self.bug == Bug::ShortestWait {
                    of(&limited) < of(other)
                } else {
                    of(&limited) > of(other)
                }
            };
            if longest.as_ref().is_none_or(longer) {
                longest = Some(limited);
            }
        }
        longest
    }
}

#[async_trait]
impl RateLimiter for Limiter {
    async fn take(&self, scope: &Scope, ask: &Amounts) -> Result<Taken> {
        let now = self.now();
        let judged = {
            let rows = self.rows.lock().unwrap();
            let judged = self.judge(&rows, scope, ask, now);
            if judged.is_none() && self.is_full(&rows, scope, now) {
                let limited = Limited::new(LimitReason::Capacity, Entity::User, Resource::Runs, 0);
                return Ok(Taken::Limited(Box::new(limited.with_retry_after(Duration::from_secs(1)))));
            }
            judged
        };
        if self.bug == Bug::RaceOnReserve {
            tokio::task::yield_now().await;
        }
        let mut rows = self.rows.lock().unwrap();
        // Judged once more under the lock that takes, unless the race is the defect.
        let judged = if self.bug == Bug::RaceOnReserve { judged } else { self.judge(&rows, scope, ask, now) };
        let refused = judged.as_ref().map(|limited| (limited.entity, limited.resource));
        for (entity, resource, limit, n) in self.rules.limits.asked(ask) {
            let takes = match (refused, self.bug) {
                (None, _) => true,
                (Some(by), Bug::HalfTaken) => by != (entity, resource),
                (Some((Entity::User, _)), Bug::RefusedTakesGlobal) => entity == Entity::Global,
                _ => false,
            };
            if takes {
                let mut bucket = self.bucket(&rows, scope, entity, resource, now);
                bucket.content += Self::nanos(limit, n);
                self.put(&mut rows, scope, entity, resource, bucket);
            }
        }
        Ok(judged.map_or(Taken::Admitted, |limited| Taken::Limited(Box::new(limited))))
    }

    async fn settle(&self, scope: &Scope, taken: &Amounts, used: &Amounts) -> Result<()> {
        let now = self.now();
        let mut rows = self.rows.lock().unwrap();
        for resource in Resource::ALL {
            let (taken, used) = (taken.of(resource), used.of(resource));
            for entity in [Entity::User, Entity::Global] {
                let Some(limit) = self.rules.limits.get(entity, resource) else { continue };
                if (taken == used && self.bug != Bug::SettlesEverything)
                    || (entity == Entity::Global && self.bug == Bug::GlobalNotSettled)
                    || (used > taken && self.bug == Bug::ExcessIsLost)
                    || (used < taken && self.bug == Bug::RefundIsCounted)
                {
                    continue;
                }
                let back = if self.bug == Bug::SettlesEverything { taken } else { 0 };
                let mut bucket = self.bucket(&rows, scope, entity, resource, now);
                bucket.content += Self::nanos(limit, used) - Self::nanos(limit, taken.max(back));
                if taken == used {
                    bucket.content -= Self::nanos(limit, back);
                }
                if self.bug != Bug::RefundAboveBurst {
                    bucket.content = bucket.content.max(0);
                }
                if self.bug != Bug::DebtUnbounded {
                    bucket.content = bucket.content.min(2 * Self::nanos(limit, limit.burst()));
                }
                bucket.content = bucket.content.clamp(-(1 << 80), 1 << 80);
                self.put(&mut rows, scope, entity, resource, bucket);
            }
        }
        Ok(())
    }

    fn rules(&self) -> &RateRules {
        &self.rules
    }
}

impl Limiter {
    fn own(&self, scope: &Scope) -> Vec<Row> {
        let (rows, asked, now) = (self.rows.lock().unwrap(), self.key(scope, Entity::User), self.now());
        let own = rows.iter().filter(|row| {
            row.entity == Entity::User
                && row.bucket.content > now - row.bucket.at
                && (self.bug == Bug::ExportEverybody || row.key == asked)
        });
        own.cloned().collect()
    }
}

#[async_trait]
impl TenantData for Limiter {
    fn store_name(&self) -> &str {
        "rate_limit:reference"
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let item = |row: Row| {
            let data = json!({"limit": row.resource.config_key(Entity::User), "of": row.key});
            Owned::new(row.owner, ExportItem::new("rate_limit", data))
        };
        Ok(export_from(self.own(scope).into_iter().map(item).collect()))
    }

    async fn forget(&self, scope: &Scope, _what: &Erase) -> Result<Erased> {
        let line = Erased::new(self.store_name());
        let kept = !self.own(scope).is_empty();
        let own = self.key(scope, Entity::User);
        match self.bug {
            Bug::ForgetResetsQuota => self.rows.lock().unwrap().retain(|row| row.key != own),
            Bug::ForgetEverybody => self.rows.lock().unwrap().clear(),
            _ => {}
        }
        Ok(if kept { line.with_retained("erasing it would give a fresh burst") } else { line })
    }
}
