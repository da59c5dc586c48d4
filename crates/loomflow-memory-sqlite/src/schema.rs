//! Where a scope becomes a key, a row and a filter: nowhere else.

use loomflow_core::rules::{Space, check_embedding, words};
use loomflow_core::{Embedding, Epoch, Error, ErrorKind, Owner, Result, Scope, Timestamp, UserId};
use loomflow_support_sql::Migration;
use loomflow_support_sql::sqlite::{Schema, failed};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Decode, Row as _, SqlStr, Sqlite, Type};

use crate::config::SqliteMemoryConfig;

/// The name in receipts and messages.
pub(crate) const STORE: &str = "memory:sqlite";

const MIGRATIONS: &[Migration] =
    &[Migration::new(1, "episodes, blocks and facts", include_str!("../migrations/0001_memory.sql"))];

/// The tables of this crate.
pub(crate) const SCHEMA: Schema = Schema::new("memory", STORE, MIGRATIONS);

/// The key of a partition.
pub(crate) fn partition(scope: &Scope) -> Vec<u8> {
    scope.owner().partition().to_vec()
}

/// Who writes: the key, the owner that goes into the row, and the epoch that the write was begun in.
#[derive(Clone, Debug)]
pub(crate) struct Author {
    pub(crate) partition: Vec<u8>,
    pub(crate) owner: Owner,
    pub(crate) epoch: Epoch,
}

impl Author {
    pub(crate) fn of(scope: &Scope) -> Self {
        Self { partition: partition(scope), owner: scope.owner().clone(), epoch: scope.epoch() }
    }

    /// Refuses a row of another owner, before it is written over or erased as the author's.
    pub(crate) fn check(&self, row: &SqliteRow, operation: &'static str) -> Result<()> {
        if row.owner(&mut Some(self.owner.clone()))? == self.owner {
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

/// The filter of every read: the texts of statements have it as `k.partition = ?1` for keys and `t.partition = ?1` for
/// texts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filter {
    lost: bool,
}

impl Filter {
    pub(crate) fn of(config: &SqliteMemoryConfig) -> Self {
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
            text.replace("k.partition = ?1", "?1 IS NOT NULL").replace("t.partition = ?1", "?1 IS NOT NULL");
        AssertSqlSafe(text).into_sql_str()
    }
}

/// What a write finds of its partition.
#[derive(Debug)]
pub(crate) struct Entered {
    pub(crate) space: Option<Space>,
    /// Whether the episode that was asked about is held.
    pub(crate) known: bool,
}

const ENTER: &str = "SELECT p.epoch, p.model, p.dimensions, \
                     EXISTS (SELECT 1 FROM memory_episodes WHERE partition = ?1 AND id = ?2) AS known \
                     FROM (SELECT ?1 AS partition) AS mine LEFT JOIN memory_partitions AS p ON p.partition = mine.partition";

/// Begins a write: refuses it when the partition was erased since its scope was minted.
pub(crate) async fn enter(
    conn: &mut SqliteConnection,
    author: &Author,
    episode: &[u8],
    operation: &'static str,
) -> Result<Entered> {
    let row = sqlx::query(ENTER)
        .bind(&author.partition[..])
        .bind(episode)
        .fetch_one(conn)
        .await
        .map_err(failed(operation))?;
    let epoch = row.cell::<Option<i64>>("epoch")?.unwrap_or(0);
    if Epoch::new(epoch.cast_unsigned()) > author.epoch {
        return Err(Error::erased(operation));
    }
    Ok(Entered { space: space_of(&row)?, known: row.cell("known")? })
}

/// Whether a vector fits into the partition that was entered.
pub(crate) fn check_vector(
    entered: &Entered,
    vector: Option<&Embedding>,
    operation: &'static str,
) -> Result<()> {
    check_embedding(vector, operation)?;
    Space::check(entered.space.as_ref(), vector, operation)
}

const SET_SPACE: &str = "INSERT INTO memory_partitions (partition, epoch, model, dimensions) VALUES (?1, 0, ?2, ?3) \
                         ON CONFLICT (partition) DO UPDATE SET model = excluded.model, dimensions = excluded.dimensions";

/// Makes the first vector's space the partition's.
pub(crate) async fn settle_space(
    conn: &mut SqliteConnection,
    author: &Author,
    entered: &Entered,
    vector: Option<&Embedding>,
    operation: &'static str,
) -> Result<()> {
    let (None, Some(first)) = (&entered.space, vector) else { return Ok(()) };
    let dimensions = i64::try_from(first.vector.len()).unwrap_or(i64::MAX);
    let set = sqlx::query(SET_SPACE).bind(&author.partition[..]).bind(&*first.model).bind(dimensions);
    set.execute(conn).await.map(drop).map_err(failed(operation))
}

const STATE: &str = "SELECT epoch, model, dimensions FROM memory_partitions WHERE partition = ?1";

/// The partition's epoch and the space of its vectors.
pub(crate) async fn state(
    conn: &mut SqliteConnection,
    partition: &[u8],
    operation: &'static str,
) -> Result<(Epoch, Option<Space>)> {
    let row = sqlx::query(STATE).bind(partition).fetch_optional(conn).await.map_err(failed(operation))?;
    let Some(row) = row else { return Ok((Epoch::ZERO, None)) };
    Ok((Epoch::new(row.cell::<i64>("epoch")?.cast_unsigned()), space_of(&row)?))
}

fn space_of(row: &SqliteRow) -> Result<Option<Space>> {
    let (model, dimensions) = (row.cell::<Option<&str>>("model")?, row.cell::<Option<i64>>("dimensions")?);
    Ok(model.zip(dimensions).map(|(model, dimensions)| Space {
        model: model.into(),
        dimensions: usize::try_from(dimensions).unwrap_or(usize::MAX),
    }))
}

/// A session as keys have it: a number. The text beside the content decides.
pub(crate) fn session_key(session: &str) -> i64 {
    words::pair("session", session).cast_signed()
}

/// A subject and predicate as keys have them: a number. The texts beside the content decide.
pub(crate) fn topic_key(subject: &str, predicate: &str) -> i64 {
    words::pair(subject, predicate).cast_signed()
}

/// Columns by name, with an error that is ours.
pub(crate) trait Columns {
    fn cell<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(&'r self, name: &'static str) -> Result<T>;

    /// An id of sixteen bytes.
    fn id(&self, name: &'static str) -> Result<u128> {
        Ok(u128::from_be_bytes(self.cell::<&[u8]>(name)?.try_into().map_err(|_| damaged(name))?))
    }

    fn time(&self, name: &'static str) -> Result<Timestamp> {
        Ok(Timestamp::from_micros(self.cell(name)?))
    }

    fn time_if_any(&self, name: &'static str) -> Result<Option<Timestamp>> {
        Ok(self.cell::<Option<i64>>(name)?.map(Timestamp::from_micros))
    }

    /// Whose the row says it is. Rows of one owner share one allocation through `last`.
    fn owner(&self, last: &mut Option<Owner>) -> Result<Owner> {
        let (namespace, user) = (self.cell::<&str>("namespace")?, self.cell::<Option<&str>>("user_id")?);
        let same =
            |o: &&Owner| o.namespace().as_str() == namespace && o.user_id().map(UserId::as_str) == user;
        if let Some(owner) = last.as_ref().filter(same) {
            return Ok(owner.clone());
        }
        Ok(last.insert(Owner::from_columns(namespace, user)?).clone())
    }
}

impl Columns for SqliteRow {
    fn cell<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(&'r self, name: &'static str) -> Result<T> {
        self.try_get(name).map_err(|e| damaged(name).with_source(e))
    }
}

/// An error for a row that this program did not write.
pub(crate) fn damaged(column: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "a stored row cannot be read")
        .with_operation("read")
        .with_context("column", column)
}

/// A count as a column, or as the limit of a statement.
pub(crate) fn number(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Numbers of contents as a list that `json_each` reads.
pub(crate) fn list(contents: impl IntoIterator<Item = i64>) -> String {
    let mut json = String::from("[");
    for content in contents {
        if json.len() > 1 {
            json.push(',');
        }
        json.push_str(&content.to_string());
    }
    json.push(']');
    json
}
