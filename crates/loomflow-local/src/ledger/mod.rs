//! The in-process budget: reserve, send, settle, with nothing to start and nothing to connect to.
//!
//! How it keeps its word:
//!
//! - **One lock per user.** Users are spread over shards. A user's counter, holds and spilled row live behind one shard's
//!   lock, and all caps are judged and charged inside it, so `used + held` never leaves a cap. Caps of all users together
//!   have one more counter for each namespace, locked after the shard's, and only when such caps are set.
//! - **A hold belongs to the window that is running.** An open hold counts against the present window, and its charge
//!   falls into the window in which it is closed. A lease that runs out unnoticed is closed as of the moment it did.
//! - **Eviction gives nothing away.** A user who leaves the hot table leaves a nameless row of about 40 bytes, written and
//!   removed under the same lock, until the window ends. When no more rows may be kept, new users are refused.
//! - **A clock set back opens no window again** and prolongs none. See [`Time`].
//! - **Warnings** are given when what is used *and held* first reaches the line.
//! - **A second close is recognised for ever**, because an id carries a proof of who it was granted to; nothing is
//!   remembered per closed hold. Only estimated charges are remembered, the last 64 of each hot user, so that a late close
//!   or an invoice can put the truth in their place; beyond that the estimate stands.

mod bounded;
mod global;
mod holds;
pub(crate) mod keys;
mod shard;
mod spill;
mod time;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::rules::quota::{Account, Books, Cell};
use loomflow_core::{
    BudgetConfig, Cap, Charge, Clock, Entity, Erase, Erased, Error, ErrorKind, EstimatedCharge, ExportItem,
    ExportStream, Hold, HoldId, Ledger, Limits, Owned, Refusal, RefusalReason, Reserve, Result, RunId, Scope,
    Settled, SystemClock, TenantData, Usage, UsageReport, export_from,
};
use parking_lot::{Mutex, MutexGuard};

use keys::{Ident, Keys};
use shard::{Book, Full, Shard};
use spill::Quota;
use time::{Tick, Time, nanos};

const STORE: &str = "ledger:inmemory";
const MAX_SHARDS: usize = 64;
/// Fewer users than this in a shard, and chance would fill one long before the others.
const LEAST_PER_SHARD: usize = 256;

/// The budget of one process: caps for all users together, for each user and for each run.
///
/// A namespace is an application of its own: its users together have their own counter, and never use up another's caps.
/// Such counters are kept for 1,024 namespaces; a call in a further one fails with
/// [`ErrorKind::Capacity`](loomflow_core::ErrorKind::Capacity). Without caps for all users together there is no such
/// bound.
///
/// Counters live as long as the process. Replicas that must share a quota use a ledger on a database.
pub struct StandardBudget {
    config: BudgetConfig,
    book: Book,
    time: Time,
    shards: Box<[Mutex<Shard>]>,
}

impl StandardBudget {
    /// A budget with these caps.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](loomflow_core::ErrorKind::Config) when the numbers make no sense together.
    pub fn new(config: BudgetConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self::build(config))
    }

    /// A budget without caps: everything is granted and counted.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::build(BudgetConfig::new())
    }

    /// Reads the time of day from `clock`. Set it before the first use. Leases follow the runtime's monotonic clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.time = Time::new(clock);
        self
    }

    /// The configuration this budget was made from.
    #[must_use]
    pub fn config(&self) -> &BudgetConfig {
        &self.config
    }

    fn build(config: BudgetConfig) -> Self {
        let books = Books::new(&config);
        let users = config.max_users.unwrap_or(usize::MAX);
        // A power of two, and never more users than configured over all shards.
        let shards = match users / LEAST_PER_SHARD {
            0 | 1 => 1,
            n => MAX_SHARDS.min(1 << n.ilog2()),
        };
        let book = Book {
            keys: Keys::default(),
            total: (!books.global.is_empty()).then(Mutex::default),
            books,
            quota: Quota::new(config.max_spilled_users),
            hot: AtomicUsize::new(0),
            idle: config.user_idle_ttl.map(nanos),
            next_due: AtomicU64::new(u64::MAX),
            purged: AtomicI64::new(i64::MIN),
        };
        Self {
            book,
            time: Time::new(Arc::new(SystemClock)),
            shards: (0..shards).map(|_| Mutex::new(Shard::new((users / shards).max(1), shards))).collect(),
            config,
        }
    }

    /// Reads the clocks, locks the scope's shard and brings it up to date.
    fn enter(&self, scope: &Scope) -> (Tick, Ident, MutexGuard<'_, Shard>) {
        let now = self.time.read(&self.book.books.periods);
        let ident = self.book.keys.ident(scope.owner());
        self.sweep(&now);
        let mut shard = self.shard(ident);
        shard.tidy(&self.book, &now);
        (now, ident, shard)
    }

    fn shard(&self, ident: Ident) -> MutexGuard<'_, Shard> {
        self.shards[ident.shard(self.shards.len())].lock()
    }

    /// Closes leases that ran out in any shard, because under caps of all users together they concern everybody.
    fn sweep(&self, now: &Tick) {
        if self.book.total.is_none() || self.book.next_due.load(Ordering::Acquire) > now.mono {
            return;
        }
        // First up, then down again: a hold made meanwhile lowers it by itself, or is seen in its shard.
        self.book.next_due.store(u64::MAX, Ordering::Release);
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.expire(&self.book, now);
            if let Some(due) = shard.next_due() {
                self.book.next_due.fetch_min(due, Ordering::AcqRel);
            }
        }
    }

    /// Drops the rows of ended windows in every shard, at most once per window. Says whether it did.
    fn purge(&self, now: &Tick) -> bool {
        let due = self.book.purged.fetch_max(now.window, Ordering::AcqRel) < now.window;
        if due {
            for shard in &self.shards {
                shard.lock().purge(&self.book, now);
            }
        }
        due
    }

    fn capacity(&self) -> Refusal {
        let kept = self.book.hot.load(Ordering::Relaxed) + self.book.quota.kept();
        Refusal::new(RefusalReason::Capacity, Entity::User, Cap::Tokens, self.config.window).with_numbers(
            u64::try_from(kept).unwrap_or(u64::MAX),
            0,
            0,
            0,
        )
    }

    fn try_reserve(&self, scope: &Scope, hold: &Hold) -> Result<Result<Reserve, Full>> {
        let (now, ident, mut shard) = self.enter(scope);
        let answer = shard.reserve(&self.book, &now, ident, scope, hold);
        drop(shard);
        match answer {
            Ok(Err(Full)) if self.purge(&now) => {
                self.shard(ident).reserve(&self.book, &now, ident, scope, hold)
            }
            answer => answer,
        }
    }
}

impl fmt::Debug for StandardBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandardBudget")
            .field("config", &self.config)
            .field("hot_users", &self.book.hot.load(Ordering::Relaxed))
            .field("spilled_users", &self.book.quota.kept())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Ledger for StandardBudget {
    async fn reserve(&self, scope: &Scope, hold: &Hold) -> Result<Reserve> {
        Ok(match self.try_reserve(scope, hold)? {
            Ok(answer) => answer,
            Err(Full) => Reserve::Refused(Box::new(self.capacity())),
        })
    }

    async fn sent(&self, scope: &Scope, hold: HoldId) -> Result<()> {
        let (_, ident, mut shard) = self.enter(scope);
        shard.sent(&self.book, ident, scope.owner(), hold)
    }

    async fn extend(&self, scope: &Scope, hold: HoldId, lease: Duration) -> Result<()> {
        let (now, ident, mut shard) = self.enter(scope);
        shard.extend(&self.book, ident, scope.owner(), hold, now.mono.saturating_add(nanos(lease)))
    }

    async fn close(&self, scope: &Scope, hold: HoldId, charge: Charge) -> Result<Settled> {
        let (now, ident, mut shard) = self.enter(scope);
        shard.close(&self.book, &now, ident, scope.owner(), hold, &charge)
    }

    async fn estimates(&self, scope: &Scope) -> Result<Vec<Owned<EstimatedCharge>>> {
        let (_, ident, mut shard) = self.enter(scope);
        let (name, found) = shard.estimates(ident, scope.owner());
        // A counter without a name is found by the keyed hash of this very owner.
        let owner = name.unwrap_or_else(|| scope.owner().clone());
        Ok(found.into_iter().map(|estimate| Owned::new(owner.clone(), estimate)).collect())
    }

    async fn reconcile(&self, scope: &Scope, hold: HoldId, actual: Usage) -> Result<Settled> {
        let (now, ident, mut shard) = self.enter(scope);
        shard.reconcile(&self.book, &now, ident, scope.owner(), hold, actual)
    }

    async fn namespace_usage(&self, scope: &Scope) -> Result<UsageReport> {
        let Some(total) = &self.book.total else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the usage of all users together is counted only under caps of all users together",
            ));
        };
        let now = self.time.read(&self.book.books.periods);
        self.sweep(&now);
        let mut total = total.lock();
        let blank = Cell::new(now.window);
        let cell = match total.find(scope.namespace())? {
            Some(place) => &*total.cell(place),
            None => &blank,
        };
        Ok(Account::report_global(&self.book.books, now.wall, cell))
    }

    async fn usage(&self, scope: &Scope) -> Result<UsageReport> {
        let (now, ident, shard) = self.enter(scope);
        if let Some((report, _)) = shard.report(&self.book, &now, ident, scope.owner()) {
            return Ok(report);
        }
        let mut report = UsageReport::default();
        report.windows =
            Cell::new(now.window).lines(&self.book.books.user, &self.book.books.periods, now.wall);
        Ok(report)
    }

    async fn end_run(&self, scope: &Scope, run: RunId) -> Result<()> {
        let (_, ident, mut shard) = self.enter(scope);
        shard.end_run(&self.book, ident, scope.owner(), run);
        Ok(())
    }

    fn limits(&self) -> Limits {
        let all = [&self.config.global, &self.config.per_user, &self.config.per_run];
        Limits::new(all.iter().any(|caps| caps.wall_clock.is_some()), !self.book.books.run.is_empty())
    }
}

#[async_trait]
impl TenantData for StandardBudget {
    fn store_name(&self) -> &str {
        STORE
    }

    /// The user's counter as one item of kind `counter`.
    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let (now, ident, shard) = self.enter(scope);
        let found = shard.report(&self.book, &now, ident, scope.owner());
        drop(shard);
        let Some((report, name)) = found else { return Ok(export_from(Vec::new())) };
        let data = serde_json::to_value(&report).map_err(|e| {
            Error::new(ErrorKind::Internal, "a counter could not be written as JSON").with_source(e)
        })?;
        // A spilled row has no name on purpose; what it is stored under is the keyed hash of this very owner.
        let owner = name.unwrap_or_else(|| scope.owner().clone());
        Ok(export_from(vec![Owned::new(owner, ExportItem::new("counter", data))]))
    }

    /// Takes the user's name off the counter. The numbers stay until their window ends, or an erasure would be a way to a
    /// fresh quota.
    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let (now, ident, mut shard) = self.enter(scope);
        let (names, kept) = if what.is_everything() {
            shard.unname(&self.book, &now, ident, scope)
        } else {
            (0, shard.report(&self.book, &now, ident, scope.owner()).is_some())
        };
        drop(shard);
        let line = Erased::new(STORE).with_count("counter_name", names);
        Ok(if !kept {
            line
        } else if what.is_everything() {
            line.with_retained(
                "the usage counters, without the name and under a keyed hash, until their window ends: erasing them \
                 would give a fresh quota",
            )
        } else {
            line.with_retained("the usage counters: they belong to no session and hold no content")
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    #[test]
    fn an_entry_is_small() {
        let bytes = Shard::USER_BYTES;
        assert!(bytes <= 256, "a hot user takes {bytes} bytes");
    }

    #[test]
    fn nonsense_is_refused_at_the_door() {
        assert!(StandardBudget::new(BudgetConfig::new().max_users(0)).is_err());
        assert!(StandardBudget::new(BudgetConfig::new().soft_warning_at(f64::NAN)).is_err());
        assert!(format!("{:?}", StandardBudget::unlimited()).contains("hot_users"));
    }

    #[test]
    fn shards_never_keep_more_users_than_configured() {
        for users in [1, 255, 256, 511, 512, 1_000, 100_000, 5_000_000] {
            let budget = StandardBudget::new(BudgetConfig::new().max_users(users)).unwrap();
            let each = users / budget.shards.len();
            assert!(budget.shards.len().is_power_of_two() && each >= 1, "{users}");
            assert!(each * budget.shards.len() <= users);
        }
    }
}
