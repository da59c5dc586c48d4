//! The one task that writes: it takes what waits into one transaction, commits, and only then answers.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use loomflow_core::{Error, ErrorKind, Result};
use sqlx::sqlite::SqliteConnection;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::{SqliteFile, failed};

/// How long a cut of the log waits for readers, and how long until it is tried again.
const CUT_WAIT: Duration = Duration::from_millis(200);
const CUT_AGAIN: Duration = Duration::from_secs(1);

/// A write that waits.
pub(super) trait Job: Send {
    /// Whether somebody still waits for it.
    fn is_wanted(&self) -> bool;
    /// Whether what it deletes must leave the log, too.
    fn erases(&self) -> bool;
    /// Does it; whether it is to be kept.
    fn run<'j>(&'j mut self, conn: &'j mut SqliteConnection) -> BoxFuture<'j, bool>;
    /// What it failed with.
    fn failure(&self) -> Option<Failure>;
    /// Answers with its own outcome.
    fn answer(self: Box<Self>);
    /// Answers that the commit failed.
    fn fail(self: Box<Self>, why: &Failure);
}

/// Why a commit failed, for everybody who was in it.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    kind: ErrorKind,
    message: String,
}

impl Failure {
    fn of(error: &Error) -> Self {
        Self { kind: error.kind(), message: error.message().to_owned() }
    }
}

/// See [`Job`].
pub(super) struct Task<T, W> {
    operation: &'static str,
    work: Option<W>,
    erases: bool,
    outcome: Option<Result<T>>,
    answer: oneshot::Sender<Result<T>>,
}

impl<T, W> Task<T, W> {
    pub(super) fn new(
        operation: &'static str,
        work: W,
        erases: bool,
        answer: oneshot::Sender<Result<T>>,
    ) -> Self {
        Self { operation, work: Some(work), erases, outcome: None, answer }
    }
}

impl<T, W> Job for Task<T, W>
where
    T: Send,
    W: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send,
{
    fn is_wanted(&self) -> bool {
        !self.answer.is_closed()
    }

    fn erases(&self) -> bool {
        self.erases
    }

    fn run<'j>(&'j mut self, conn: &'j mut SqliteConnection) -> BoxFuture<'j, bool> {
        Box::pin(async move {
            let work = self.work.take().expect("a job is run once");
            let outcome = AssertUnwindSafe(async { work(conn).await }).catch_unwind().await;
            let panicked =
                |_| Error::new(ErrorKind::Internal, "a write panicked").with_operation(self.operation);
            let outcome = outcome.map_err(panicked).flatten();
            self.outcome.insert(outcome).is_ok()
        })
    }

    fn failure(&self) -> Option<Failure> {
        self.outcome.as_ref()?.as_ref().err().map(Failure::of)
    }

    fn answer(self: Box<Self>) {
        let never =
            || Err(Error::new(ErrorKind::Internal, "a write was not begun").with_operation(self.operation));
        let outcome = self.outcome.unwrap_or_else(never);
        // Whoever left does not hear of it.
        self.answer.send(outcome).ok();
    }

    fn fail(self: Box<Self>, why: &Failure) {
        // A write that failed by itself says so.
        let own = self.outcome.filter(Result::is_err);
        let shared = || Err(Error::new(why.kind, why.message.clone()).with_operation(self.operation));
        self.answer.send(own.unwrap_or_else(shared)).ok();
    }
}

/// See the module.
pub(super) struct Writer {
    file: SqliteFile,
    jobs: mpsc::Receiver<Box<dyn Job>>,
    /// None after a failure that leaves the connection in doubt.
    conn: Option<SqliteConnection>,
    /// When the log is to be cut, if something that was erased may be in it.
    cut_at: Option<Instant>,
}

impl Writer {
    /// A writer whose connection works.
    pub(super) async fn open(file: SqliteFile, jobs: mpsc::Receiver<Box<dyn Job>>) -> Result<Self> {
        let mut writer = Self { file, jobs, conn: None, cut_at: None };
        writer.connection().await?;
        // A process that died between an erasure and its answer left the cut to the next.
        writer.cut().await;
        Ok(writer)
    }

    /// Writes until nobody can send any more, then closes the file.
    pub(super) async fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let next = self.jobs.recv_many(&mut batch, self.file.batch);
            let taken = match self.cut_at {
                Some(at) => timeout_at(at, next).await,
                None => Ok(next.await),
            };
            match taken {
                Ok(0) => break,
                Ok(_) => self.write(std::mem::take(&mut batch)).await,
                Err(_) => {}
            }
            if self.cut_at.is_some_and(|at| at <= Instant::now()) {
                self.cut().await;
            }
        }
        self.close().await;
    }

    async fn write(&mut self, mut batch: Vec<Box<dyn Job>>) {
        batch.retain(|job| job.is_wanted());
        if batch.is_empty() {
            return;
        }
        if let Err(error) = self.commit(&mut batch).await {
            // Closing undoes what was begun.
            self.close().await;
            let why = Failure::of(&error);
            return batch.into_iter().for_each(|job| job.fail(&why));
        }
        let (erasures, others): (Vec<_>, Vec<_>) = batch.into_iter().partition(|job| job.erases());
        others.into_iter().for_each(Job::answer);
        if !erasures.is_empty() {
            self.cut().await;
            erasures.into_iter().for_each(Job::answer);
        }
    }

    /// Does every job in a savepoint of its own, and commits those that did not fail.
    async fn commit(&mut self, batch: &mut [Box<dyn Job>]) -> Result<()> {
        let conn = self.connection().await?;
        run(conn, "BEGIN IMMEDIATE").await?;
        for job in batch {
            run(conn, "SAVEPOINT job").await?;
            if !job.run(conn).await {
                // An error such as a full disk ends the whole transaction, and there is no savepoint left.
                let undone = run(conn, "ROLLBACK TO job").await;
                undone.map_err(|e| match job.failure() {
                    Some(why) => Error::new(why.kind, why.message),
                    None => e,
                })?;
            }
            run(conn, "RELEASE job").await?;
        }
        run(conn, "COMMIT").await
    }

    /// Moves the log into the file and cuts it to nothing, so that old states of rows are gone from the disk.
    async fn cut(&mut self) {
        self.cut_at = Some(Instant::now() + CUT_AGAIN);
        let wait = self.file.writer_wait_millis();
        let Ok(conn) = self.connection().await else { return };
        let done = cut(conn, wait).await;
        if matches!(done, Ok(true)) {
            self.cut_at = None;
        } else if done.is_err() {
            self.close().await;
        }
    }

    async fn connection(&mut self) -> Result<&mut SqliteConnection> {
        if self.conn.is_none() {
            let conn = self.file.writer().connect().await.map_err(failed("connect"));
            self.conn = Some(conn.map_err(|e| e.with_context("file", self.file.path.display()))?);
        }
        Ok(self.conn.as_mut().expect("it was just made"))
    }

    async fn close(&mut self) {
        if let Some(conn) = self.conn.take() {
            conn.close().await.ok();
        }
    }
}

async fn run(conn: &mut SqliteConnection, statement: &'static str) -> Result<()> {
    sqlx::query(statement).execute(conn).await.map(drop).map_err(failed("write"))
}

/// Whether the log could be cut; a reader that is under way can be in its way.
async fn cut(conn: &mut SqliteConnection, wait: u128) -> Result<bool> {
    let fail = failed("erase");
    let busy_timeout = |millis: u128| sqlx::AssertSqlSafe(format!("PRAGMA busy_timeout = {millis}"));
    sqlx::raw_sql(busy_timeout(CUT_WAIT.as_millis())).execute(&mut *conn).await.map_err(fail)?;
    let cut = sqlx::query_scalar::<_, i64>("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *conn).await;
    sqlx::raw_sql(busy_timeout(wait)).execute(&mut *conn).await.map_err(fail)?;
    cut.map(|busy| busy == 0).map_err(fail)
}
