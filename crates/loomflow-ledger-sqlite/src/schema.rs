//! Where a scope becomes a key, a row and a filter: nowhere else.

use std::fmt;

use loomflow_core::{
    Digest, Epoch, Error, ErrorKind, HoldId, Owner, Result, RunId, Scope, Timestamp, UserId, Window,
};
use loomflow_support_sql::sqlite::Schema;
use loomflow_support_sql::{Migration, hex};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Decode, Row as _, SqlStr, Sqlite, Type};

use crate::config::SqliteLedgerConfig;

/// The name in receipts and messages.
pub(crate) const STORE: &str = "ledger:sqlite";

const MIGRATIONS: &[Migration] =
    &[Migration::new(1, "counters and holds", include_str!("../migrations/0001_ledger.sql"))];

/// The tables of this crate.
pub(crate) const SCHEMA: Schema = Schema::new("ledger", STORE, MIGRATIONS);

/// The key of a partition, or of a namespace.
pub(crate) type Key = [u8; 32];

/// Who asks: the key, the key of all users of the namespace together, and what goes into the row beside them.
#[derive(Clone, Debug)]
pub(crate) struct Author {
    pub(crate) partition: Key,
    pub(crate) space: Key,
    pub(crate) owner: Owner,
    pub(crate) epoch: Epoch,
}

impl Author {
    pub(crate) fn of(scope: &Scope) -> Self {
        Self {
            partition: scope.owner().partition(),
            space: *Digest::of(&[b"ledger: all users together", scope.namespace().as_str().as_bytes()])
                .as_bytes(),
            owner: scope.owner().clone(),
            epoch: scope.epoch(),
        }
    }

    /// Refuses a row that names another owner. One that names nobody is found by the hash of this very owner.
    pub(crate) fn check(&self, named: Option<&Owner>, operation: &'static str) -> Result<()> {
        if named.is_none_or(|owner| *owner == self.owner) {
            return Ok(());
        }
        let message = "the file holds a row in a partition that is not its owner's; it was withheld";
        Err(Error::new(ErrorKind::IsolationViolation, message).with_operation(operation))
    }

    pub(crate) fn namespace(&self) -> &str {
        self.owner.namespace().as_str()
    }

    pub(crate) fn user_id(&self) -> Option<&str> {
        self.owner.user_id().map(UserId::as_str)
    }
}

/// The filter of every read: the texts of statements have it as `u.partition = ?1` for users and `h.partition = ?1` for
/// holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filter {
    lost: bool,
}

impl Filter {
    pub(crate) fn of(config: &SqliteLedgerConfig) -> Self {
        #[cfg(feature = "testing")]
        let lost = config.fault == Some(crate::Fault::NoPartitionFilter);
        #[cfg(not(feature = "testing"))]
        let lost = {
            let _ = config;
            false
        };
        Self { lost }
    }

    /// A statement, with its filter unless a test took it.
    pub(crate) fn sql(self, text: &'static str) -> SqlStr {
        use sqlx::SqlSafeStr as _;
        if !self.lost {
            return text.into_sql_str();
        }
        let text =
            text.replace("u.partition = ?1", "?1 IS NOT NULL").replace("h.partition = ?1", "?1 IS NOT NULL");
        AssertSqlSafe(text).into_sql_str()
    }
}

/// Columns by name, with an error that is ours.
pub(crate) trait Columns {
    fn cell<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(&'r self, name: &'static str) -> Result<T>;

    /// So many bytes.
    fn bytes<const N: usize>(&self, name: &'static str) -> Result<[u8; N]> {
        self.cell::<&[u8]>(name)?.try_into().map_err(|_| damaged(name))
    }

    /// Sixteen bytes, if there are any.
    fn id_if_any(&self, name: &'static str) -> Result<Option<u128>> {
        let bytes = self.cell::<Option<&[u8]>>(name)?;
        bytes.map(|b| b.try_into().map(u128::from_be_bytes).map_err(|_| damaged(name))).transpose()
    }

    fn hold_id(&self, name: &'static str) -> Result<HoldId> {
        Ok(HoldId::from_u128(u128::from_be_bytes(self.bytes(name)?)))
    }

    fn run_id(&self, name: &'static str) -> Result<RunId> {
        Ok(RunId::from_u128(u128::from_be_bytes(self.bytes(name)?)))
    }

    fn time(&self, name: &'static str) -> Result<Timestamp> {
        Ok(Timestamp::from_micros(self.cell(name)?))
    }

    /// What is kept as JSON.
    fn json<T: DeserializeOwned>(&self, name: &'static str) -> Result<T> {
        serde_json::from_str(self.cell(name)?).map_err(|_| damaged(name))
    }

    /// Whose the row says it is; nobody's after an erasure.
    fn owner(&self) -> Result<Option<Owner>> {
        let Some(namespace) = self.cell::<Option<&str>>("namespace")? else { return Ok(None) };
        Owner::from_columns(namespace, self.cell("user_id")?).map(Some)
    }
}

impl Columns for SqliteRow {
    fn cell<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(&'r self, name: &'static str) -> Result<T> {
        self.try_get(name).map_err(|_| damaged(name))
    }
}

/// The kind of a window, as part of a key. A rolling window that is no whole number of seconds is told to the microsecond.
pub(crate) fn kind(window: Window) -> String {
    match window {
        Window::Rolling(length) if length.subsec_nanos() > 0 => format!("rolling:{}us", length.as_micros()),
        other => other.to_string(),
    }
}

/// What is the matter with a column.
#[derive(Debug)]
struct Damaged(&'static str);

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the column `{}` holds what this program did not write", self.0)
    }
}

impl std::error::Error for Damaged {}

/// An error for a row that this program did not write, or that was damaged.
pub(crate) fn damaged(column: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "a stored row cannot be read")
        .with_operation("read")
        .with_source(Damaged(column))
}

fn damage(error: &Error) -> Option<&Damaged> {
    use std::error::Error as _;
    error.source().and_then(|source| source.downcast_ref())
}

/// Whether a row could not be read, and not the file.
pub(crate) fn is_damage(error: &Error) -> bool {
    damage(error).is_some()
}

/// Says which row it was, under the hash alone, and what to do. Other errors stay as they are.
pub(crate) fn in_row(table: &'static str, partition: &Key, which: &str) -> impl Fn(Error) -> Error + use<> {
    let (partition, which) = (hex(partition), which.to_owned());
    move |error| {
        let Some(&Damaged(column)) = damage(&error) else { return error };
        let message = if which.is_empty() {
            format!(
                "the counter of all users together cannot be read, and nobody is served without it (table {table}, partition \
                 {partition}, column {column}): restore its row from a backup"
            )
        } else {
            format!(
                "a stored row of this account cannot be read, and nothing is done with the account (table {table}, partition \
                 {partition}, {which}, column {column}): restore the row from a backup"
            )
        };
        Error::new(ErrorKind::Internal, message)
            .with_operation(error.operation())
            .with_source(Damaged(column))
    }
}

/// As it is kept in a column. Numbers beyond `i64` are kept exactly, which a column of numbers could not.
pub(crate) fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::new(ErrorKind::Internal, "a counter could not be written as JSON").with_source(e))
}
