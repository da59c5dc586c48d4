//! Bounds of the in-process memory, and what it counts.

use std::time::Duration;

/// Bounds of an [`InMemoryMemory`](crate::InMemoryMemory). `None` means no bound of that kind.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// The most users held; one more evicts the one that was used least recently. 100,000 by default.
    pub max_users: Option<usize>,
    /// A user who was not touched for this long is evicted. 24 hours by default. Monotonic time.
    pub user_idle_ttl: Option<Duration>,
    /// The most episodes of one user; one more drops the oldest. 10,000 by default.
    pub max_episodes_per_user: usize,
    /// The most fact rows of one user. One more drops the row that stopped being believed first; when all are
    /// believed, the assertion is refused. 10,000 by default.
    pub max_facts_per_user: usize,
    /// The most bytes of all users together (estimated); more evicts the users that were used least recently. 1 GiB
    /// by default.
    pub max_bytes: Option<u64>,
    /// The most bytes of one user (estimated); more drops the user's oldest episodes. 64 MiB by default.
    pub max_bytes_per_user: u64,
    /// How many evicted users' erasures are remembered one by one (about 40 bytes each), before the memory falls
    /// back to refusing every late write of users it does not hold. 1,000,000 by default.
    pub max_tombstones: usize,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            max_users: Some(100_000),
            user_idle_ttl: Some(Duration::from_secs(24 * 60 * 60)),
            max_episodes_per_user: 10_000,
            max_facts_per_user: 10_000,
            max_bytes: Some(1 << 30),
            max_bytes_per_user: 64 << 20,
            max_tombstones: 1_000_000,
        }
    }
}

impl MemoryConfig {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the most users held; less than 1 counts as 1.
    #[must_use]
    pub fn with_max_users(mut self, users: impl Into<Option<usize>>) -> Self {
        self.max_users = users.into().map(|n| n.max(1));
        self
    }

    /// Sets after how long without a touch a user is evicted.
    #[must_use]
    pub fn with_user_idle_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.user_idle_ttl = ttl.into();
        self
    }

    /// Sets the most episodes of one user; less than 1 counts as 1.
    #[must_use]
    pub fn with_max_episodes_per_user(mut self, episodes: usize) -> Self {
        self.max_episodes_per_user = episodes.max(1);
        self
    }

    /// Sets the most fact rows of one user; less than 1 counts as 1.
    #[must_use]
    pub fn with_max_facts_per_user(mut self, rows: usize) -> Self {
        self.max_facts_per_user = rows.max(1);
        self
    }

    /// Sets the most bytes of all users together.
    #[must_use]
    pub fn with_max_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.max_bytes = bytes.into();
        self
    }

    /// Sets the most bytes of one user.
    #[must_use]
    pub fn with_max_bytes_per_user(mut self, bytes: u64) -> Self {
        self.max_bytes_per_user = bytes;
        self
    }

    /// Sets how many evicted users' erasures are remembered one by one.
    #[must_use]
    pub fn with_max_tombstones(mut self, tombstones: usize) -> Self {
        self.max_tombstones = tombstones.max(1);
        self
    }
}

/// What an [`InMemoryMemory`](crate::InMemoryMemory) holds and has let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Users held.
    pub users: u64,
    /// Episodes held.
    pub episodes: u64,
    /// Bytes held, estimated.
    pub bytes: u64,
    /// Users evicted since the start, for any reason.
    pub evictions: u64,
    /// Of these, users evicted because they were idle.
    pub idle_evictions: u64,
    /// Episodes dropped since the start because their user was full.
    pub dropped_episodes: u64,
}
