//! Requests: asked, shown, decided, used.

use loomflow_core::rules::approvals::{self as rules, Decider, Recorded};
use loomflow_core::{
    Approval, ApprovalDecision, ApprovalId, ApprovalPage, ApprovalRequest, Digest, Error, ErrorKind, Owned,
    Result, Timestamp, UserId,
};
use loomflow_support_sql::sqlite::failed;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::grants;
use crate::schema::{self, Author, Filter, cell, id_column};

/// The columns and tables of a request, before the `WHERE`.
macro_rules! requests {
    ($where:literal) => {
        concat!(
            "SELECT r.partition, r.id, r.state, r.content, r.decision AS decided, t.namespace, t.user_id, t.body, \
             d.body AS decision FROM approvals_requests AS r CROSS JOIN approvals_texts AS t ON t.content = r.content \
             LEFT JOIN approvals_texts AS d ON d.content = r.decision ",
            $where
        )
    };
}

const OWN: &str = requests!("WHERE r.partition = ?1 AND r.id = ?2");
const KNOWN: &str = requests!(
    "WHERE r.id = ?2 AND (r.partition = ?1 OR EXISTS (SELECT 1 FROM approvals_deciders AS k \
     WHERE k.decider = ?1 AND k.partition = r.partition AND k.id = r.id))"
);
const PENDING: &str = "SELECT r.partition, r.state, t.namespace, t.user_id, t.body, NULL AS decision \
     FROM (SELECT r.partition, r.id FROM approvals_requests AS r WHERE r.partition = ?1 \
       UNION SELECT k.partition, k.id FROM approvals_deciders AS k WHERE k.decider = ?1) AS mine \
     CROSS JOIN approvals_requests AS r ON r.partition = mine.partition AND r.id = mine.id \
     CROSS JOIN approvals_texts AS t ON t.content = r.content \
     WHERE r.state = 0 AND r.expires_at > ?2 AND (r.asked_at, r.id) > (?3, ?4) ORDER BY r.asked_at, r.id LIMIT ?5";

fn shown(row: &SqliteRow, now: Timestamp) -> Result<Owned<Approval>> {
    let Approval { request, state, .. } = schema::approval(row)?;
    let state = rules::state_at(&state, request.expires_at, now);
    Ok(Owned::new(schema::owner(row)?, Approval::new(request, state)))
}

/// One request of the author's own, or one that they may decide.
pub(crate) async fn get(
    conn: &mut SqliteConnection,
    filter: Filter,
    author: &Author,
    id: ApprovalId,
    now: Timestamp,
) -> Result<Owned<Approval>> {
    let row = find(conn, filter, KNOWN, author, id, "get approval").await?;
    shown(&row, now)
}

/// A page of the pending requests of the author's own, and of those that they may decide.
pub(crate) async fn list(
    conn: &mut SqliteConnection,
    filter: Filter,
    author: &Author,
    now: Timestamp,
    page: ApprovalPage,
) -> Result<Vec<Owned<Approval>>> {
    // Nothing is before the empty id of the earliest instant.
    let (asked_at, id) =
        page.place().map_or((i64::MIN, Vec::new()), |(at, id)| (at.as_micros(), id_column(id.as_u128())));
    let rows = sqlx::query(filter.sql(PENDING)).bind(&author.partition[..]).bind(now.as_micros());
    let rows = rows.bind(asked_at).bind(id).bind(i64::try_from(page.limit()).unwrap_or(i64::MAX));
    let rows = rows.fetch_all(conn).await.map_err(failed("list approvals"))?;
    rows.iter().map(|row| shown(row, now)).collect()
}

const HAS_LAPSED: &str = "SELECT EXISTS (SELECT 1 FROM approvals_requests AS r \
     WHERE r.partition = ?1 AND r.state < 2 AND r.expires_at <= ?2)";
const LAPSED: &str = requests!(
    "WHERE r.partition = ?1 AND r.state < 2 AND r.expires_at <= ?2 ORDER BY r.asked_at, r.id LIMIT ?3"
);
const TAKE_OFF: &str = "UPDATE approvals_requests SET state = 3, decision = coalesce(decision, ?3) \
     WHERE partition = ?1 AND id = ?2";

/// Whether a request of the author's own ran out of time, and nobody was told.
pub(crate) async fn has_lapsed(
    conn: &mut SqliteConnection,
    filter: Filter,
    author: &Author,
    now: Timestamp,
) -> Result<bool> {
    let any = sqlx::query_scalar(filter.sql(HAS_LAPSED)).bind(&author.partition[..]).bind(now.as_micros());
    any.fetch_one(conn).await.map_err(failed("look for lapsed approvals"))
}

/// Takes the author's own requests off that ran out of time, oldest first.
pub(crate) async fn take_lapsed(
    conn: &mut SqliteConnection,
    author: &Author,
    now: Timestamp,
) -> Result<Vec<Owned<Approval>>> {
    const OPERATION: &str = "take lapsed approvals";
    let fail = failed(OPERATION);
    let rows = sqlx::query(Filter::default().sql(LAPSED)).bind(&author.partition[..]).bind(now.as_micros());
    let most = i64::try_from(rules::LAPSED_AT_ONCE).unwrap_or(i64::MAX);
    let rows = rows.bind(most).fetch_all(&mut *conn).await.map_err(fail)?;
    let mut lapsed = Vec::with_capacity(rows.len());
    for row in &rows {
        author.check(&schema::owner(row)?, OPERATION)?;
        let found = shown(row, now)?;
        let id: Vec<u8> = cell(row, "id")?;
        let content = match cell::<Option<i64>>(row, "decided")? {
            Some(content) => content,
            None => schema::write(conn, &author.owner, &rules::lapsed(), OPERATION).await?,
        };
        let take = sqlx::query(TAKE_OFF).bind(&author.partition[..]).bind(id).bind(content);
        take.execute(&mut *conn).await.map_err(fail)?;
        lapsed.push(found);
    }
    Ok(lapsed)
}

/// Whether one of the author's own requests is still pending.
pub(crate) async fn is_pending(
    conn: &mut SqliteConnection,
    filter: Filter,
    author: &Author,
    id: ApprovalId,
) -> Result<bool> {
    let row = find(conn, filter, OWN, author, id, "await approval").await?;
    Ok(cell::<i64>(&row, "state")? == 0)
}

async fn find(
    conn: &mut SqliteConnection,
    filter: Filter,
    sql: &'static str,
    author: &Author,
    id: ApprovalId,
    operation: &'static str,
) -> Result<SqliteRow> {
    let row = sqlx::query(filter.sql(sql)).bind(&author.partition[..]).bind(id_column(id.as_u128()));
    row.fetch_optional(conn).await.map_err(failed(operation))?.ok_or_else(rules::not_found)
}

/// One of the author's own requests, for writing.
async fn own(
    conn: &mut SqliteConnection,
    author: &Author,
    id: ApprovalId,
    operation: &'static str,
) -> Result<SqliteRow> {
    let row = find(conn, Filter::default(), OWN, author, id, operation).await?;
    author.check(&schema::owner(&row)?, operation)?;
    Ok(row)
}

const KNOWN_ID: &str = "SELECT EXISTS (SELECT 1 FROM approvals_requests WHERE id = ?1) \
                        OR EXISTS (SELECT 1 FROM approvals_grants WHERE id = ?1)";
const INSERT: &str = "INSERT INTO approvals_requests (partition, id, content, asked_at, expires_at, state) \
                      VALUES (?1, ?2, ?3, ?4, ?5, 0)";
const INSERT_DECIDER: &str =
    "INSERT OR IGNORE INTO approvals_deciders (decider, partition, id) VALUES (?1, ?2, ?3)";

/// Stores a request of the author's.
pub(crate) async fn create(
    conn: &mut SqliteConnection,
    author: &Author,
    request: &ApprovalRequest,
    most: usize,
) -> Result<()> {
    const OPERATION: &str = "create approval";
    let fail = failed(OPERATION);
    schema::enter(conn, author, OPERATION).await?;
    let id = id_column(request.id.as_u128());
    let known: bool = sqlx::query_scalar(KNOWN_ID).bind(&id[..]).fetch_one(&mut *conn).await.map_err(fail)?;
    if known {
        return Err(Error::new(ErrorKind::Conflict, "a request of that id exists already"));
    }
    make_room(conn, author, request.requested_at, most).await?;
    let content = schema::write(conn, &author.owner, request, OPERATION).await?;
    let insert = sqlx::query(INSERT)
        .bind(&author.partition[..])
        .bind(&id[..])
        .bind(content)
        .bind(request.requested_at.as_micros())
        .bind(request.expires_at.as_micros());
    insert.execute(&mut *conn).await.map_err(fail)?;
    for approver in request.approvers.iter() {
        let insert = sqlx::query(INSERT_DECIDER)
            .bind(schema::decider(&author.owner, approver))
            .bind(&author.partition[..])
            .bind(&id[..]);
        insert.execute(&mut *conn).await.map_err(fail)?;
    }
    Ok(())
}

const COUNT: &str = "SELECT count(*) FROM approvals_requests WHERE partition = ?1";
const OVER: &str = "SELECT content, decision FROM approvals_requests \
                    WHERE partition = ?1 AND (state >= 2 OR expires_at <= ?2)";
const DELETE_OVER: &str =
    "DELETE FROM approvals_requests WHERE partition = ?1 AND (state >= 2 OR expires_at <= ?2)";

/// Makes room for one more request out of what is over, all of it at once.
async fn make_room(conn: &mut SqliteConnection, author: &Author, now: Timestamp, most: usize) -> Result<()> {
    const OPERATION: &str = "create approval";
    let fail = failed(OPERATION);
    let mine = &author.partition[..];
    for swept in [false, true] {
        let held: i64 = sqlx::query_scalar(COUNT).bind(mine).fetch_one(&mut *conn).await.map_err(fail)?;
        if usize::try_from(held).unwrap_or(usize::MAX) < most {
            return Ok(());
        }
        if swept {
            break;
        }
        let over = sqlx::query(OVER).bind(mine).bind(now.as_micros());
        let over = contents(&over.fetch_all(&mut *conn).await.map_err(fail)?, "content", "decision")?;
        schema::blank(conn, &over, OPERATION).await?;
        let delete = sqlx::query(DELETE_OVER).bind(mine).bind(now.as_micros());
        delete.execute(&mut *conn).await.map_err(fail)?;
        schema::drop_stray_deciders(conn, mine, OPERATION).await?;
    }
    Err(rules::too_many_requests("this user has", most))
}

/// The numbers of the texts of requests, and of their decisions.
pub(crate) fn contents(rows: &[SqliteRow], text: &'static str, decision: &'static str) -> Result<Vec<i64>> {
    let mut all = Vec::with_capacity(rows.len() * 2);
    for row in rows {
        all.push(cell(row, text)?);
        all.extend(cell::<Option<i64>>(row, decision)?);
    }
    Ok(all)
}

/// Who decides: the author, or the author's handler in somebody's name.
#[derive(Clone, Debug)]
pub(crate) enum By {
    Author,
    Handler(Option<UserId>),
}

const DECIDE: &str =
    "UPDATE approvals_requests SET state = 1, decision = ?3 WHERE partition = ?1 AND id = ?2 AND state = 0";

/// Records a decision, and the grant that it makes.
pub(crate) async fn decide(
    conn: &mut SqliteConnection,
    author: &Author,
    id: ApprovalId,
    by: &By,
    decision: ApprovalDecision,
    (now, most_grants): (Timestamp, usize),
) -> Result<()> {
    const OPERATION: &str = "decide approval";
    let row = match by {
        By::Author => find(conn, Filter::default(), KNOWN, author, id, OPERATION).await?,
        By::Handler(_) => own(conn, author, id, OPERATION).await?,
    };
    let requester =
        Author { partition: cell(&row, "partition")?, owner: schema::owner(&row)?, epoch: author.epoch };
    if requester.partition == author.partition {
        author.check(&requester.owner, OPERATION)?;
        schema::enter(conn, author, OPERATION).await?;
    }
    let decider = match by {
        By::Author => Decider::Person(&author.owner),
        By::Handler(named) => Decider::Handler(named.as_ref()),
    };
    let grant = rules::decide(&schema::approval(&row)?, &requester.owner, decider, &decision, now)?;
    if let Some(grant) = grant {
        grants::remember(conn, &requester, &grant, most_grants).await?;
    }
    let recorded = Recorded { decision, by: decider.user_id().cloned() };
    let content = schema::write(conn, &requester.owner, &recorded, OPERATION).await?;
    let decide =
        sqlx::query(DECIDE).bind(&requester.partition[..]).bind(id_column(id.as_u128())).bind(content);
    let done = decide.execute(conn).await.map_err(failed(OPERATION))?;
    if done.rows_affected() == 1 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Conflict, "the request was decided already"))
}

const CONSUME: &str =
    "UPDATE approvals_requests SET state = 2 WHERE partition = ?1 AND id = ?2 AND state = 1";

/// Takes the decision of one of the author's own requests, once.
pub(crate) async fn consume(
    conn: &mut SqliteConnection,
    author: &Author,
    id: ApprovalId,
    (binding, policy_version): (Digest, u64),
    now: Timestamp,
) -> Result<(ApprovalDecision, Option<UserId>)> {
    const OPERATION: &str = "use approval";
    let row = own(conn, author, id, OPERATION).await?;
    let taken = rules::consume(&schema::approval(&row)?, binding, policy_version, now)?;
    let consume = sqlx::query(CONSUME).bind(&author.partition[..]).bind(id_column(id.as_u128()));
    let done = consume.execute(conn).await.map_err(failed(OPERATION))?;
    if done.rows_affected() == 1 {
        return Ok(taken);
    }
    Err(Error::new(ErrorKind::Conflict, "the approval was used already"))
}

const VOID: &str = "UPDATE approvals_requests SET state = 3 WHERE partition = ?1 AND id = ?2 AND state = 1";

/// Makes one of the author's own requests void that is decided and not used.
pub(crate) async fn void(conn: &mut SqliteConnection, author: &Author, id: ApprovalId) -> Result<bool> {
    const OPERATION: &str = "void approval";
    let row = own(conn, author, id, OPERATION).await?;
    if rules::void(&schema::approval(&row)?.state)?.is_none() {
        return Ok(false);
    }
    let void = sqlx::query(VOID).bind(&author.partition[..]).bind(id_column(id.as_u128()));
    let done = void.execute(conn).await.map_err(failed(OPERATION))?;
    Ok(done.rows_affected() == 1)
}
