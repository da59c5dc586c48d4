//! What nobody comes back for: leases that ran out, and rows whose time is over.
//!
//! A sweep locks all of the namespace, says as of when it sweeps, and is then shown those rows of all users, and no other.
//! It lists their partitions, says that it sweeps no more, and settles them as any other transaction would.

use loomflow_core::rules::quota::Cell;
use loomflow_core::{Namespace, Result, Timestamp};
use loomflow_support_sql::postgres::{Access, Several, Transaction, failed};
use sqlx::{AssertSqlSafe, Executor as _};

use crate::accounts::Wanted;
use crate::schema::Partition;
use crate::store::Store;

const SAY: &str = "SELECT set_config('loomflow.sweep', $1::bigint::text, true)";

/// Whose leases ran out, the earliest first: at most 200 users at once.
const DUE: &str = "
SELECT partition FROM (
  SELECT partition, until FROM ledger_holds WHERE namespace = $1 AND until <= $2 AND open AND period = $3
  ORDER BY until LIMIT 2000
) due GROUP BY partition ORDER BY min(until) LIMIT 200";

/// And who has rows that may go.
const DUE_OR_OVER: &str = "
SELECT partition FROM (
  (SELECT partition, until FROM ledger_holds WHERE namespace = $1 AND until <= $2 AND open AND period = $3
    ORDER BY until LIMIT 2000)
  UNION ALL (SELECT partition, until FROM ledger_holds WHERE namespace = $1 AND until <= $2 AND NOT open
    ORDER BY until LIMIT 2000)
  UNION ALL (SELECT partition, until FROM ledger_users WHERE namespace = $1 AND until <= $2 AND open_holds = 0
    ORDER BY until LIMIT 200)
  UNION ALL (SELECT partition, until FROM ledger_runs WHERE namespace = $1 AND until <= $2 ORDER BY until LIMIT 200)
) over GROUP BY partition ORDER BY min(until) LIMIT 200";

/// Takes out what may go. A run's counter stays while a hold of it is open.
const PRUNE: &str = "
WITH holds AS (DELETE FROM ledger_holds WHERE partition = ANY($1) AND until <= $2 AND NOT open),
  runs AS (DELETE FROM ledger_runs WHERE partition = ANY($1) AND until <= $2 AND NOT EXISTS (
    SELECT FROM ledger_holds WHERE ledger_holds.partition = ledger_runs.partition
      AND ledger_holds.period = ledger_runs.period AND ledger_holds.run = ledger_runs.run AND ledger_holds.open))
DELETE FROM ledger_users WHERE partition = ANY($1) AND until <= $2 AND open_holds = 0";

impl Store {
    /// Settles the holds of the namespace whose lease ran out, those of 200 users at most; `prunes` takes out rows whose time
    /// is over as well. Says whether there may be more.
    pub(crate) async fn sweep(&self, namespace: &Namespace, prunes: bool) -> Result<bool> {
        let nobody = Several::new(namespace, &[]).with_whole(true);
        let mut tx = self.pool.begin_several(&nobody, Access::Exclusive, "sweep").await?;
        match self.sweep_alone(&mut tx, namespace, prunes).await {
            Ok(users) => {
                tx.commit().await?;
                Ok(users == 200)
            }
            Err(error) => Err(tx.refuse(error).await),
        }
    }

    async fn sweep_alone(&self, tx: &mut Transaction, namespace: &Namespace, prunes: bool) -> Result<usize> {
        let (now, total, _) = self.now_and_total(tx, namespace).await?;
        let partitions = self.over(tx, namespace, now, prunes).await?;
        let several = Several::new(namespace, &partitions);
        tx.conn().execute(sqlx::raw_sql(AssertSqlSafe(several.again()))).await.map_err(failed("sweep"))?;
        let place = self.place(namespace, now, "sweep");
        let mut accounts = place.load(tx, &partitions, &Wanted::default()).await?;
        let before = total.clone();
        let mut cell = total.unwrap_or_else(|| Cell::new(self.books.periods.number(now)));
        for loaded in accounts.values_mut().filter(|loaded| loaded.check().is_ok()) {
            loaded.account.expire(&self.books, now, &mut cell);
        }
        let changed = before.is_some_and(|before| before != cell);
        place.write(tx, &accounts, changed.then_some(&cell)).await?;
        if prunes && !partitions.is_empty() {
            let prune = sqlx::query(PRUNE).bind(&partitions).bind(now.as_micros());
            prune.execute(tx.conn()).await.map_err(failed("sweep"))?;
        }
        Ok(partitions.len())
    }

    /// Who has something whose time is over.
    async fn over(
        &self,
        tx: &mut Transaction,
        namespace: &Namespace,
        now: Timestamp,
        prunes: bool,
    ) -> Result<Vec<Partition>> {
        sqlx::query(SAY).bind(now.as_micros()).execute(tx.conn()).await.map_err(failed("sweep"))?;
        let partitions = sqlx::query_scalar(if prunes { DUE_OR_OVER } else { DUE })
            .bind(namespace.as_str())
            .bind(now.as_micros())
            .bind(&self.period)
            .fetch_all(tx.conn())
            .await
            .map_err(failed("sweep"))?;
        Ok(partitions)
    }
}
