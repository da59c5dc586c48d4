//! Erasure and export: keys are deleted, texts are blanked where they lie, and the epoch is raised in the same transaction.

use loomflow_core::rules::approvals as rules;
use loomflow_core::{ApprovalGrant, Erase, Erased, Error, ErrorKind, ExportItem, Owned, Result, Timestamp};
use loomflow_support_sql::sqlite::failed;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::requests;
use crate::schema::{self, Author, Filter, STORE, cell};

const OPERATION: &str = "forget";

const RAISE: &str = "INSERT INTO approvals_partitions (partition, epoch) VALUES (?1, ?2) \
                     ON CONFLICT (partition) DO UPDATE SET epoch = excluded.epoch";
const REQUESTS: &str = "SELECT r.content, r.decision, t.namespace, t.user_id FROM approvals_requests AS r \
     CROSS JOIN approvals_texts AS t ON t.content = r.content WHERE r.partition = ?1 AND r.asked_at < ?2";
const GRANTS: &str = "SELECT g.content, NULL AS decision, t.namespace, t.user_id FROM approvals_grants AS g \
     CROSS JOIN approvals_texts AS t ON t.content = g.content WHERE g.partition = ?1 AND g.asked_at < ?2";
const DELETE_REQUESTS: &str = "DELETE FROM approvals_requests WHERE partition = ?1 AND asked_at < ?2";
const DELETE_GRANTS: &str = "DELETE FROM approvals_grants WHERE partition = ?1 AND asked_at < ?2";
const HELD: &str = "SELECT EXISTS (SELECT 1 FROM approvals_requests WHERE partition = ?1) \
                    OR EXISTS (SELECT 1 FROM approvals_grants WHERE partition = ?1)";

/// Erases `what`, and raises the epoch to the author's.
pub(crate) async fn forget(conn: &mut SqliteConnection, author: &Author, what: &Erase) -> Result<Erased> {
    let fail = failed(OPERATION);
    let mine = &author.partition[..];
    if author.epoch <= schema::epoch(conn, mine, OPERATION).await? {
        let message = "another erasure has this epoch or a newer one; mint a newer epoch and try again";
        return Err(Error::new(ErrorKind::Conflict, message).with_operation(OPERATION));
    }
    let raise = sqlx::query(RAISE).bind(mine).bind(author.epoch.get().cast_signed());
    raise.execute(&mut *conn).await.map_err(fail)?;
    let receipt = Erased::new(STORE);
    if what.session.is_some() {
        let held: bool = sqlx::query_scalar(HELD).bind(mine).fetch_one(&mut *conn).await.map_err(fail)?;
        let receipt = receipt.with_count("approval", 0).with_count("grant", 0);
        return Ok(if held { receipt.with_retained(rules::NOT_OF_A_SESSION) } else { receipt });
    }
    let before = what.before.map_or(i64::MAX, Timestamp::as_micros);
    let requests = take(conn, author, (REQUESTS, DELETE_REQUESTS), before).await?;
    let grants = take(conn, author, (GRANTS, DELETE_GRANTS), before).await?;
    schema::drop_stray_deciders(conn, mine, OPERATION).await?;
    Ok(receipt.with_count("approval", requests).with_count("grant", grants))
}

async fn take(
    conn: &mut SqliteConnection,
    author: &Author,
    (find, delete): (&'static str, &'static str),
    before: i64,
) -> Result<u64> {
    let fail = failed(OPERATION);
    let mine = &author.partition[..];
    let rows = sqlx::query(find).bind(mine).bind(before).fetch_all(&mut *conn).await.map_err(fail)?;
    for row in &rows {
        author.check(&schema::owner(row)?, OPERATION)?;
    }
    schema::blank(conn, &requests::contents(&rows, "content", "decision")?, OPERATION).await?;
    sqlx::query(delete).bind(mine).bind(before).execute(conn).await.map_err(fail)?;
    Ok(rows.len() as u64)
}

/// How many records are read at once.
const PAGE: i64 = 64;

const REQUEST_PAGE: &str = "SELECT r.id, r.state, t.namespace, t.user_id, t.body, d.body AS decision \
     FROM approvals_requests AS r CROSS JOIN approvals_texts AS t ON t.content = r.content \
     LEFT JOIN approvals_texts AS d ON d.content = r.decision \
     WHERE r.partition = ?1 AND r.id > ?2 ORDER BY r.id LIMIT ?3";
const GRANT_PAGE: &str = "SELECT g.id, t.namespace, t.user_id, t.body FROM approvals_grants AS g \
     CROSS JOIN approvals_texts AS t ON t.content = g.content \
     WHERE g.partition = ?1 AND g.id > ?2 ORDER BY g.id LIMIT ?3";

/// Where an export stands. Each page is a read of its own: what is erased meanwhile is not exported any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    grants: bool,
    after: Vec<u8>,
    over: bool,
}

/// The next page, and where the one after it begins; `None` at the end.
pub(crate) async fn page(
    conn: &mut SqliteConnection,
    filter: Filter,
    author: &Author,
    mut place: Place,
) -> Result<Option<(Vec<Owned<ExportItem>>, Place)>> {
    if place.over {
        return Ok(None);
    }
    let sql = if place.grants { GRANT_PAGE } else { REQUEST_PAGE };
    let rows = sqlx::query(filter.sql(sql)).bind(&author.partition[..]).bind(&place.after[..]).bind(PAGE);
    let rows = rows.fetch_all(conn).await.map_err(failed("export"))?;
    let item = |row: &SqliteRow| {
        let item = if place.grants {
            rules::export_grant(&schema::body::<ApprovalGrant>(row, "body")?)
        } else {
            let found = schema::approval(row)?;
            rules::export_approval(&found.request, &found.state)
        };
        Ok(Owned::new(schema::owner(row)?, item))
    };
    let items = rows.iter().map(item).collect::<Result<Vec<_>>>()?;
    match rows.last() {
        Some(last) if items.len() as i64 == PAGE => place.after = cell(last, "id")?,
        _ if place.grants => place.over = true,
        _ => place = Place { grants: true, ..Place::default() },
    }
    Ok(Some((items, place)))
}
