//! Erasure and export.

use loomflow_core::rules::approvals as rules;
use loomflow_core::{
    ApprovalGrant, Erase, Erased, Error, ErrorKind, ExportItem, Owned, Owner, Result, Scope, Timestamp,
};
use loomflow_support_sql::postgres::{Access, Transaction, failed};
use sqlx::postgres::PgRow;

use crate::PostgresApprovals;
use crate::requests::{epoch, settle};
use crate::schema::{self, Read, STORE};

const OPERATION: &str = "forget";

const RAISE: &str = "
INSERT INTO approvals_partitions (partition, epoch) VALUES ($1, $2)
ON CONFLICT (partition) DO UPDATE SET epoch = excluded.epoch";
const OWNERS: &str = "
SELECT DISTINCT namespace, user_id FROM approvals_requests WHERE partition = $1 AND asked_at < $2
UNION SELECT DISTINCT namespace, user_id FROM approvals_grants WHERE partition = $1 AND asked_at < $2";
const DELETE_GRANTS: &str = "DELETE FROM approvals_grants WHERE partition = $1 AND asked_at < $2";
const DELETE_REQUESTS: &str = "DELETE FROM approvals_requests WHERE partition = $1 AND asked_at < $2";
const HELD: &str = "
SELECT EXISTS (SELECT FROM approvals_requests WHERE partition = $1)
  OR EXISTS (SELECT FROM approvals_grants WHERE partition = $1)";

impl PostgresApprovals {
    pub(crate) async fn erase(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let mut tx = self.begin(scope, Access::Exclusive, OPERATION).await?;
        let done = forget(&mut tx, scope, what).await;
        settle(tx, done).await
    }
}

async fn forget(tx: &mut Transaction, scope: &Scope, what: &Erase) -> Result<Erased> {
    let fail = failed(OPERATION);
    let mine = scope.owner().partition();
    if scope.epoch() <= epoch(tx, mine, OPERATION).await? {
        let message = "another erasure has this epoch or a newer one; mint a newer epoch and try again";
        return Err(Error::new(ErrorKind::Conflict, message).with_operation(OPERATION));
    }
    let raise = sqlx::query(RAISE).bind(mine).bind(scope.epoch().get().cast_signed());
    raise.execute(tx.conn()).await.map_err(&fail)?;
    let receipt = Erased::new(STORE);
    if what.session.is_some() {
        let held: bool = sqlx::query_scalar(HELD).bind(mine).fetch_one(tx.conn()).await.map_err(&fail)?;
        let receipt = receipt.with_count("approval", 0).with_count("grant", 0);
        return Ok(if held { receipt.with_retained(rules::NOT_OF_A_SESSION) } else { receipt });
    }
    let before = what.before.map_or(i64::MAX, Timestamp::as_micros);
    let owners = sqlx::query(OWNERS).bind(mine).bind(before).fetch_all(tx.conn()).await.map_err(&fail)?;
    for row in &owners {
        schema::check(scope, &Read(row).owner()?, OPERATION)?;
    }
    let mut counts = [0; 2];
    // Grants first: each is of a request.
    for (count, delete) in counts.iter_mut().zip([DELETE_GRANTS, DELETE_REQUESTS]) {
        let gone = sqlx::query(delete).bind(mine).bind(before).execute(tx.conn()).await.map_err(&fail)?;
        *count = gone.rows_affected();
    }
    let [grants, requests] = counts;
    Ok(receipt.with_count("approval", requests).with_count("grant", grants))
}

/// How many records are read at once.
const PAGE: i64 = 64;

const REQUEST_PAGE: &str = "
SELECT id, namespace, user_id, body, state, decision FROM approvals_requests
WHERE partition = $1 AND id > $2 ORDER BY id LIMIT $3";
const GRANT_PAGE: &str = "
SELECT id, namespace, user_id, body FROM approvals_grants WHERE partition = $1 AND id > $2 ORDER BY id LIMIT $3";

/// Where an export stands. Each page is a transaction of its own: what is erased meanwhile is not exported any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    grants: bool,
    after: Vec<u8>,
    over: bool,
}

impl PostgresApprovals {
    /// The next page, and where the one after it begins; `None` at the end.
    pub(crate) async fn page(
        &self,
        owner: &Owner,
        mut place: Place,
    ) -> Result<Option<(Vec<Owned<ExportItem>>, Place)>> {
        if place.over {
            return Ok(None);
        }
        let mut tx = self.begin_of(owner, Access::Read, "export").await?;
        let rows = sqlx::query(self.reads().sql(if place.grants { GRANT_PAGE } else { REQUEST_PAGE }))
            .bind(owner.partition())
            .bind(&place.after[..])
            .bind(PAGE)
            .fetch_all(tx.conn())
            .await
            .map_err(failed("export"))?;
        tx.commit().await?;
        let items = rows.iter().map(|row| item(row, place.grants)).collect::<Result<Vec<_>>>()?;
        match rows.last() {
            Some(last) if items.len() as i64 == PAGE => place.after = Read(last).get("id")?,
            _ if place.grants => place.over = true,
            _ => place = Place { grants: true, ..Place::default() },
        }
        Ok(Some((items, place)))
    }
}

fn item(row: &PgRow, grant: bool) -> Result<Owned<ExportItem>> {
    let row = Read(row);
    let item = if grant {
        rules::export_grant(&row.body::<ApprovalGrant>("body")?)
    } else {
        let found = row.approval()?;
        rules::export_approval(&found.request, &found.state)
    };
    Ok(Owned::new(row.owner()?, item))
}
