//! Rate limits on PostgreSQL: one statement, the server's clock, and rows that go when they say nothing any more.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::resilience::{Readiness, Repeat, Resilience};
use loomflow_core::rules::gcra::{Gcra, Wait};
use loomflow_core::{
    Amounts, Entity, Erase, Erased, ExportItem, ExportStream, Namespace, Owned, RateLimitConfig, RateLimiter,
    RateLimits, RateRules, Resource, Result, Scope, Secret, Taken, TenantData, export_from,
};
use loomflow_support_sql::postgres::{Access, Pool, SERVER, Several, Transaction, defaults, failed, migrate};
use serde::Deserialize;
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::schema::RATE_LIMITS;

const STORE: &str = "rate_limit:postgres";

const CHANGE: &str = include_str!("rate_limit.sql");
const LOOK: &str = "SELECT tats, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000 FROM rate_limits \
    WHERE partition = $1";
/// A statement of its own: within one, a plan may look at the rows before it says as of when.
const SAY: &str = "SELECT set_config('loomflow.sweep', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text, \
    true)::bigint";
const OVER: &str =
    "SELECT partition FROM rate_limits WHERE namespace = $1 AND until <= $2 ORDER BY until LIMIT 1000";
const PRUNE: &str = "DELETE FROM rate_limits WHERE partition = ANY($1) AND until <= $2::bigint";

/// After so many decisions of a process, one takes out rows that say nothing any more: up to 1,000 of them.
const SWEEP_EVERY: u64 = 256;

/// Where a [`PostgresRateLimiter`] is, and what it limits. `Debug` does not show the connection string.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PostgresRateLimiterConfig {
    /// The connection string, a secret: `postgres://user:password@host:5432/database`, with the parameters of libpq.
    #[serde(deserialize_with = "loomflow_core::settings::secret")]
    pub url: Arc<Secret<String>>,
    /// The limits. `max_users` means nothing here: the database's disk is the bound.
    #[serde(skip)]
    pub limits: RateLimitConfig,
    /// The schema that holds the tables. `loomflow` by default.
    #[serde(default = "loomflow_support_sql::postgres::defaults::schema")]
    pub schema: String,
    /// The role that the application acts as, whoever connects. `loomflow_app` by default.
    #[serde(default = "loomflow_support_sql::postgres::defaults::app_role")]
    pub app_role: String,
    /// Whether connecting brings the schema up to date. True by default; false refuses a schema that is not.
    #[serde(default = "loomflow_support_sql::postgres::defaults::migrate")]
    pub migrate: bool,
    /// The most connections at once; 8 by default.
    #[serde(default = "max_connections")]
    pub max_connections: usize,
    /// How long to wait for a connection, a free one or a new one; 5 s by default.
    #[serde(
        default = "loomflow_support_sql::postgres::defaults::connect_timeout",
        deserialize_with = "loomflow_core::settings::seconds"
    )]
    pub connect_timeout: Duration,
    /// How long an operation may take; 5 s by default: a run waits for it.
    #[serde(default = "operation_timeout", deserialize_with = "loomflow_core::settings::seconds")]
    pub operation_timeout: Duration,
}

impl PostgresRateLimiterConfig {
    /// These limits in the database of `url`, with the defaults.
    #[must_use]
    pub fn new(url: impl Into<String>, limits: RateLimitConfig) -> Self {
        Self {
            url: Arc::new(Secret::new(url.into())),
            limits,
            schema: defaults::schema(),
            app_role: defaults::app_role(),
            migrate: defaults::migrate(),
            max_connections: max_connections(),
            connect_timeout: defaults::connect_timeout(),
            operation_timeout: operation_timeout(),
        }
    }

    /// Sets the limits.
    #[must_use]
    pub fn with_limits(mut self, limits: RateLimitConfig) -> Self {
        self.limits = limits;
        self
    }

    loomflow_support_sql::postgres_setters!();
}

impl fmt::Debug for PostgresRateLimiterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresRateLimiterConfig")
            .field("limits", &self.limits)
            .field("schema", &self.schema)
            .field("app_role", &self.app_role)
            .field("migrate", &self.migrate)
            .field("max_connections", &self.max_connections)
            .field("connect_timeout", &self.connect_timeout)
            .field("operation_timeout", &self.operation_timeout)
            .finish_non_exhaustive()
    }
}

/// Rate limits that every process on one database shares.
///
/// - A decision is one statement that takes everything or nothing; time is the server's. It locks the user, and all users of
///   the namespace first where a limit of theirs is asked: with such a limit, decisions of a namespace come one after the
///   other.
/// - Row-level security shows a decision its own user's row and the namespace's.
/// - It does not wait for the disk: a server that crashes gives back what was taken in its last moments (at most three times
///   `wal_writer_delay`, 0.6 s by default).
/// - A server that cannot be reached refuses: the error says so, nothing runs.
///   [`StandInRateLimiter`](https://docs.rs/loomflow-local) of `loomflow-local` goes on with a share of the limits instead.
pub struct PostgresRateLimiter {
    rules: RateRules,
    pool: Pool,
    resilience: Resilience,
    decisions: AtomicU64,
}

/// The limits that a statement is about, column by column.
#[derive(Debug, Default)]
struct Columns {
    whole: Vec<bool>,
    place: Vec<i32>,
    capacity: Vec<i64>,
    change: Vec<i64>,
}

impl Columns {
    fn of(limits: impl Iterator<Item = (Entity, Resource, Gcra, i128)>) -> Self {
        let mut columns = Self::default();
        // Capacities are 30 days at most, changes two of them: both are far below the largest number.
        let narrow = |n: i128| i64::try_from(n).unwrap_or(i64::MAX);
        for (entity, resource, limit, change) in limits {
            columns.whole.push(entity == Entity::Global);
            columns.place.push(resource as i32 + 1);
            columns.capacity.push(narrow(limit.capacity().into()));
            columns.change.push(narrow(change));
        }
        columns
    }
}

impl PostgresRateLimiter {
    /// Connects, brings the schema up to date unless the configuration forbids it, and checks that row-level security binds
    /// the application's role.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](loomflow_core::ErrorKind::Config) for limits that make no sense, a wrong connection string, a
    /// schema that is missing, older or newer, or a role or a table that row-level security does not bind;
    /// [`ErrorKind::Unreachable`](loomflow_core::ErrorKind::Unreachable) for a server that is not there.
    pub async fn connect(config: PostgresRateLimiterConfig) -> Result<Self> {
        let rules = config.limits.rules()?;
        let pool = Pool::connect(&config.settings(), &RATE_LIMITS, config.migrate).await?;
        let resilience = Resilience::new(SERVER, config.operation_timeout);
        Ok(Self { rules, pool, resilience, decisions: AtomicU64::new(0) })
    }

    /// Brings the schema up to date and does nothing else.
    ///
    /// # Errors
    ///
    /// As [`PostgresRateLimiter::connect`].
    pub async fn migrate(config: &PostgresRateLimiterConfig) -> Result<()> {
        migrate(&config.settings(), &RATE_LIMITS).await
    }

    /// Judges or corrects some limits in one statement; by how many nanoseconds each is exceeded.
    async fn change(
        &self,
        operation: &'static str,
        repeat: Repeat,
        scope: &Scope,
        columns: &Columns,
    ) -> Result<Vec<i64>> {
        if columns.whole.is_empty() {
            return Ok(Vec::new());
        }
        let takes = operation == "take";
        let partitions = [scope.owner().partition()];
        let several = Several::new(scope.namespace(), &partitions).with_whole(columns.whole.contains(&true));
        let attempt = || async {
            let mut tx = self.pool.begin_several(&several, Access::Write, operation).await?;
            let asked = sqlx::query_scalar(CHANGE)
                .bind(&partitions[0][..])
                .bind(scope.namespace().as_str())
                .bind(&columns.whole)
                .bind(&columns.place)
                .bind(&columns.capacity)
                .bind(&columns.change)
                .bind(takes)
                .fetch_all(tx.conn())
                .await;
            finish(tx, asked, operation).await
        };
        self.resilience.run(operation, repeat, attempt).await
    }

    /// For each of the user's limits that is not whole, in how many nanoseconds it is.
    async fn levels(&self, scope: &Scope, operation: &'static str) -> Result<Vec<(Resource, u64)>> {
        let partitions = [scope.owner().partition()];
        let several = Several::new(scope.namespace(), &partitions);
        let attempt = || async {
            let mut tx = self.pool.begin_several(&several, Access::Read, operation).await?;
            let row = sqlx::query_as(LOOK).bind(&partitions[0][..]).fetch_optional(tx.conn()).await;
            finish(tx, row, operation).await
        };
        let row: Option<(Vec<i64>, i64)> = self.resilience.run(operation, Repeat::Safe, attempt).await?;
        let Some((tats, now)) = row else { return Ok(Vec::new()) };
        let positive = |n: i64| u64::try_from(n).unwrap_or(0);
        let level = |resource: Resource| {
            let limit = self.rules.limits.get(Entity::User, resource)?;
            let tat = tats.get(resource as usize).copied().unwrap_or(0);
            let level = limit.level(positive(tat), positive(now));
            (level > 0).then_some((resource, level))
        };
        Ok(Resource::ALL.into_iter().filter_map(level).collect())
    }

    /// Takes out rows of the namespace whose limits are whole again, up to 1,000 of them.
    async fn sweep(&self, namespace: &Namespace) -> Result<()> {
        let nobody = Several::new(namespace, &[]);
        let mut tx = self.pool.begin_several(&nobody, Access::Write, "sweep").await?;
        let swept = prune(&mut tx, namespace).await;
        finish(tx, swept, "sweep").await
    }
}

async fn prune(tx: &mut Transaction, namespace: &Namespace) -> sqlx::Result<()> {
    // Shown what is over, it may change nothing; named, it may.
    let now: i64 = sqlx::query_scalar(SAY).fetch_one(tx.conn()).await?;
    let rows: Vec<Vec<u8>> =
        sqlx::query_scalar(OVER).bind(namespace.as_str()).bind(now).fetch_all(tx.conn()).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let partitions: Vec<[u8; 32]> = rows.iter().filter_map(|p| p.as_slice().try_into().ok()).collect();
    let again = Several::new(namespace, &partitions).again();
    tx.conn().execute(sqlx::raw_sql(AssertSqlSafe(again))).await?;
    let rows: Vec<&[u8]> = partitions.iter().map(|p| &p[..]).collect();
    // A row that was used since is judged again by its own moment.
    sqlx::query(PRUNE).bind(rows).bind(now).execute(tx.conn()).await.map(drop)
}

/// Commits what went well, and undoes the rest.
async fn finish<T>(tx: Transaction, done: sqlx::Result<T>, operation: &'static str) -> Result<T> {
    match done.map_err(failed(operation)) {
        Ok(done) => tx.commit().await.map(|()| done),
        Err(error) => Err(tx.refuse(error).await),
    }
}

#[async_trait]
impl RateLimiter for PostgresRateLimiter {
    async fn take(&self, scope: &Scope, ask: &Amounts) -> Result<Taken> {
        let limits = &self.rules.limits;
        if let Some(limited) = limits.too_large(ask) {
            return Ok(Taken::Limited(Box::new(limited)));
        }
        let nanos = |limit: Gcra, n: u64| i128::from(n) * limit.interval().as_nanos() as i128;
        let asked =
            limits.asked(ask).map(|(entity, resource, limit, n)| (entity, resource, limit, nanos(limit, n)));
        // Twice is more than was asked for, and never less.
        let over = self.change("take", Repeat::Safe, scope, &Columns::of(asked)).await?;
        if self.decisions.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            // What is not taken out now is taken out next time.
            drop(self.sweep(scope.namespace()).await);
        }
        let refused = limits.asked(ask).zip(over).filter(|(_, over)| *over > 0);
        let longest = refused.max_by_key(|(_, over)| *over);
        Ok(longest.map_or(Taken::Admitted, |((entity, resource, limit, _), over)| {
            let over = u64::try_from(over).unwrap_or(0);
            Taken::Limited(Box::new(RateLimits::limited(entity, resource, limit, Wait::Nanos(over)).1))
        }))
    }

    async fn settle(&self, scope: &Scope, taken: &Amounts, used: &Amounts) -> Result<()> {
        let columns = Columns::of(self.rules.limits.corrections(taken, used));
        // Giving back twice would be giving too much.
        self.change("settle", Repeat::Unsafe, scope, &columns).await.map(drop)
    }

    fn rules(&self) -> &RateRules {
        &self.rules
    }
}

#[async_trait]
impl TenantData for PostgresRateLimiter {
    fn store_name(&self) -> &str {
        STORE
    }

    async fn ready(&self) -> Readiness {
        let answer = self.resilience.run("ready", Repeat::Safe, || self.pool.ping()).await;
        self.resilience.readiness(&answer)
    }

    /// One item of kind `rate_limit` for each limit of the user's that is not whole: after how long it is.
    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let item = |(resource, level): (Resource, u64)| {
            let limit = resource.config_key(Entity::User);
            let data = json!({"limit": limit, "whole_again_in_ms": level.div_ceil(1_000_000)});
            // A row has no name on purpose; what it is filed under is the hash of this very owner.
            Owned::new(scope.owner().clone(), ExportItem::new("rate_limit", data))
        };
        Ok(export_from(self.levels(scope, "export").await?.into_iter().map(item).collect()))
    }

    /// Keeps what is held back: an erasure would be a way to a fresh burst. It is kept without a name, and goes by itself.
    async fn forget(&self, scope: &Scope, _what: &Erase) -> Result<Erased> {
        let line = Erased::new(STORE);
        Ok(if self.levels(scope, "forget").await?.is_empty() {
            line
        } else {
            line.with_retained(
                "when the user's limits are whole again, without the name and under a hash, until that moment: erasing it \
                 would give a fresh burst",
            )
        })
    }
}

impl fmt::Debug for PostgresRateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresRateLimiter({:?}, {:?})", self.rules, self.pool)
    }
}

fn max_connections() -> usize {
    8
}

fn operation_timeout() -> Duration {
    Duration::from_secs(5)
}
