//! Where a scope becomes a key, a row and a filter: nowhere else.

use loomflow_core::rules::approvals::Recorded;
use loomflow_core::{
    Approval, ApprovalRequest, ApprovalState, Epoch, Error, ErrorKind, Identity, Owner, Result, Scope, UserId,
};
use loomflow_support_sql::Migration;
use loomflow_support_sql::sqlite::{Schema, failed};
use serde::de::DeserializeOwned;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Decode, Row as _, SqlStr, Sqlite, Type};

use crate::config::SqliteApprovalsConfig;

/// The name in receipts and messages.
pub(crate) const STORE: &str = "approvals:sqlite";

const MIGRATIONS: &[Migration] =
    &[Migration::new(1, "requests and grants", include_str!("../migrations/0001_approvals.sql"))];

/// The tables of this crate.
pub(crate) const SCHEMA: Schema = Schema::new("approvals", STORE, MIGRATIONS);

/// Who works: the key, the owner that goes into the row, and the epoch that the work was begun in.
#[derive(Clone, Debug)]
pub(crate) struct Author {
    pub(crate) partition: Vec<u8>,
    pub(crate) owner: Owner,
    pub(crate) epoch: Epoch,
}

impl Author {
    pub(crate) fn of(scope: &Scope) -> Self {
        let owner = scope.owner().clone();
        Self { partition: owner.partition().to_vec(), owner, epoch: scope.epoch() }
    }

    /// Refuses a row of another owner, before it is used, written over or erased as the author's.
    pub(crate) fn check(&self, owner: &Owner, operation: &'static str) -> Result<()> {
        if *owner == self.owner {
            return Ok(());
        }
        let message = "the file holds a row in a partition that is not its owner's; it was withheld";
        Err(Error::new(ErrorKind::IsolationViolation, message).with_operation(operation))
    }
}

/// The key of an approver's partition.
pub(crate) fn decider(requester: &Owner, approver: &UserId) -> Vec<u8> {
    let owner = Owner::new(requester.namespace().clone(), Identity::User(approver.clone()));
    owner.partition().to_vec()
}

pub(crate) fn id_column(id: u128) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

/// The filters of every read: the texts of statements have them as `partition = ?1` and `decider = ?1`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filter {
    lost: bool,
}

impl Filter {
    pub(crate) fn of(config: &SqliteApprovalsConfig) -> Self {
        #[cfg(feature = "testing")]
        let lost = config.fault == Some(crate::Fault::NoPartitionFilter);
        #[cfg(not(feature = "testing"))]
        let lost = {
            let _ = config;
            false
        };
        Self { lost }
    }

    /// A statement, with its filters unless a test took them.
    pub(crate) fn sql(self, text: &'static str) -> SqlStr {
        use sqlx::SqlSafeStr as _;
        if !self.lost {
            return text.into_sql_str();
        }
        let anybody = "?1 IS NOT NULL";
        let text = text.replace("r.partition = ?1", anybody).replace("g.partition = ?1", anybody);
        AssertSqlSafe(text.replace("k.decider = ?1", anybody)).into_sql_str()
    }
}

const EPOCH: &str = "SELECT epoch FROM approvals_partitions WHERE partition = ?1";

/// The epoch up to which a partition is erased.
pub(crate) async fn epoch(
    conn: &mut SqliteConnection,
    partition: &[u8],
    operation: &'static str,
) -> Result<Epoch> {
    let stored = sqlx::query_scalar::<_, i64>(EPOCH).bind(partition).fetch_optional(conn).await;
    Ok(Epoch::new(stored.map_err(failed(operation))?.unwrap_or(0).cast_unsigned()))
}

/// Refuses a write that was begun before the partition's last erasure.
pub(crate) async fn enter(
    conn: &mut SqliteConnection,
    author: &Author,
    operation: &'static str,
) -> Result<()> {
    let stored = epoch(conn, &author.partition, operation).await?;
    if stored > author.epoch { Err(Error::erased(operation)) } else { Ok(()) }
}

const WRITE: &str = "INSERT INTO approvals_texts (namespace, user_id, body) VALUES (?1, ?2, ?3)";

/// Appends a text of `owner`; its number.
pub(crate) async fn write(
    conn: &mut SqliteConnection,
    owner: &Owner,
    body: &(impl serde::Serialize + Sync),
    operation: &'static str,
) -> Result<i64> {
    let body = serde_json::to_string(body)
        .map_err(|e| Error::new(ErrorKind::Internal, "a record cannot be written as JSON").with_source(e))?;
    let write = sqlx::query(WRITE)
        .bind(owner.namespace().as_str())
        .bind(owner.user_id().map(UserId::as_str))
        .bind(body);
    Ok(write.execute(conn).await.map_err(failed(operation))?.last_insert_rowid())
}

const BLANK: &str = "UPDATE approvals_texts SET namespace = '', user_id = NULL, body = '' \
                     WHERE content IN (SELECT value FROM json_each(?1))";

/// Overwrites texts where they lie.
pub(crate) async fn blank(
    conn: &mut SqliteConnection,
    contents: &[i64],
    operation: &'static str,
) -> Result<()> {
    let list = serde_json::to_string(contents).unwrap_or_default();
    sqlx::query(BLANK).bind(list).execute(conn).await.map(drop).map_err(failed(operation))
}

const STRAY: &str = "DELETE FROM approvals_deciders WHERE partition = ?1 \
                     AND NOT EXISTS (SELECT 1 FROM approvals_requests AS r \
                       WHERE r.partition = approvals_deciders.partition AND r.id = approvals_deciders.id) \
                     AND NOT EXISTS (SELECT 1 FROM approvals_grants AS g \
                       WHERE g.partition = approvals_deciders.partition AND g.id = approvals_deciders.id)";

/// Takes away who may decide what is not there any more.
pub(crate) async fn drop_stray_deciders(
    conn: &mut SqliteConnection,
    partition: &[u8],
    operation: &'static str,
) -> Result<()> {
    sqlx::query(STRAY).bind(partition).execute(conn).await.map(drop).map_err(failed(operation))
}

/// A cell of a row.
pub(crate) fn cell<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(
    row: &'r SqliteRow,
    name: &'static str,
) -> Result<T> {
    row.try_get(name).map_err(|e| damaged(name).with_source(e))
}

/// Whose a row says it is.
pub(crate) fn owner(row: &SqliteRow) -> Result<Owner> {
    Owner::from_columns(cell(row, "namespace")?, cell(row, "user_id")?)
}

/// A record that was written as JSON.
pub(crate) fn body<T: DeserializeOwned>(row: &SqliteRow, name: &'static str) -> Result<T> {
    serde_json::from_str(cell(row, name)?).map_err(|e| damaged(name).with_source(e))
}

/// A request with what is recorded of it, whatever the time is.
pub(crate) fn approval(row: &SqliteRow) -> Result<Approval> {
    let request: ApprovalRequest = body(row, "body")?;
    let state = match cell::<i64>(row, "state")? {
        0 => ApprovalState::Pending,
        1 => {
            let Recorded { decision, by } = body(row, "decision")?;
            ApprovalState::Decided { decision, by }
        }
        2 => {
            let Recorded { decision, by } = body(row, "decision")?;
            ApprovalState::Consumed { decision, by }
        }
        3 => {
            let Recorded { decision, by } = body(row, "decision")?;
            ApprovalState::Void { decision, by }
        }
        _ => return Err(damaged("state")),
    };
    Ok(Approval::new(request, state))
}

/// An error for a row that this program did not write.
fn damaged(column: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "a stored row cannot be read")
        .with_operation("read")
        .with_context("column", column)
}
