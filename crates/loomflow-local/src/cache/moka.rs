//! The cache: bounded by bytes, expiring, and emptied of a tenant when told.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{Owned, Result, Scope, ToolCache};
use moka::future::Cache;
use moka::policy::EvictionPolicy;

use super::index::{Index, Slot};

/// What an entry costs beside its key and its value, in bytes.
const ENTRY_BYTES: usize = 320;

/// Bounds of a [`MokaToolCache`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ToolCacheConfig {
    /// The most bytes of keys and values together; more drops what was used least recently. 64 MiB by default.
    pub max_bytes: u64,
    /// How long a value is kept. 10 minutes by default.
    pub ttl: Duration,
    /// How many erasures are remembered one by one, before every late write of an owner that is not among them is
    /// refused. 100,000 by default.
    pub max_cleared: usize,
}

impl Default for ToolCacheConfig {
    fn default() -> Self {
        Self { max_bytes: 64 << 20, ttl: Duration::from_secs(600), max_cleared: 100_000 }
    }
}

impl ToolCacheConfig {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the most bytes of keys and values together.
    #[must_use]
    pub fn with_max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets how long a value is kept; at most 1,000 years.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl.min(Duration::from_secs(1_000 * 365 * 24 * 60 * 60));
        self
    }

    /// Sets how many erasures are remembered one by one.
    #[must_use]
    pub fn with_max_cleared(mut self, owners: usize) -> Self {
        self.max_cleared = owners.max(1);
        self
    }
}

/// A cache of tool results in this process.
///
/// - A key is the owner's encoding, the erasure epoch and the caller's key, length-delimited: no two tenants share one.
/// - [`ToolCache::clear`] empties every value of the owner at once, and from then on a put of an older epoch fails with
///   [`ErrorKind::Erased`](loomflow_core::ErrorKind::Erased), also one that is under way. Clearing one epoch twice refuses puts of that epoch, too.
/// - Time is monotonic. A value may go at any time before its end when the cache is full.
///
/// Cloning gives another handle to the same cache.
#[derive(Clone)]
pub struct MokaToolCache {
    entries: Cache<Arc<[u8]>, Arc<Slot>>,
    index: Arc<Index>,
}

impl MokaToolCache {
    /// A cache with the default bounds.
    #[must_use]
    pub fn new() -> Self {
        Self::with_config(&ToolCacheConfig::default())
    }

    /// A cache with bounds of your choosing.
    #[must_use]
    pub fn with_config(config: &ToolCacheConfig) -> Self {
        let entries = Cache::<Arc<[u8]>, Arc<Slot>>::builder()
            .name("tool_cache")
            .max_capacity(config.max_bytes)
            // The default policy turns newcomers away while the cache is warm; a new tenant would never be cached.
            .eviction_policy(EvictionPolicy::lru())
            .weigher(|key, slot| {
                let value = slot.value().map_or(0, |v| v.len());
                u32::try_from(key.len() + value + ENTRY_BYTES).unwrap_or(u32::MAX)
            })
            .time_to_live(config.ttl)
            .build();
        Self { entries, index: Index::new(config.max_cleared) }
    }
}

impl Default for MokaToolCache {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MokaToolCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MokaToolCache").field("bytes", &self.entries.weighted_size()).finish_non_exhaustive()
    }
}

#[async_trait]
impl ToolCache for MokaToolCache {
    async fn get(&self, scope: &Scope, key: &str) -> Result<Option<Owned<String>>> {
        let Some(slot) = self.entries.get(&cache_key(scope, key)).await else { return Ok(None) };
        Ok(slot.value().map(|value| Owned::new(slot.owner().clone(), value.to_string())))
    }

    async fn put(&self, scope: &Scope, key: &str, value: &str) -> Result<()> {
        // Known to the index before the cache sees it: a clear that comes in between finds it and empties it.
        let slot = self.index.open(scope, cache_key(scope, key), value)?;
        self.entries.insert(slot.key().clone(), slot.clone()).await;
        if slot.value().is_none() {
            self.entries.invalidate(slot.key()).await;
        }
        Ok(())
    }

    async fn clear(&self, scope: &Scope) -> Result<u64> {
        // From here on no value is there. Dropping the keys, which may name things too, takes a moment longer.
        let (emptied, slots) = self.index.clear(scope);
        for slot in &slots {
            self.entries.invalidate(slot.key()).await;
        }
        drop(slots);
        self.entries.run_pending_tasks().await;
        Ok(emptied)
    }
}

/// The one place where a scope becomes a key.
fn cache_key(scope: &Scope, key: &str) -> Arc<[u8]> {
    let owner = scope.owner().encode();
    let mut out = Vec::with_capacity(owner.len() + key.len() + 16);
    for part in [&*owner, &scope.epoch().get().to_be_bytes(), key.as_bytes()] {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use loomflow_core::danger::assume_scope;
    use loomflow_core::{Epoch, ErrorKind, Identity, Namespace, UserId};

    use super::*;

    fn scope(user: &str, epoch: u64) -> Scope {
        let identity = Identity::User(UserId::new(user).unwrap());
        assume_scope(Namespace::default(), identity, Epoch::new(epoch))
    }

    async fn get(cache: &MokaToolCache, scope: &Scope, key: &str) -> Option<String> {
        cache.get(scope, key).await.unwrap().map(|hit| hit.open(scope).unwrap())
    }

    #[tokio::test]
    async fn tenants_never_share_an_entry() {
        let cache = MokaToolCache::new();
        let users = ["user_1", "user_10", "User_1", "user_1:k", "caf\u{e9}", "cafe\u{301}", "a|b", "a"];
        for user in users {
            for key in ["k", "", "b|k", ":k:k"] {
                cache.put(&scope(user, 0), key, &format!("{user}/{key}")).await.unwrap();
            }
        }
        for user in users {
            for key in ["k", "", "b|k", ":k:k"] {
                let value = get(&cache, &scope(user, 0), key).await;
                assert_eq!(value.as_deref(), Some(&*format!("{user}/{key}")));
            }
        }
        let anonymous = assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO);
        let elsewhere =
            assume_scope(Namespace::new("other").unwrap(), scope("a", 0).identity().clone(), Epoch::ZERO);
        assert_eq!(get(&cache, &anonymous, "k").await, None);
        assert_eq!(get(&cache, &elsewhere, "k").await, None);
    }

    #[tokio::test]
    async fn clearing_takes_all_of_one_tenant_and_nothing_else() {
        let cache = MokaToolCache::new();
        for i in 0..100 {
            cache.put(&scope("a", i % 3), &format!("k{i}"), "v").await.unwrap();
            cache.put(&scope("b", 0), &format!("k{i}"), "v").await.unwrap();
        }
        assert_eq!(cache.clear(&scope("a", 1)).await.unwrap(), 67, "epochs 0 and 1");
        assert_eq!(cache.entries.iter().count(), 133, "their keys are gone as well");
        assert_eq!(get(&cache, &scope("a", 0), "k0").await, None);
        assert_eq!(get(&cache, &scope("a", 2), "k2").await.as_deref(), Some("v"));
        assert_eq!(get(&cache, &scope("b", 0), "k0").await.as_deref(), Some("v"));
        assert_eq!(cache.clear(&scope("a", 1)).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_late_put_of_an_erased_epoch_is_refused() {
        let cache = MokaToolCache::new();
        cache.clear(&scope("a", 1)).await.unwrap();
        let late = cache.put(&scope("a", 0), "k", "v").await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Erased);
        assert_eq!(get(&cache, &scope("a", 0), "k").await, None);
        cache.put(&scope("a", 1), "k", "v").await.unwrap();
        assert_eq!(get(&cache, &scope("a", 1), "k").await.as_deref(), Some("v"));
    }

    #[tokio::test]
    async fn a_put_between_two_clears_of_one_epoch_is_gone_and_does_not_come_back() {
        let cache = MokaToolCache::new();
        let between = scope("a", 1);
        cache.clear(&scope("a", 1)).await.unwrap();
        cache.put(&between, "k", "v").await.unwrap();
        assert_eq!(cache.clear(&scope("a", 1)).await.unwrap(), 1);
        assert_eq!(cache.put(&between, "k", "late").await.unwrap_err().kind(), ErrorKind::Erased);
        assert_eq!(get(&cache, &between, "k").await, None);
        cache.put(&scope("a", 2), "k", "new").await.unwrap();
        assert_eq!(get(&cache, &scope("a", 2), "k").await.as_deref(), Some("new"));
    }

    #[tokio::test]
    async fn a_put_that_is_under_way_during_a_clear_leaves_nothing() {
        let cache = MokaToolCache::new();
        let slot = cache.index.open(&scope("a", 0), cache_key(&scope("a", 0), "k"), "secret").unwrap();
        cache.clear(&scope("a", 1)).await.unwrap();
        cache.entries.insert(slot.key().clone(), slot).await;
        assert_eq!(get(&cache, &scope("a", 0), "k").await, None);
    }

    #[tokio::test]
    async fn it_is_bounded_and_the_index_holds_what_is_alive() {
        let cache = MokaToolCache::with_config(&ToolCacheConfig::new().with_max_bytes(100_000));
        for i in 0..2_000 {
            cache.put(&scope(&format!("u{i}"), 0), "k", &"v".repeat(100)).await.unwrap();
        }
        cache.entries.run_pending_tasks().await;
        assert!(cache.entries.weighted_size() <= 100_000);
        assert_eq!(
            get(&cache, &scope("u1999", 0), "k").await.map(|v| v.len()),
            Some(100),
            "newcomers are let in"
        );
        // Dropped entries are freed in the cache's own time.
        for _ in 0..200 {
            cache.entries.run_pending_tasks().await;
            if cache.index.len() as u64 <= cache.entries.entry_count() + 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} slots for {} entries", cache.index.len(), cache.entries.entry_count());
    }

    #[tokio::test]
    async fn values_expire() {
        let cache = MokaToolCache::with_config(&ToolCacheConfig::new().with_ttl(Duration::from_millis(20)));
        cache.put(&scope("a", 0), "k", "v").await.unwrap();
        tokio::time::sleep(Duration::from_millis(40)).await;
        assert_eq!(get(&cache, &scope("a", 0), "k").await, None);
    }
}
