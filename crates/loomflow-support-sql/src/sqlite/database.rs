//! An open file: writes through the writer, reads beside it.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use loomflow_core::{Error, ErrorKind, Result};
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqlitePoolOptions};
use sqlx::{Sqlite, Transaction};
use tokio::sync::{mpsc, oneshot};

use super::migrate::{Schema, check, migrate};
use super::writer::{After, Job, Task, Writer};
use super::{SqliteFile, failed};

/// A database file that is open: one writer, and readers that see what is committed.
///
/// - Several processes may have one file open. Each has its own writer, and they take turns.
/// - Cloning gives another handle. When the last one is dropped the writer does what waits and closes the file.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    readers: SqlitePool,
    jobs: mpsc::Sender<Box<dyn Job>>,
}

impl Database {
    /// Creates or updates the schema, and nothing else.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for a file that cannot be opened or created, that is of another program, or whose schema is
    /// newer than this program; the last two are left untouched.
    pub async fn migrate(file: &SqliteFile, schema: &Schema) -> Result<()> {
        within(file, migrate(file, schema)).await
    }

    /// Opens the file. `bring_up` creates and updates its schema; without it, a file that is missing, older or newer is
    /// refused.
    ///
    /// # Errors
    ///
    /// As [`Database::migrate`].
    pub async fn open(file: SqliteFile, schema: &Schema, bring_up: bool) -> Result<Self> {
        within(&file, async {
            if bring_up {
                migrate(&file, schema).await?
            } else {
                check(&file, schema).await?
            }
            let readers = SqlitePoolOptions::new()
                .max_connections(file.max_readers.max(1))
                .acquire_timeout(file.operation_timeout)
                .test_before_acquire(false)
                .max_lifetime(None)
                .connect_lazy_with(file.reader());
            let (jobs, queue) = mpsc::channel(file.queue.max(1));
            let writer = Writer::open(file.clone(), queue).await?;
            tokio::spawn(writer.run());
            Ok(Self { inner: Arc::new(Inner { readers, jobs }) })
        })
        .await
    }

    /// A transaction that sees one state of the file, and cannot write. It ends when it is dropped; one that is kept
    /// open keeps the log beside the file from being cut short.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Overloaded`] when no connection becomes free in time.
    pub async fn read(&self, operation: &'static str) -> Result<Transaction<'static, Sqlite>> {
        self.inner.readers.begin().await.map_err(failed(operation))
    }

    /// Does `work` as one write: whole or not at all, and on the disk when this returns.
    ///
    /// - Writes that wait together are committed together, each in a savepoint: one that fails undoes itself alone.
    /// - `work` awaits nothing but the connection, begins no transaction, and gives back every error of the database.
    /// - Dropping the future before `work` begins takes it out of the queue; afterwards it is done all the same.
    ///
    /// # Errors
    ///
    /// That of `work`. When the commit fails, every write of it fails and none was done: [`ErrorKind::Capacity`] for a
    /// full disk, [`ErrorKind::Overloaded`] when another process held the lock for too long. Where one write ended the
    /// transaction of all, as one does that is too large for the file, it alone fails with that; the others fail with
    /// [`ErrorKind::Overloaded`] and may be tried again.
    pub async fn write<T, W>(&self, operation: &'static str, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        self.submit(operation, work, After::Nothing).await
    }

    /// As [`Database::write`], for an erasure: when this returns, what was erased is no longer in the log beside the
    /// file either, unless a reader still looks at it; then the writer goes on trying.
    ///
    /// # Errors
    ///
    /// As [`Database::write`].
    pub async fn erase<T, W>(&self, operation: &'static str, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        self.submit(operation, work, After::Cut).await
    }

    /// As [`Database::erase`], and gives what is free in the file back to the disk: after `work` the file is written
    /// anew (`VACUUM`), which holds up every other write, takes memory as large as what is left, and needs room beside
    /// the file for as much.
    ///
    /// # Errors
    ///
    /// As [`Database::write`]. When writing anew fails, what `work` did is done all the same, and the file is as large
    /// as before.
    pub async fn compact<T, W>(&self, operation: &'static str, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        self.submit(operation, work, After::Vacuum).await
    }

    async fn submit<T, W>(&self, operation: &'static str, work: W, after: After) -> Result<T>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let (answer, outcome) = oneshot::channel();
        let gone = |_| Error::new(ErrorKind::Internal, "the writer has ended").with_operation(operation);
        let task = Box::new(Task::new(operation, work, after, answer));
        self.inner.jobs.send(task).await.map_err(|_| gone(()))?;
        outcome.await.map_err(|_| gone(()))?
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({} readers)", self.inner.readers.size())
    }
}

async fn within<T>(file: &SqliteFile, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let late = |_| {
        let message = format!("the file could not be opened within {:?}", file.connect_timeout);
        Error::new(ErrorKind::Timeout, message)
            .with_operation("connect")
            .with_context("file", file.path.display())
    };
    tokio::time::timeout(file.connect_timeout, work).await.map_err(late)?
}
