//! The ledger: connecting, and what each operation of the contract goes through.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::resilience::{Readiness, Repeat, Resilience};
use loomflow_core::{
    Charge, Erase, Erased, Error, ErrorKind, EstimatedCharge, ExportStream, Hold, HoldId, Ledger, Limits,
    Owned, Reserve, Result, RunId, Scope, Settled, TenantData, Usage, UsageReport,
};
use loomflow_support_sql::postgres::{SERVER, migrate};
use tokio::sync::oneshot;

use crate::PostgresLedgerConfig;
use crate::batch::{Answer, Item, Op};
use crate::lane::Lane;
use crate::schema::LEDGER;
use crate::store::Store;

pub(crate) const STORE: &str = "ledger:postgres";

/// Each writes in one transaction at a time.
const LANES: u64 = 4;

/// Quota on PostgreSQL, shared by any number of processes. See the crate's documentation.
///
/// Cloning gives another handle to the same connections.
#[derive(Clone)]
pub struct PostgresLedger(Arc<Inner>);

struct Inner {
    store: Arc<Store>,
    resilience: Arc<Resilience>,
    lanes: Vec<Arc<Lane>>,
    limits: Limits,
}

impl PostgresLedger {
    /// Connects, brings the schema up to date unless the configuration forbids it, and checks that row-level security
    /// binds the application's role in every table.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for a budget that makes no sense, a wrong connection string, a schema that is missing, older or
    /// newer than this program (a newer one is left untouched), or a role or a table that row-level security does not bind;
    /// [`ErrorKind::Unreachable`] for a server that is not there. The message says what to do.
    pub async fn connect(config: PostgresLedgerConfig) -> Result<Self> {
        let store = Arc::new(Store::connect(&config).await?);
        let resilience = Arc::new(Resilience::new(SERVER, config.operation_timeout));
        let lane = |_| Lane::new(store.clone(), resilience.clone(), config.operation_timeout);
        let budget = &config.budget;
        let all = [&budget.global, &budget.per_user, &budget.per_run];
        let limits =
            Limits::new(all.iter().any(|caps| caps.wall_clock.is_some()), !budget.per_run.is_empty());
        let lanes = (0..LANES).map(lane).collect();
        Ok(Self(Arc::new(Inner { store, resilience, lanes, limits })))
    }

    /// Brings the schema up to date and does nothing else. The user of the connection string makes the application's
    /// role and owns the tables.
    ///
    /// # Errors
    ///
    /// As [`PostgresLedger::connect`]; [`ErrorKind::Config`] when the user lacks a privilege.
    pub async fn migrate(config: &PostgresLedgerConfig) -> Result<()> {
        migrate(&config.settings(), &LEDGER).await
    }

    /// Settles leases that ran out in this scope's namespace and takes out rows whose time is over, those of 200 users at
    /// most, as the ledger does by itself now and then. Says whether there may be more.
    ///
    /// # Errors
    ///
    /// Whatever the server fails with.
    pub async fn maintain(&self, scope: &Scope) -> Result<bool> {
        self.read("maintain", || self.0.store.sweep(scope.namespace(), true)).await.map(|swept| swept.more)
    }

    /// Has an operation done together with those that wait.
    async fn write(&self, scope: &Scope, op: Op) -> Result<Answer> {
        let (answer, answered) = oneshot::channel();
        let item = Item::new(&self.0.store, scope, op, answer);
        // Where all users together have caps they all wait for one lock, and together they wait for it less often.
        let chosen = if self.0.store.books.global.is_empty() {
            u64::from(item.partition()[31])
        } else {
            scope.namespace().as_str().bytes().fold(0, |sum, byte| sum + u64::from(byte))
        };
        let lane = usize::try_from(chosen % LANES).unwrap_or_default();
        self.0.lanes[lane].run(item, answered).await
    }

    async fn read<T, F, Fut>(&self, operation: &'static str, attempt: F) -> Result<T>
    where
        F: FnMut() -> Fut + Send,
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        self.0.resilience.run(operation, Repeat::Safe, attempt).await
    }
}

impl fmt::Debug for PostgresLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresLedger({:?}, {:?})", self.0.store.pool, self.0.resilience)
    }
}

#[async_trait]
impl Ledger for PostgresLedger {
    async fn reserve(&self, scope: &Scope, hold: &Hold) -> Result<Reserve> {
        match self.write(scope, Op::Reserve(*hold)).await? {
            Answer::Reserve(answer) => Ok(answer),
            _ => Err(mixed_up()),
        }
    }

    async fn sent(&self, scope: &Scope, hold: HoldId) -> Result<()> {
        self.write(scope, Op::Sent(hold)).await.map(drop)
    }

    async fn extend(&self, scope: &Scope, hold: HoldId, lease: Duration) -> Result<()> {
        self.write(scope, Op::Extend(hold, lease)).await.map(drop)
    }

    async fn close(&self, scope: &Scope, hold: HoldId, charge: Charge) -> Result<Settled> {
        match self.write(scope, Op::Close(hold, charge)).await? {
            Answer::Settled(settled) => Ok(settled),
            _ => Err(mixed_up()),
        }
    }

    async fn estimates(&self, scope: &Scope) -> Result<Vec<Owned<EstimatedCharge>>> {
        self.read("estimates", || self.0.store.estimates(scope)).await
    }

    async fn reconcile(&self, scope: &Scope, hold: HoldId, actual: Usage) -> Result<Settled> {
        match self.write(scope, Op::Reconcile(hold, actual)).await? {
            Answer::Settled(settled) => Ok(settled),
            _ => Err(mixed_up()),
        }
    }

    async fn namespace_usage(&self, scope: &Scope) -> Result<UsageReport> {
        if self.0.store.books.global.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the usage of all users together is counted only under caps of all users together",
            ));
        }
        match self.write(scope, Op::Total).await? {
            Answer::Report(report) => Ok(*report),
            _ => Err(mixed_up()),
        }
    }

    async fn usage(&self, scope: &Scope) -> Result<UsageReport> {
        self.read("usage", || self.0.store.usage(scope)).await
    }

    async fn end_run(&self, scope: &Scope, run: RunId) -> Result<()> {
        self.write(scope, Op::EndRun(run)).await.map(drop)
    }

    fn limits(&self) -> Limits {
        self.0.limits
    }
}

#[async_trait]
impl TenantData for PostgresLedger {
    fn store_name(&self) -> &str {
        STORE
    }

    async fn ready(&self) -> Readiness {
        let answer = self.read("ready", || self.0.store.pool.ping()).await;
        let mut readiness = self.0.resilience.readiness(&answer);
        if readiness.ready {
            readiness.detail = self.0.store.damage.detail();
        }
        readiness
    }

    /// The user's counter as one item of kind `counter`.
    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        self.read("export", || self.0.store.export(scope)).await
    }

    /// Takes the user's name off every row. The numbers stay until their window ends, or an erasure would be a way to a
    /// fresh quota.
    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        self.read("forget", || self.0.store.forget(scope, what)).await
    }
}

fn mixed_up() -> Error {
    Error::new(ErrorKind::Internal, "an operation was answered with another's answer")
}
