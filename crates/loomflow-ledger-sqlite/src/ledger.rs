//! The ledger: its trait on one SQLite file.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::resilience::{Readiness, Repeat, Resilience};
use loomflow_core::rules::quota::{Account, Books, Cell, HoldIds};
use loomflow_core::{
    BudgetConfig, Charge, Clock, Epoch, Erase, Erased, Error, ErrorKind, EstimatedCharge, ExportStream, Hold,
    HoldId, Ledger, Limits, Owned, Reserve, Result, RunId, Scope, Settled, SystemClock, TenantData,
    Timestamp, Usage, UsageReport, export_from,
};
use loomflow_support_sql::sqlite::{Database, SERVER, failed};

use crate::config::SqliteLedgerConfig;
use crate::desk::{self, Order};
use crate::forget;
use crate::keeping::Keeping;
use crate::read::Look;
use crate::rows::Pick;
use crate::schema::{Author, Columns as _, Filter, SCHEMA, STORE, is_damage};

/// Every so many writes, one clears away a little.
const PRUNE_EVERY: u32 = 32;
/// How often an operator's view lets holds run out before it answers, a group at a time.
const SETTLE: u32 = 64;

/// The quota of every tenant in one SQLite file, which several processes may share. See the crate's documentation.
///
/// - What was answered is on the disk: a hold, that it was sent, a charge.
/// - Leases and windows follow the wall clock. No window opens again where it is set back.
///
/// Cloning gives another handle to the same file.
#[derive(Clone)]
pub struct SqliteLedger {
    inner: Arc<Inner>,
    clock: Arc<dyn Clock>,
}

struct Inner {
    database: Database,
    guard: Resilience,
    filter: Filter,
    budget: BudgetConfig,
    books: Books,
    ids: HoldIds,
    writes: AtomicU32,
    keeping: Arc<Keeping>,
}

const SECRET: &str = "SELECT secret FROM ledger_meta WHERE one = 1";

impl SqliteLedger {
    /// Opens the file, creating it and bringing its schema up to date unless `config` says not to.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for a budget that makes no sense, for a file that cannot be opened, that is no database or
    /// another program's, and for a schema that is newer than this program, or older where it may not be migrated. Such a
    /// file is left untouched.
    pub async fn connect(config: SqliteLedgerConfig) -> Result<Self> {
        config.budget.validate()?;
        let database = Database::open(config.file(), &SCHEMA, config.migrate).await?;
        let mut read = database.read("connect").await?;
        let secret = sqlx::query(SECRET).fetch_one(&mut *read).await.map_err(failed("connect"))?;
        let ids = HoldIds::new(&secret.bytes("secret")?);
        drop(read);
        let guard = Resilience::without_circuit(SERVER, config.operation_timeout);
        let (filter, books) = (Filter::of(&config), Books::new(&config.budget));
        let (budget, writes, keeping) = (config.budget, AtomicU32::new(0), Arc::default());
        let inner = Arc::new(Inner { database, guard, filter, budget, books, ids, writes, keeping });
        Ok(Self { inner, clock: Arc::new(SystemClock) })
    }

    /// Creates the file or brings its schema up to date, and nothing else.
    ///
    /// # Errors
    ///
    /// As [`SqliteLedger::connect`].
    pub async fn migrate(config: &SqliteLedgerConfig) -> Result<()> {
        Database::migrate(&config.file(), &SCHEMA).await
    }

    /// Takes the wall clock from `clock`: leases and windows follow it. All processes on one file should agree on the time.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    fn order(&self, operation: &'static str, scope: &Scope) -> Order {
        let inner = &*self.inner;
        let prunes = inner.writes.fetch_add(1, Ordering::Relaxed).is_multiple_of(PRUNE_EVERY);
        let (author, keeping) = (Author::of(scope), inner.keeping.clone());
        Order { operation, author, books: inner.books, prunes, keeping }
    }

    /// Does `act` on the user's account as one write. It is done with the time at which the write has its turn.
    async fn change<T, F>(&self, operation: &'static str, scope: &Scope, pick: Pick, act: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Account, &Books, Timestamp, &mut Cell) -> Result<T> + Clone + Send + Sync + 'static,
    {
        let change = || {
            let (order, clock, act) = (self.order(operation, scope), self.clock.clone(), act.clone());
            self.inner.database.write(operation, move |conn| {
                Box::pin(async move {
                    let now = clock.now();
                    let act = |account: &mut Account, books: &Books, global: &mut Cell| {
                        act(account, books, now, global)
                    };
                    desk::change(conn, &order, now, pick, act).await
                })
            })
        };
        let done = self.inner.guard.run(operation, Repeat::Safe, change).await;
        if let Err(error) = &done
            && is_damage(error)
        {
            self.inner.keeping.damage.found(&scope.owner().partition(), error.message());
        }
        done.flatten().map_err(|e| e.with_operation(operation))
    }

    fn look<'a>(&'a self, scope: &'a Scope) -> Look<'a> {
        Look { filter: self.inner.filter, scope, books: &self.inner.books, now: self.clock.now() }
    }
}

impl fmt::Debug for SqliteLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { database, guard, budget, .. } = &*self.inner;
        f.debug_struct("SqliteLedger")
            .field("budget", budget)
            .field("file", database)
            .field("guard", guard)
            .finish()
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn reserve(&self, scope: &Scope, hold: &Hold) -> Result<Reserve> {
        let (id, hold) = (self.inner.ids.draw(scope.owner()), *hold);
        let act = move |account: &mut Account, books: &Books, now, global: &mut Cell| {
            account.reserve(books, now, global, id, &hold)
        };
        self.change("reserve", scope, Pick::Key(hold.key), act).await
    }

    async fn sent(&self, scope: &Scope, hold: HoldId) -> Result<()> {
        let act = move |account: &mut Account, books: &Books, now, global: &mut Cell| {
            account.sent(books, now, global, hold)
        };
        self.change("sent", scope, Pick::Id(hold), act).await
    }

    async fn extend(&self, scope: &Scope, hold: HoldId, lease: Duration) -> Result<()> {
        let act = move |account: &mut Account, books: &Books, now, global: &mut Cell| {
            account.extend(books, now, global, hold, lease)
        };
        self.change("extend", scope, Pick::Id(hold), act).await
    }

    async fn close(&self, scope: &Scope, hold: HoldId, charge: Charge) -> Result<Settled> {
        let drawn = self.inner.ids.granted(scope.owner(), hold);
        let act = move |account: &mut Account, books: &Books, now, global: &mut Cell| {
            account.close(books, now, global, hold, &charge, drawn)
        };
        self.change("close", scope, Pick::Id(hold), act).await
    }

    async fn estimates(&self, scope: &Scope) -> Result<Vec<Owned<EstimatedCharge>>> {
        let Inner { database, guard, .. } = &*self.inner;
        let estimates = || async {
            let mut read = database.read("estimates").await?;
            self.look(scope).estimates(&mut read, "estimates").await
        };
        let found = guard.run("estimates", Repeat::Safe, estimates).await?;
        Ok(found.into_iter().map(|(owner, estimate)| Owned::new(owner, estimate)).collect())
    }

    async fn reconcile(&self, scope: &Scope, hold: HoldId, actual: Usage) -> Result<Settled> {
        let drawn = self.inner.ids.granted(scope.owner(), hold);
        let act = move |account: &mut Account, books: &Books, now, global: &mut Cell| {
            account.reconcile(books, now, global, hold, actual, drawn)
        };
        self.change("reconcile", scope, Pick::Id(hold), act).await
    }

    async fn namespace_usage(&self, scope: &Scope) -> Result<UsageReport> {
        const OPERATION: &str = "namespace_usage";
        let Inner { database, guard, books, .. } = &*self.inner;
        if books.global.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the usage of all users together is counted only under caps of all users together",
            ));
        }
        let settle = || {
            let (order, clock) = (self.order(OPERATION, scope), self.clock.clone());
            database.write(OPERATION, move |conn| {
                Box::pin(async move {
                    let now = clock.now();
                    desk::settle_all(conn, &order, now).await.map(|(cell, more)| (cell, more, now))
                })
            })
        };
        let (mut cell, mut more, mut now) = guard.run(OPERATION, Repeat::Safe, settle).await?;
        for _ in 1..SETTLE {
            if !more {
                break;
            }
            (cell, more, now) = guard.run(OPERATION, Repeat::Safe, settle).await?;
        }
        Ok(Account::report_global(books, now, &cell))
    }

    async fn usage(&self, scope: &Scope) -> Result<UsageReport> {
        let Inner { database, guard, .. } = &*self.inner;
        let usage = || async {
            let mut read = database.read("usage").await?;
            self.look(scope).usage(&mut read).await
        };
        guard.run("usage", Repeat::Safe, usage).await
    }

    async fn end_run(&self, scope: &Scope, run: RunId) -> Result<()> {
        let end = || {
            let author = Author::of(scope);
            self.inner.database.write("end_run", move |conn| {
                Box::pin(async move { desk::end_run(conn, &author, run).await })
            })
        };
        self.inner.guard.run("end_run", Repeat::Safe, end).await
    }

    fn limits(&self) -> Limits {
        let BudgetConfig { global, per_user, per_run, .. } = &self.inner.budget;
        let wall_clock = [global, per_user, per_run].iter().any(|caps| caps.wall_clock.is_some());
        Limits::new(wall_clock, !per_run.is_empty())
    }
}

#[async_trait]
impl TenantData for SqliteLedger {
    fn store_name(&self) -> &str {
        STORE
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        let Inner { database, guard, .. } = &*self.inner;
        let epoch = || async {
            let mut read = database.read("epoch").await?;
            self.look(scope).epoch(&mut read).await
        };
        guard.run("epoch", Repeat::Safe, epoch).await
    }

    async fn ready(&self) -> Readiness {
        let Inner { database, guard, .. } = &*self.inner;
        let ask = || async {
            let mut read = database.read("ready").await?;
            let asked = sqlx::query("SELECT 1 FROM ledger_meta").fetch_optional(&mut *read).await;
            asked.map(drop).map_err(failed("ready"))
        };
        let answer = guard.run("ready", Repeat::Safe, ask).await;
        let mut readiness = guard.readiness(&answer);
        if readiness.ready {
            readiness.detail = self.inner.keeping.damage.detail();
        }
        readiness
    }

    /// Every counter of the user as an item of kind `counter`, and every charge that can be reconciled as an `estimate`.
    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let Inner { database, guard, .. } = &*self.inner;
        let export = || async {
            let mut read = database.read("export").await?;
            self.look(scope).export(&mut read).await
        };
        guard.run("export", Repeat::Safe, export).await.map(export_from)
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let forget = || {
            let (author, what) = (Author::of(scope), what.clone());
            self.inner.database.erase("forget", move |conn| {
                Box::pin(async move { forget::forget(conn, &author, &what).await })
            })
        };
        self.inner.guard.run("forget", Repeat::Safe, forget).await
    }
}
