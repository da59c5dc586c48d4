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

/// How long SQLite itself waits for the lock of another process, each time that it is asked for.
const LOOK: Duration = Duration::from_millis(3);
/// How long a cut of the log waits for readers, and how long until it is tried again.
const CUT_WAIT: Duration = Duration::from_millis(200);
const CUT_AGAIN: Duration = Duration::from_secs(1);

/// What follows the commit of a write, before its caller is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    Nothing,
    /// The log is cut: what the write deleted must leave it, too.
    Cut,
    /// The file is written anew without its free pages, and the log is cut.
    Vacuum,
}

/// A write that waits.
pub(super) trait Job: Send {
    /// Whether somebody still waits for it.
    fn is_wanted(&self) -> bool;
    fn after(&self) -> After;
    /// Does it; whether it is to be kept.
    fn run<'j>(&'j mut self, conn: &'j mut SqliteConnection) -> BoxFuture<'j, bool>;
    /// Answers with its own outcome.
    fn answer(self: Box<Self>);
    /// Answers with its own error, or with `why` if it has none.
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

    /// For those whose transaction was ended by somebody else's write. What that write failed with is its own affair: it
    /// may be too large, or another tenant's.
    fn of_another() -> Self {
        let message =
            "another write of the same group failed; nothing was written, and it may be tried again";
        Self { kind: ErrorKind::Overloaded, message: message.to_owned() }
    }
}

/// See [`Job`].
pub(super) struct Task<T, W> {
    operation: &'static str,
    work: Option<W>,
    after: After,
    outcome: Option<Result<T>>,
    answer: oneshot::Sender<Result<T>>,
}

impl<T, W> Task<T, W> {
    pub(super) fn new(
        operation: &'static str,
        work: W,
        after: After,
        answer: oneshot::Sender<Result<T>>,
    ) -> Self {
        Self { operation, work: Some(work), after, outcome: None, answer }
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

    fn after(&self) -> After {
        self.after
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
                Ok(_) => {
                    self.gather(&mut batch).await;
                    self.write(std::mem::take(&mut batch)).await;
                }
                Err(_) => {}
            }
            if self.cut_at.is_some_and(|at| at <= Instant::now()) {
                self.cut().await;
            }
        }
        self.close().await;
    }

    /// Lets those who were just answered bring their next write into this commit, while more keep coming.
    async fn gather(&mut self, batch: &mut Vec<Box<dyn Job>>) {
        let mut before = 0;
        while before < batch.len() && batch.len() < self.file.batch {
            before = batch.len();
            tokio::task::yield_now().await;
            while batch.len() < self.file.batch
                && let Ok(job) = self.jobs.try_recv()
            {
                batch.push(job);
            }
        }
    }

    async fn write(&mut self, mut batch: Vec<Box<dyn Job>>) {
        batch.retain(|job| job.is_wanted());
        if batch.is_empty() {
            return;
        }
        if let Err(why) = self.commit(&mut batch).await {
            // Closing undoes what was begun.
            self.close().await;
            return batch.into_iter().for_each(|job| job.fail(&why));
        }
        let (ending, others): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|job| job.after() != After::Nothing);
        others.into_iter().for_each(Job::answer);
        if ending.is_empty() {
            return;
        }
        let compacts = ending.iter().any(|job| job.after() == After::Vacuum);
        let vacuumed = if compacts { self.vacuum().await } else { Ok(()) };
        self.cut().await;
        for job in ending {
            match &vacuumed {
                Err(error) if job.after() == After::Vacuum => job.fail(&Failure::of(error)),
                _ => job.answer(),
            }
        }
    }

    /// Does every job in a savepoint of its own, and commits those that did not fail.
    async fn commit(&mut self, batch: &mut [Box<dyn Job>]) -> std::result::Result<(), Failure> {
        let patience = self.file.lock_wait();
        let conn = self.connection().await.map_err(|e| Failure::of(&e))?;
        begin(conn, patience).await.map_err(|e| Failure::of(&e))?;
        for job in batch {
            run(conn, "SAVEPOINT job").await.map_err(|e| Failure::of(&e))?;
            if !job.run(conn).await {
                // An error such as a full disk ends the whole transaction, and there is no savepoint left.
                run(conn, "ROLLBACK TO job").await.map_err(|_| Failure::of_another())?;
            }
            run(conn, "RELEASE job").await.map_err(|e| Failure::of(&e))?;
        }
        run(conn, "COMMIT").await.map_err(|e| Failure::of(&e))
    }

    async fn vacuum(&mut self) -> Result<()> {
        let patience = self.file.lock_wait();
        let conn = self.connection().await?;
        set_busy_timeout(conn, patience).await?;
        let vacuumed = sqlx::raw_sql("VACUUM").execute(&mut *conn).await.map(drop).map_err(failed("compact"));
        let done = vacuumed.and(set_busy_timeout(conn, LOOK).await);
        if done.is_err() {
            self.close().await;
        }
        done
    }

    /// Moves the log into the file and cuts it to nothing, so that old states of rows are gone from the disk.
    async fn cut(&mut self) {
        self.cut_at = Some(Instant::now() + CUT_AGAIN);
        let Ok(conn) = self.connection().await else { return };
        let done = cut(conn).await;
        if matches!(done, Ok(true)) {
            self.cut_at = None;
        } else if done.is_err() {
            self.close().await;
        }
    }

    async fn connection(&mut self) -> Result<&mut SqliteConnection> {
        if self.conn.is_none() {
            let conn = self.file.writer().connect().await.map_err(failed("connect"));
            let mut conn = conn.map_err(|e| e.with_context("file", self.file.path.display()))?;
            set_busy_timeout(&mut conn, LOOK).await?;
            self.conn = Some(conn);
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

/// Takes the lock of the file, which another process may hold. SQLite's own waiting comes to look every 100 ms only, and
/// never finds it free while somebody writes without a pause.
async fn begin(conn: &mut SqliteConnection, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match run(conn, "BEGIN IMMEDIATE").await {
            Err(busy) if busy.kind() == ErrorKind::Overloaded && Instant::now() < deadline => {
                let pause = Duration::from_micros(rand::random_range(100..2_000));
                tokio::time::sleep(pause).await;
            }
            done => return done,
        }
    }
}

async fn set_busy_timeout(conn: &mut SqliteConnection, wait: Duration) -> Result<()> {
    let statement = sqlx::AssertSqlSafe(format!("PRAGMA busy_timeout = {}", wait.as_millis()));
    sqlx::raw_sql(statement).execute(conn).await.map(drop).map_err(failed("connect"))
}

/// Whether the log could be cut; a reader that is under way can be in its way.
async fn cut(conn: &mut SqliteConnection) -> Result<bool> {
    set_busy_timeout(conn, CUT_WAIT).await?;
    let cut = sqlx::query_scalar::<_, i64>("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *conn).await;
    set_busy_timeout(conn, LOOK).await?;
    cut.map(|busy| busy == 0).map_err(failed("erase"))
}
