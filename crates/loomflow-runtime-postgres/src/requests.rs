//! Requests: asked, shown, decided, used.

use loomflow_core::rules::approvals::{self as rules, Decider, Recorded};
use loomflow_core::{
    Approval, ApprovalDecision, ApprovalId, ApprovalPage, ApprovalRequest, Digest, Epoch, Error, ErrorKind,
    Owned, Result, Scope, Timestamp, UserId,
};
use loomflow_support_sql::postgres::{Access, Transaction, failed};
use sqlx::postgres::PgRow;

use crate::PostgresApprovals;
use crate::grants;
use crate::schema::{self, Key, Read, id_column, json};

/// The columns of a request, before the `WHERE`.
macro_rules! requests {
    ($where:literal) => {
        concat!(
            "SELECT partition, namespace, user_id, body, state, decision FROM approvals_requests WHERE ",
            $where
        )
    };
}

const OWN: &str = requests!("partition = $1 AND id = $2");
const KNOWN: &str = requests!("id = $2 AND (partition = $1 OR deciders @> ARRAY[$1::bytea])");
const PENDING: &str = requests!(
    "(partition = $1 OR deciders @> ARRAY[$1::bytea]) AND state = 0 AND expires_at > $2 \
     AND (asked_at, id) > ($3, $4) ORDER BY asked_at, id LIMIT $5"
);

/// Of several that look at once, one gets each: the others do not wait for its row.
const LAPSED: &str = requests!(
    "partition = $1 AND state < 2 AND expires_at <= $2 ORDER BY asked_at, id LIMIT $3 FOR UPDATE SKIP LOCKED"
);
const TAKE_OFF: &str = "UPDATE approvals_requests SET state = 3, decision = coalesce(decision, $3), \
                        decider = coalesce(decider, $1) WHERE partition = $1 AND id = $2";

/// Who decides: the scope's user, or their handler in somebody's name.
#[derive(Clone, Debug)]
pub(crate) enum By {
    User,
    Handler(Option<UserId>),
}

impl PostgresApprovals {
    pub(crate) async fn read_one(
        &self,
        scope: &Scope,
        id: ApprovalId,
        now: Timestamp,
    ) -> Result<Owned<Approval>> {
        let mut tx = self.begin(scope, Access::Read, "get approval").await?;
        let row = self.find(&mut tx, KNOWN, scope, id, "get approval").await?;
        tx.commit().await?;
        Read(&row.ok_or_else(rules::not_found)?).shown(now)
    }

    pub(crate) async fn read_pending(
        &self,
        scope: &Scope,
        now: Timestamp,
        page: ApprovalPage,
    ) -> Result<Vec<Owned<Approval>>> {
        // Nothing is before the empty id of the earliest instant.
        let (asked_at, id) =
            page.place().map_or((i64::MIN, Vec::new()), |(at, id)| (at.as_micros(), id_column(id.as_u128())));
        let mut tx = self.begin(scope, Access::Read, "list approvals").await?;
        let rows = sqlx::query(self.reads().sql(PENDING))
            .bind(scope.owner().partition())
            .bind(now.as_micros())
            .bind(asked_at)
            .bind(id)
            .bind(i64::try_from(page.limit()).unwrap_or(i64::MAX))
            .fetch_all(tx.conn())
            .await
            .map_err(failed("list approvals"))?;
        tx.commit().await?;
        rows.iter().map(|row| Read(row).shown(now)).collect()
    }

    /// Takes the scope's own requests off that ran out of time, oldest first.
    pub(crate) async fn take_lapsed(
        &self,
        scope: &Scope,
        now: Timestamp,
    ) -> Result<Vec<(ApprovalId, Owned<Approval>)>> {
        const OPERATION: &str = "take lapsed approvals";
        let mut tx = self.begin(scope, Access::Write, OPERATION).await?;
        let done = async {
            let rows = sqlx::query(self.reads().sql(LAPSED))
                .bind(scope.owner().partition())
                .bind(now.as_micros())
                .bind(i64::try_from(rules::LAPSED_AT_ONCE).unwrap_or(i64::MAX))
                .fetch_all(tx.conn())
                .await
                .map_err(failed(OPERATION))?;
            let mut lapsed = Vec::with_capacity(rows.len());
            for row in &rows {
                schema::check(scope, &Read(row).owner()?, OPERATION)?;
                let id = Read(row).approval()?.request.id;
                let take = sqlx::query(TAKE_OFF)
                    .bind(scope.owner().partition())
                    .bind(id_column(id.as_u128()))
                    .bind(json(&rules::lapsed())?);
                take.execute(tx.conn()).await.map_err(failed(OPERATION))?;
                lapsed.push((id, Read(row).shown(now)?));
            }
            Ok(lapsed)
        }
        .await;
        settle(tx, done).await
    }

    /// Whether one of the scope's own requests is still pending.
    pub(crate) async fn is_pending(&self, scope: &Scope, id: ApprovalId) -> Result<bool> {
        let mut tx = self.begin(scope, Access::Read, "await approval").await?;
        let row = self.find(&mut tx, OWN, scope, id, "await approval").await?;
        tx.commit().await?;
        Ok(Read(&row.ok_or_else(rules::not_found)?).get::<i16>("state")? == 0)
    }

    async fn find(
        &self,
        tx: &mut Transaction,
        sql: &'static str,
        scope: &Scope,
        id: ApprovalId,
        operation: &'static str,
    ) -> Result<Option<PgRow>> {
        let row =
            sqlx::query(self.reads().sql(sql)).bind(scope.owner().partition()).bind(id_column(id.as_u128()));
        row.fetch_optional(tx.conn()).await.map_err(failed(operation))
    }

    pub(crate) async fn write_request(&self, scope: &Scope, request: &ApprovalRequest) -> Result<()> {
        let mut tx = self.begin(scope, Access::Exclusive, "create approval").await?;
        let done = create(&mut tx, scope, request, self.most_requests()).await;
        settle(tx, done).await
    }

    pub(crate) async fn write_decision(
        &self,
        scope: &Scope,
        id: ApprovalId,
        by: &By,
        decision: &ApprovalDecision,
        now: Timestamp,
    ) -> Result<()> {
        let mut tx = self.begin(scope, Access::Foreign, "decide approval").await?;
        let done = self.decide(&mut tx, scope, id, by, decision, now).await;
        settle(tx, done).await
    }

    /// Row-level security lets an approver take the request from pending to decided in their own name. Where that makes a
    /// grant, the transaction then goes on as the requester, whose grants only the requester's session can count.
    async fn decide(
        &self,
        tx: &mut Transaction,
        scope: &Scope,
        id: ApprovalId,
        by: &By,
        decision: &ApprovalDecision,
        now: Timestamp,
    ) -> Result<()> {
        const OPERATION: &str = "decide approval";
        let sql = if matches!(by, By::User) { KNOWN } else { OWN };
        let row = self.find(tx, sql, scope, id, OPERATION).await?.ok_or_else(rules::not_found)?;
        let (partition, requester) = (Read(&row).get::<[u8; 32]>("partition")?, Read(&row).owner()?);
        if partition == scope.owner().partition() {
            schema::check(scope, &requester, OPERATION)?;
        }
        let decider = match by {
            By::User => Decider::Person(scope.owner()),
            By::Handler(named) => Decider::Handler(named.as_ref()),
        };
        let grant = rules::decide(&Read(&row).approval()?, &requester, decider, decision, now)?;
        if grant.is_some() || partition == scope.owner().partition() {
            // Before the row is written: an erasure that has the lock waits for nobody's row.
            tx.lock(&requester).await?;
        }
        if partition == scope.owner().partition() {
            scope.check_epoch(epoch(tx, partition, OPERATION).await?, OPERATION)?;
        }
        let recorded = Recorded { decision: decision.clone(), by: decider.user_id().cloned() };
        let decided = sqlx::query(DECIDE)
            .bind(partition)
            .bind(id_column(id.as_u128()))
            .bind(json(&recorded)?)
            .bind(scope.owner().partition())
            .execute(tx.conn())
            .await
            .map_err(failed(OPERATION))?;
        if decided.rows_affected() != 1 {
            return Err(Error::new(ErrorKind::Conflict, "the request was decided already"));
        }
        let Some(grant) = grant else { return Ok(()) };
        tx.go_on_as(&requester).await?;
        grants::remember(tx, &requester, scope.owner(), &grant, self.most_grants()).await
    }

    pub(crate) async fn write_consumed(
        &self,
        scope: &Scope,
        id: ApprovalId,
        (binding, policy_version): (Digest, u64),
        now: Timestamp,
    ) -> Result<(ApprovalDecision, Option<UserId>)> {
        const OPERATION: &str = "use approval";
        let mut tx = self.begin(scope, Access::Write, OPERATION).await?;
        let done = async {
            let row = self.find(&mut tx, OWN, scope, id, OPERATION).await?.ok_or_else(rules::not_found)?;
            schema::check(scope, &Read(&row).owner()?, OPERATION)?;
            let taken = rules::consume(&Read(&row).approval()?, binding, policy_version, now)?;
            let consume = sqlx::query(CONSUME).bind(scope.owner().partition()).bind(id_column(id.as_u128()));
            let done = consume.execute(tx.conn()).await.map_err(failed(OPERATION))?;
            if done.rows_affected() == 1 {
                return Ok(taken);
            }
            Err(Error::new(ErrorKind::Conflict, "the approval was used already"))
        }
        .await;
        settle(tx, done).await
    }

    pub(crate) async fn write_void(&self, scope: &Scope, id: ApprovalId) -> Result<bool> {
        const OPERATION: &str = "void approval";
        let mut tx = self.begin(scope, Access::Write, OPERATION).await?;
        let done = async {
            let row = self.find(&mut tx, OWN, scope, id, OPERATION).await?.ok_or_else(rules::not_found)?;
            schema::check(scope, &Read(&row).owner()?, OPERATION)?;
            if rules::void(&Read(&row).approval()?.state)?.is_none() {
                return Ok(false);
            }
            let void = sqlx::query(VOID).bind(scope.owner().partition()).bind(id_column(id.as_u128()));
            let done = void.execute(tx.conn()).await.map_err(failed(OPERATION))?;
            Ok(done.rows_affected() == 1)
        }
        .await;
        settle(tx, done).await
    }
}

/// Decided and not used, whatever the time is.
const VOID: &str = "UPDATE approvals_requests SET state = 3 WHERE partition = $1 AND id = $2 AND state = 1";

/// Of decisions at once, the row's lock lets one through, and the others find it decided.
const DECIDE: &str = "UPDATE approvals_requests SET state = 1, decision = $3, decider = $4 \
                      WHERE partition = $1 AND id = $2 AND state = 0";
const CONSUME: &str =
    "UPDATE approvals_requests SET state = 2 WHERE partition = $1 AND id = $2 AND state = 1";

/// Commits what went well, and undoes the rest.
pub(crate) async fn settle<T: Send>(tx: Transaction, done: Result<T>) -> Result<T> {
    match done {
        Ok(value) => {
            tx.commit().await?;
            Ok(value)
        }
        Err(why) => Err(tx.refuse(why).await),
    }
}

/// The epoch up to which a partition is erased.
pub(crate) async fn epoch(
    tx: &mut Transaction,
    partition: [u8; 32],
    operation: &'static str,
) -> Result<Epoch> {
    let stored = sqlx::query_scalar::<_, i64>("SELECT epoch FROM approvals_partitions WHERE partition = $1")
        .bind(partition)
        .fetch_optional(tx.conn())
        .await
        .map_err(failed(operation))?;
    Ok(Epoch::new(stored.unwrap_or(0).unsigned_abs()))
}

const INSERT: &str = "
INSERT INTO approvals_requests (partition, namespace, user_id, id, asked_at, expires_at, deciders, body)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";

async fn create(tx: &mut Transaction, scope: &Scope, request: &ApprovalRequest, most: usize) -> Result<()> {
    const OPERATION: &str = "create approval";
    let key = Key::of(scope.owner());
    scope.check_epoch(epoch(tx, key.partition, OPERATION).await?, OPERATION)?;
    make_room(tx, key.partition, request.requested_at, most).await?;
    let inserted = sqlx::query(INSERT)
        .bind(key.partition)
        .bind(key.namespace)
        .bind(key.user_id)
        .bind(id_column(request.id.as_u128()))
        .bind(request.requested_at.as_micros())
        .bind(request.expires_at.as_micros())
        .bind(schema::deciders(scope.owner(), &request.approvers))
        .bind(json(request)?)
        .execute(tx.conn())
        .await
        .map_err(failed(OPERATION))?;
    if inserted.rows_affected() == 1 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Conflict, "a request of that id exists already"))
}

/// Those that were used or are over stay while there is a grant on them, and do not count.
const COUNT: &str = "
SELECT count(*) FROM approvals_requests r WHERE partition = $1 AND NOT ((state >= 2 OR expires_at <= $2)
  AND EXISTS (SELECT FROM approvals_grants g WHERE g.partition = r.partition AND g.id = r.id))";
const SWEEP_GRANTS: &str = "DELETE FROM approvals_grants WHERE partition = $1 AND expires_at <= $2";
const SWEEP: &str = "
DELETE FROM approvals_requests r WHERE partition = $1 AND (state >= 2 OR expires_at <= $2)
  AND NOT EXISTS (SELECT FROM approvals_grants g WHERE g.partition = r.partition AND g.id = r.id)";

/// Makes room for one more request out of what is over, all of it at once.
async fn make_room(tx: &mut Transaction, partition: [u8; 32], now: Timestamp, most: usize) -> Result<()> {
    const OPERATION: &str = "create approval";
    for swept in [false, true] {
        let held: i64 = sqlx::query_scalar(COUNT)
            .bind(partition)
            .bind(now.as_micros())
            .fetch_one(tx.conn())
            .await
            .map_err(failed(OPERATION))?;
        if usize::try_from(held).unwrap_or(usize::MAX) < most {
            return Ok(());
        }
        if swept {
            break;
        }
        for sweep in [SWEEP_GRANTS, SWEEP] {
            let sweep = sqlx::query(sweep).bind(partition).bind(now.as_micros());
            sweep.execute(tx.conn()).await.map_err(failed(OPERATION))?;
        }
    }
    Err(rules::too_many_requests("this user has", most))
}
