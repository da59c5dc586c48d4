//! Which file, and how its connections are made.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteSynchronous};

/// When a commit is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Durability {
    /// After the disk has it: it survives the loss of power.
    #[default]
    Full,
    /// After the operating system has it: it survives the death of the process, and not the loss of power. The file is
    /// whole in any case.
    Normal,
}

/// A database file and the bounds of its use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SqliteFile {
    /// Where it is. Its folder must exist; beside it lie `-wal` and `-shm` while it is open.
    pub path: PathBuf,
    /// How long opening may take. 10 seconds by default.
    pub connect_timeout: Duration,
    /// How long an operation may wait for a connection or for another process's lock. 5 seconds by default.
    pub operation_timeout: Duration,
    /// The most reads at once. 4 by default.
    pub max_readers: u32,
    /// When a commit is acknowledged.
    pub durability: Durability,
    /// The most bytes that the database may take; what needs more fails with
    /// [`Capacity`](loomflow_core::ErrorKind::Capacity). No bound but the disk's by default.
    pub max_bytes: Option<u64>,
    /// How many writes may wait; one more waits for room. 1,024 by default.
    pub queue: usize,
    /// The most writes that one commit takes. 256 by default.
    pub batch: usize,
}

const PAGE: u64 = 4_096;

impl SqliteFile {
    /// The file at `path`, with the default bounds.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            connect_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(5),
            max_readers: 4,
            durability: Durability::default(),
            max_bytes: None,
            queue: 1_024,
            batch: 256,
        }
    }

    /// Sets how long opening may take.
    #[must_use]
    pub fn with_connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Sets how long an operation may wait.
    #[must_use]
    pub fn with_operation_timeout(mut self, limit: Duration) -> Self {
        self.operation_timeout = limit;
        self
    }

    /// Sets the most reads at once; less than 1 counts as 1.
    #[must_use]
    pub fn with_max_readers(mut self, readers: u32) -> Self {
        self.max_readers = readers.max(1);
        self
    }

    /// Sets when a commit is acknowledged.
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets the most bytes that the database may take.
    #[must_use]
    pub fn with_max_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.max_bytes = bytes.into();
        self
    }

    /// Sets how many writes may wait; less than 1 counts as 1.
    #[must_use]
    pub fn with_queue(mut self, writes: usize) -> Self {
        self.queue = writes.max(1);
        self
    }

    /// Sets the most writes that one commit takes; less than 1 counts as 1.
    #[must_use]
    pub fn with_batch(mut self, writes: usize) -> Self {
        self.batch = writes.max(1);
        self
    }

    /// A connection that changes nothing of a file it finds, not even its journal mode.
    pub(super) fn plain(&self, create: bool) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(create)
            .busy_timeout(self.lock_wait())
            .disable_statement_logging()
    }

    /// The connection of the writer. What it deletes is overwritten, and nothing goes to a temporary file.
    pub(super) fn writer(&self) -> SqliteConnectOptions {
        let synchronous = match self.durability {
            Durability::Full => SqliteSynchronous::Full,
            Durability::Normal => SqliteSynchronous::Normal,
        };
        let options = self
            .plain(false)
            .synchronous(synchronous)
            .pragma("secure_delete", "ON")
            .pragma("temp_store", "MEMORY")
            .pragma("cache_size", "-16384");
        match self.max_bytes {
            Some(bytes) => options.pragma("max_page_count", (bytes / PAGE).max(1).to_string()),
            None => options,
        }
    }

    /// The connection of a reader: SQLite itself refuses it every write.
    pub(super) fn reader(&self) -> SqliteConnectOptions {
        self.plain(false).pragma("query_only", "ON").pragma("temp_store", "MEMORY").row_buffer_size(256)
    }

    /// How long a lock of another process is waited for: shorter than the operation, so that the caller hears of the
    /// lock and not merely of lost time.
    pub(super) fn lock_wait(&self) -> Duration {
        self.operation_timeout.mul_f64(0.75)
    }
}
