//! A transaction that row-level security binds to one partition.

use std::fmt;

use loomflow_core::{Error, Owner, Result};
use sqlx::Executor as _;
use sqlx::postgres::PgConnection;

use super::failed;
use super::pool::{Lease, Pool};

/// What a transaction does, and what it keeps others from doing to the partition meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "it reads, writes beside others, or writes alone")]
pub enum Access {
    /// Reads, all of it from one snapshot.
    Read,
    /// Writes what does not depend on other rows: others may do so at once, and nobody erases meanwhile.
    Write,
    /// Reads and writes what depends on it: nobody else writes this partition meanwhile, in any process.
    Exclusive,
    /// Writes rows of other partitions, as far as a [`Policy`](super::Policy) lets it, and keeps nobody from anything.
    Foreign,
}

impl Access {
    /// Begins, names the partition and takes the lock, in one round trip.
    ///
    /// The lock is an advisory one, taken before the first snapshot that a statement of the caller sees: it touches no
    /// row, so those who only share it do not write to the same page. Each statement that follows has a snapshot of its
    /// own, whatever the server's default is.
    pub(super) fn begin(self, owner: &Owner) -> String {
        let partition = hex(owner);
        let (mode, lock) = match self {
            Self::Read => ("REPEATABLE READ READ ONLY", None),
            Self::Write => ("READ COMMITTED READ WRITE", Some("pg_advisory_xact_lock_shared")),
            Self::Exclusive => ("READ COMMITTED READ WRITE", Some("pg_advisory_xact_lock")),
            Self::Foreign => ("READ COMMITTED READ WRITE", None),
        };
        let lock = lock.map_or_else(String::new, |f| format!("; SELECT {f}({})", lock_key(owner)));
        format!(
            "BEGIN ISOLATION LEVEL {mode}; SELECT set_config('loomflow.partition', '{partition}', true){lock}"
        )
    }
}

/// The partition, to stand in a statement. Not a parameter: several statements travel at once only as text. It is hex and
/// nothing else.
fn hex(owner: &Owner) -> String {
    let partition = owner.partition_hex();
    assert!(partition.len() == 64 && partition.bytes().all(|b| b.is_ascii_hexdigit()));
    partition
}

/// The key of a partition's lock. Two partitions that shared one would wait for each other and do nothing worse.
fn lock_key(owner: &Owner) -> i64 {
    let partition = owner.partition();
    let (first, _) = partition.split_first_chunk::<8>().expect("a partition has 32 bytes");
    i64::from_be_bytes(*first)
}

/// A transaction of one partition. Dropped before [`Transaction::commit`], it never happened: its connection is closed,
/// and the server rolls back.
pub struct Transaction {
    pool: Pool,
    lease: Option<Lease>,
    operation: &'static str,
}

impl Transaction {
    pub(super) fn new(pool: Pool, lease: Lease, operation: &'static str) -> Self {
        Self { pool, lease: Some(lease), operation }
    }

    /// The connection, to run statements on.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.lease.as_mut().expect("taken only by what consumes the transaction").pooled.conn
    }

    /// Keeps everybody else from writing the partition of `owner` until the end, as [`Access::Exclusive`] does for one's own.
    /// It shows nothing of that partition. Taken before the first row is written, it stands in nobody's way for ever.
    ///
    /// # Errors
    ///
    /// Whatever waiting for the lock fails with.
    pub async fn lock(&mut self, owner: &Owner) -> Result<()> {
        let sql = format!("SELECT pg_advisory_xact_lock({})", lock_key(owner));
        self.run(sql).await
    }

    /// Goes on in the partition of `owner`: from now on row-level security binds the transaction to that one. For what
    /// follows from a row of theirs that a [`Policy`](super::Policy) let this transaction write.
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub async fn go_on_as(&mut self, owner: &Owner) -> Result<()> {
        let sql = format!("SELECT set_config('loomflow.partition', '{}', true)", hex(owner));
        self.run(sql).await
    }

    async fn run(&mut self, sql: String) -> Result<()> {
        let operation = self.operation;
        let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        self.conn().execute(sql).await.map(drop).map_err(failed(operation))
    }

    /// Makes it happen.
    ///
    /// # Errors
    ///
    /// When the connection is lost meanwhile, it is not known whether it happened.
    pub async fn commit(self) -> Result<()> {
        self.end("COMMIT").await
    }

    /// Undoes it and keeps the connection.
    pub async fn undo(self) {
        // What was not undone here is undone when the connection closes.
        drop(self.end("ROLLBACK").await);
    }

    /// Undoes it for a reason of the caller's, keeps the connection, and hands the reason on.
    pub async fn refuse(self, why: Error) -> Error {
        self.undo().await;
        why
    }

    async fn end(mut self, statement: &'static str) -> Result<()> {
        // Held here, so that a future that is dropped takes the connection with it.
        let mut lease = self.lease.take().expect("taken only by what consumes the transaction");
        lease.pooled.conn.execute(sqlx::raw_sql(statement)).await.map_err(failed(self.operation))?;
        self.pool.give_back(lease);
        Ok(())
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transaction({})", self.operation)
    }
}

#[cfg(test)]
mod tests {
    use loomflow_core::{Identity, Namespace, UserId};

    use super::*;

    #[test]
    fn hostile_names_never_reach_the_statement() {
        let user = UserId::new("'); DROP TABLE x; --").unwrap();
        let owner = Owner::new(Namespace::new("n").unwrap(), Identity::User(user));
        for access in [Access::Read, Access::Write, Access::Exclusive, Access::Foreign] {
            let sql = access.begin(&owner);
            assert!(!sql.contains("DROP") && sql.contains(&owner.partition_hex()), "{sql}");
        }
    }
}
