//! Approvals that are remembered: made with a decision, shown, taken back.

use loomflow_core::rules::approvals as rules;
use loomflow_core::{ApprovalGrant, GrantId, Owned, Result, Timestamp};
use loomflow_support_sql::sqlite::failed;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::schema::{self, Author, Filter, cell, id_column};

const OWN: &str = "SELECT t.namespace, t.user_id, t.body FROM approvals_grants AS g \
     CROSS JOIN approvals_texts AS t ON t.content = g.content \
     WHERE g.partition = ?1 AND g.expires_at > ?2 ORDER BY g.granted_at, g.id";
const KNOWN: &str = "SELECT t.namespace, t.user_id, t.body \
     FROM (SELECT g.partition, g.id FROM approvals_grants AS g WHERE g.partition = ?1 \
       UNION SELECT k.partition, k.id FROM approvals_deciders AS k WHERE k.decider = ?1) AS mine \
     CROSS JOIN approvals_grants AS g ON g.partition = mine.partition AND g.id = mine.id \
     CROSS JOIN approvals_texts AS t ON t.content = g.content \
     WHERE g.expires_at > ?2 ORDER BY g.granted_at, g.id";

fn shown(row: &SqliteRow) -> Result<Owned<ApprovalGrant>> {
    Ok(Owned::new(schema::owner(row)?, schema::body(row, "body")?))
}

/// The author's own live grants for a tool. A user has few, so all of them are looked at.
pub(crate) async fn remembered(
    conn: &mut SqliteConnection,
    filter: Filter,
    author: &Author,
    tool: &str,
    now: Timestamp,
) -> Result<Vec<Owned<ApprovalGrant>>> {
    let rows = sqlx::query(filter.sql(OWN)).bind(&author.partition[..]).bind(now.as_micros());
    let rows = rows.fetch_all(conn).await.map_err(failed("find grants"))?;
    let mut grants = Vec::new();
    for row in &rows {
        let grant: ApprovalGrant = schema::body(row, "body")?;
        if *grant.tool == *tool {
            grants.push(Owned::new(schema::owner(row)?, grant));
        }
    }
    Ok(grants)
}

/// The live grants that the author has or may revoke.
pub(crate) async fn known(
    conn: &mut SqliteConnection,
    filter: Filter,
    author: &Author,
    now: Timestamp,
) -> Result<Vec<Owned<ApprovalGrant>>> {
    let rows = sqlx::query(filter.sql(KNOWN)).bind(&author.partition[..]).bind(now.as_micros());
    let rows = rows.fetch_all(conn).await.map_err(failed("list grants"))?;
    rows.iter().map(shown).collect()
}

const OVER: &str = "SELECT content FROM approvals_grants WHERE partition = ?1 AND expires_at <= ?2";
const DELETE_OVER: &str = "DELETE FROM approvals_grants WHERE partition = ?1 AND expires_at <= ?2";
const COUNT: &str = "SELECT count(*) FROM approvals_grants WHERE partition = ?1";
const INSERT: &str = "INSERT INTO approvals_grants (partition, id, content, asked_at, granted_at, expires_at) \
                      VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

/// Stores a grant of the requester's. Those that are over make room, and are taken away in any case.
pub(crate) async fn remember(
    conn: &mut SqliteConnection,
    requester: &Author,
    grant: &ApprovalGrant,
    most: usize,
) -> Result<()> {
    const OPERATION: &str = "remember approval";
    let fail = failed(OPERATION);
    let theirs = &requester.partition[..];
    let now = grant.granted_at.as_micros();
    let over = sqlx::query(OVER).bind(theirs).bind(now).fetch_all(&mut *conn).await.map_err(fail)?;
    let over = over.iter().map(|row| cell(row, "content")).collect::<Result<Vec<i64>>>()?;
    schema::blank(conn, &over, OPERATION).await?;
    sqlx::query(DELETE_OVER).bind(theirs).bind(now).execute(&mut *conn).await.map_err(fail)?;
    let held: i64 = sqlx::query_scalar(COUNT).bind(theirs).fetch_one(&mut *conn).await.map_err(fail)?;
    if usize::try_from(held).unwrap_or(usize::MAX) >= most {
        return Err(rules::too_many_grants("this user has", most));
    }
    let content = schema::write(conn, &requester.owner, grant, OPERATION).await?;
    let insert = sqlx::query(INSERT)
        .bind(theirs)
        .bind(id_column(grant.id.as_u128()))
        .bind(content)
        .bind(grant.requested_at.as_micros())
        .bind(now)
        .bind(grant.expires_at.as_micros());
    insert.execute(conn).await.map(drop).map_err(fail)
}

const FIND: &str = "SELECT g.partition, g.content, t.namespace, t.user_id, t.body FROM approvals_grants AS g \
     CROSS JOIN approvals_texts AS t ON t.content = g.content \
     WHERE g.id = ?2 AND (g.partition = ?1 OR EXISTS (SELECT 1 FROM approvals_deciders AS k \
       WHERE k.decider = ?1 AND k.partition = g.partition AND k.id = g.id))";
const DELETE: &str = "DELETE FROM approvals_grants WHERE partition = ?1 AND id = ?2";

/// Takes a grant back that the author has or might have given.
pub(crate) async fn revoke(
    conn: &mut SqliteConnection,
    author: &Author,
    id: GrantId,
) -> Result<Owned<ApprovalGrant>> {
    const OPERATION: &str = "revoke grant";
    let fail = failed(OPERATION);
    let id = id_column(id.as_u128());
    let found = sqlx::query(FIND).bind(&author.partition[..]).bind(&id[..]).fetch_optional(&mut *conn).await;
    let row = found.map_err(fail)?.ok_or_else(rules::not_found)?;
    let partition: Vec<u8> = cell(&row, "partition")?;
    if partition == author.partition {
        author.check(&schema::owner(&row)?, OPERATION)?;
    }
    let gone = shown(&row)?;
    schema::blank(conn, &[cell(&row, "content")?], OPERATION).await?;
    sqlx::query(DELETE).bind(&partition[..]).bind(&id[..]).execute(&mut *conn).await.map_err(fail)?;
    schema::drop_stray_deciders(conn, &partition, OPERATION).await?;
    Ok(gone)
}
