//! The pool: connections that act as the application's role.
//!
//! It is smaller than the driver's own, and stricter. A transaction that does not end well takes its connection with it,
//! so nothing of it can be left to the next user, wherever a future was dropped. The first statement of a transaction is
//! the test of its connection, so none is made before. And what went wrong while connecting is told at once, and not
//! tried again until the time is over.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use loomflow_core::{Error, ErrorKind, Owner, Result};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::component::Component;
use super::settings::PgSettings;
use super::several::Several;
use super::transaction::{Access, Transaction};
use super::{SERVER, check, failed, migrate};
use crate::store_error;

/// A connection that nobody used for so long is not trusted to be there.
const IDLE: Duration = Duration::from_secs(600);
/// A connection is replaced after this, so that a server's address or settings can change.
const LIFETIME: Duration = Duration::from_secs(1_800);

/// Connections to one database, all of them acting as the application's role. Cloning gives another handle.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    options: PgConnectOptions,
    /// What a new connection is told first.
    prologue: String,
    connect_timeout: Duration,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Pooled>>,
}

/// A connection of the pool, and its right to exist.
pub(super) struct Pooled {
    pub(super) conn: PgConnection,
    made: Instant,
    used: Instant,
}

/// A connection that is in use.
pub(super) struct Lease {
    pub(super) pooled: Pooled,
    pub(super) permit: OwnedSemaphorePermit,
}

impl Pool {
    /// Connects to the database of `component`, brings its schema up to date if `may_migrate`, and checks that row-level
    /// security binds whatever this pool does.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for a wrong connection string, a schema that is missing, older or newer, or a role or table
    /// that row-level security does not bind; [`ErrorKind::Unreachable`] for a server that is not there. The message
    /// says what to do, and never the connection string.
    pub async fn connect(settings: &PgSettings, component: &Component, may_migrate: bool) -> Result<Self> {
        settings.check()?;
        let limit = settings.connect_timeout;
        let mut first = connect(&settings.options()?, limit).await?;
        if within(limit, check::is_behind(&mut first, settings, component, may_migrate)).await? {
            migrate(settings, component).await?;
        }
        let path = within(limit, check::search_path(&mut first, settings, component)).await?;
        drop(first);
        let pool = Self(Arc::new(Inner {
            options: settings.options()?,
            prologue: prologue(settings, &path),
            connect_timeout: limit,
            permits: Arc::new(Semaphore::new(settings.max_connections.clamp(1, 10_000))),
            idle: Mutex::default(),
        }));
        let mut lease = pool.lease("connect").await?;
        within(limit, check::is_bound(&mut lease.pooled.conn, settings, component)).await?;
        pool.give_back(lease);
        Ok(pool)
    }

    /// Begins a transaction that sees and writes the rows of `owner` alone. It takes one round trip.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Overloaded`] when no connection becomes free in time; whatever connecting fails with.
    pub async fn begin(&self, owner: &Owner, access: Access, operation: &'static str) -> Result<Transaction> {
        let begin = access.begin(owner);
        let (lease, _) = self.first_statement(&begin, operation).await?;
        Ok(Transaction::new(self.clone(), lease, operation))
    }

    /// Begins a transaction that sees and writes the rows of several partitions of one namespace. It takes one round trip.
    ///
    /// # Errors
    ///
    /// As [`Pool::begin`].
    pub async fn begin_several(
        &self,
        several: &Several<'_>,
        access: Access,
        operation: &'static str,
    ) -> Result<Transaction> {
        let (lease, _) = self.first_statement(&several.begin(access), operation).await?;
        Ok(Transaction::new(self.clone(), lease, operation))
    }

    /// As [`Pool::begin_several`], and asks `question` in the same round trip, once the locks are granted: a statement that
    /// answers with one row. It travels as text, so nothing in it may come from outside of the program.
    ///
    /// # Errors
    ///
    /// As [`Pool::begin`].
    pub async fn begin_several_asking(
        &self,
        several: &Several<'_>,
        access: Access,
        question: &str,
        operation: &'static str,
    ) -> Result<(Transaction, PgRow)> {
        let begin = format!("{}; {question}", several.begin(access));
        let (lease, mut rows) = self.first_statement(&begin, operation).await?;
        let tx = Transaction::new(self.clone(), lease, operation);
        match rows.pop() {
            Some(answer) => Ok((tx, answer)),
            None => Err(tx.refuse(store_error(sqlx::Error::RowNotFound, SERVER, operation)).await),
        }
    }

    /// Whether the server answers.
    ///
    /// # Errors
    ///
    /// As [`Pool::begin`].
    pub async fn ping(&self) -> Result<()> {
        let (lease, _) = self.first_statement("SELECT 1", "ready").await?;
        self.give_back(lease);
        Ok(())
    }

    /// A connection on which `sql`, which may be repeated, has been done. Connections that turn out to be dead are
    /// dropped, and the next is taken, until one is new. Answers with what `sql` gave, too.
    async fn first_statement(&self, sql: &str, operation: &'static str) -> Result<(Lease, Vec<PgRow>)> {
        let mut permit = Some(self.permit(operation).await?);
        loop {
            let held = permit.take().expect("given back whenever the loop goes on");
            let idle = self.take_idle();
            let is_new = idle.is_none();
            let pooled = match idle {
                Some(pooled) => pooled,
                None => self.open().await?,
            };
            let mut lease = Lease { pooled, permit: held };
            let statement = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
            match lease.pooled.conn.fetch_all(statement).await {
                Ok(rows) => return Ok((lease, rows)),
                Err(error) => {
                    let error = store_error(error, SERVER, operation);
                    let dead = matches!(error.kind(), ErrorKind::Transport | ErrorKind::Unreachable);
                    if is_new || !dead {
                        return Err(error);
                    }
                    permit = Some(lease.permit);
                }
            }
        }
    }

    async fn lease(&self, operation: &'static str) -> Result<Lease> {
        let permit = self.permit(operation).await?;
        Ok(Lease { pooled: self.open().await?, permit })
    }

    async fn permit(&self, operation: &'static str) -> Result<OwnedSemaphorePermit> {
        let permit = timeout(self.0.connect_timeout, self.0.permits.clone().acquire_owned()).await;
        match permit {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(store_error(sqlx::Error::PoolTimedOut, SERVER, operation)),
        }
    }

    async fn open(&self) -> Result<Pooled> {
        let set_up = async {
            let mut conn = self.0.options.connect().await.map_err(unreachable)?;
            let prologue = sqlx::raw_sql(AssertSqlSafe(self.0.prologue.clone()));
            conn.execute(prologue).await.map_err(failed("connect"))?;
            Ok(conn)
        };
        let conn = within(self.0.connect_timeout, set_up).await?;
        let now = Instant::now();
        Ok(Pooled { conn, made: now, used: now })
    }

    /// The connection that was used last, so that those that are not needed grow old.
    fn take_idle(&self) -> Option<Pooled> {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|pooled| pooled.used.elapsed() < IDLE && pooled.made.elapsed() < LIFETIME);
        idle.pop()
    }

    /// Takes back a connection that has no transaction and owes no answer.
    pub(super) fn give_back(&self, lease: Lease) {
        let Lease { mut pooled, permit } = lease;
        pooled.used = Instant::now();
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).push(pooled);
        drop(permit);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} connections free)", self.0.permits.available_permits())
    }
}

/// A connection as the connecting role itself, in the schema: for migrations and maintenance.
///
/// # Errors
///
/// As [`Pool::connect`].
pub async fn connect_as_owner(settings: &PgSettings, component: &Component) -> Result<PgConnection> {
    settings.check()?;
    let mut conn = connect(&settings.options()?, settings.connect_timeout).await?;
    let path = within(settings.connect_timeout, check::search_path(&mut conn, settings, component)).await?;
    let set = format!("SET search_path TO {path}");
    conn.execute(sqlx::raw_sql(AssertSqlSafe(set))).await.map_err(failed("connect"))?;
    Ok(conn)
}

pub(super) async fn connect(options: &PgConnectOptions, limit: Duration) -> Result<PgConnection> {
    within(limit, async { options.connect().await.map_err(unreachable) }).await
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        let message =
            format!("{SERVER} took no connection within {limit:?}; is it up, and are host and port right?");
        Err(Error::new(ErrorKind::Unreachable, message).with_operation("connect"))
    })
}

/// While connecting nothing of an operation was sent, whatever happens to the connection.
fn unreachable(error: sqlx::Error) -> Error {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => {
            let message = format!("{SERVER} cannot be reached; is it up, and are host and port right?");
            Error::new(ErrorKind::Unreachable, message).with_operation("connect").with_source(error)
        }
        other => store_error(other, SERVER, "connect"),
    }
}

/// A server notices a client that went away only when it next writes to it, unless it is told to look: what a dropped
/// future leaves would go on waiting for its lock. Servers on some systems cannot look, and refuse the setting.
const LOOK_FOR_CLIENT: &str = "DO $$ BEGIN SET client_connection_check_interval TO '1s'; \
    EXCEPTION WHEN invalid_parameter_value THEN NULL; END $$";

fn prologue(settings: &PgSettings, search_path: &str) -> String {
    let limit = settings.statement_timeout.as_millis().clamp(1, i32::MAX as u128 / 2);
    format!(
        "SET search_path TO {search_path}; SET statement_timeout TO {limit}; \
         SET idle_in_transaction_session_timeout TO {idle}; SET jit TO off; {LOOK_FOR_CLIENT}; SET ROLE \"{role}\"",
        idle = limit * 2,
        role = settings.role
    )
}
