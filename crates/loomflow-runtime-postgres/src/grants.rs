//! Approvals that are remembered: made with a decision, shown, taken back.

use loomflow_core::rules::approvals as rules;
use loomflow_core::{ApprovalGrant, GrantId, Owned, Owner, Result, Scope, Timestamp};
use loomflow_support_sql::postgres::{Access, Transaction, failed};
use sqlx::postgres::PgRow;

use crate::PostgresApprovals;
use crate::requests::settle;
use crate::schema::{self, Key, Read, id_column, json};

const OWN: &str = "
SELECT namespace, user_id, body FROM approvals_grants
WHERE partition = $1 AND tool = $2 AND expires_at > $3 ORDER BY granted_at, id";
const KNOWN: &str = "
SELECT namespace, user_id, body FROM approvals_grants
WHERE (partition = $1 OR deciders @> ARRAY[$1::bytea]) AND expires_at > $2 ORDER BY granted_at, id";
const FIND: &str = "
SELECT partition, namespace, user_id, body FROM approvals_grants
WHERE id = $2 AND (partition = $1 OR deciders @> ARRAY[$1::bytea])";
const DELETE: &str = "DELETE FROM approvals_grants WHERE partition = $1 AND id = $2";

fn shown(rows: &[PgRow]) -> Result<Vec<Owned<ApprovalGrant>>> {
    rows.iter().map(|row| Ok(Owned::new(Read(row).owner()?, Read(row).body("body")?))).collect()
}

impl PostgresApprovals {
    pub(crate) async fn read_remembered(
        &self,
        scope: &Scope,
        tool: &str,
        now: Timestamp,
    ) -> Result<Vec<Owned<ApprovalGrant>>> {
        let mut tx = self.begin(scope, Access::Read, "find grants").await?;
        let rows = sqlx::query(self.reads().sql(OWN))
            .bind(scope.owner().partition())
            .bind(tool)
            .bind(now.as_micros())
            .fetch_all(tx.conn())
            .await
            .map_err(failed("find grants"))?;
        tx.commit().await?;
        shown(&rows)
    }

    pub(crate) async fn read_grants(
        &self,
        scope: &Scope,
        now: Timestamp,
    ) -> Result<Vec<Owned<ApprovalGrant>>> {
        let mut tx = self.begin(scope, Access::Read, "list grants").await?;
        let rows = sqlx::query(self.reads().sql(KNOWN))
            .bind(scope.owner().partition())
            .bind(now.as_micros())
            .fetch_all(tx.conn())
            .await
            .map_err(failed("list grants"))?;
        tx.commit().await?;
        shown(&rows)
    }

    pub(crate) async fn delete_grant(&self, scope: &Scope, id: GrantId) -> Result<Owned<ApprovalGrant>> {
        const OPERATION: &str = "revoke grant";
        let mut tx = self.begin(scope, Access::Foreign, OPERATION).await?;
        let done = async {
            let (mine, id) = (scope.owner().partition(), id_column(id.as_u128()));
            let found = sqlx::query(self.reads().sql(FIND)).bind(mine).bind(&id[..]);
            let found = found.fetch_optional(tx.conn()).await.map_err(failed(OPERATION))?;
            let row = found.ok_or_else(rules::not_found)?;
            let partition: [u8; 32] = Read(&row).get("partition")?;
            if partition == mine {
                schema::check(scope, &Read(&row).owner()?, OPERATION)?;
            }
            let gone = sqlx::query(DELETE).bind(partition).bind(&id[..]).execute(tx.conn()).await;
            let gone = gone.map_err(failed(OPERATION))?.rows_affected() == 1;
            if !gone {
                return Err(rules::not_found());
            }
            Ok(Owned::new(Read(&row).owner()?, Read(&row).body("body")?))
        }
        .await;
        settle(tx, done).await
    }
}

const SWEEP: &str = "DELETE FROM approvals_grants WHERE partition = $1 AND expires_at <= $2";
const COUNT: &str = "SELECT count(*) FROM approvals_grants WHERE partition = $1";
const INSERT: &str = "
INSERT INTO approvals_grants (partition, namespace, user_id, id, decider, tool, asked_at, granted_at, expires_at,
  deciders, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";

/// Stores a grant of the requester's, in a transaction of the requester's partition that nobody else writes meanwhile.
pub(crate) async fn remember(
    tx: &mut Transaction,
    requester: &Owner,
    decider: &Owner,
    grant: &ApprovalGrant,
    most: usize,
) -> Result<()> {
    const OPERATION: &str = "remember approval";
    let (key, now) = (Key::of(requester), grant.granted_at.as_micros());
    let sweep = sqlx::query(SWEEP).bind(key.partition).bind(now);
    sweep.execute(tx.conn()).await.map_err(failed(OPERATION))?;
    let held: i64 = sqlx::query_scalar(COUNT)
        .bind(key.partition)
        .fetch_one(tx.conn())
        .await
        .map_err(failed(OPERATION))?;
    if usize::try_from(held).unwrap_or(usize::MAX) >= most {
        return Err(rules::too_many_grants("this user has", most));
    }
    sqlx::query(INSERT)
        .bind(key.partition)
        .bind(key.namespace)
        .bind(key.user_id)
        .bind(id_column(grant.id.as_u128()))
        .bind(decider.partition())
        .bind(&*grant.tool)
        .bind(grant.requested_at.as_micros())
        .bind(now)
        .bind(grant.expires_at.as_micros())
        .bind(schema::deciders(requester, &grant.approvers))
        .bind(json(grant)?)
        .execute(tx.conn())
        .await
        .map(drop)
        .map_err(failed(OPERATION))
}
