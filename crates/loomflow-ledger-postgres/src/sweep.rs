//! What nobody comes back for: leases that ran out, and rows whose time is over.
//!
//! A sweep locks all of the namespace, says as of when it sweeps, and is then shown those rows of all users, and no other.
//! It lists their partitions, says that it sweeps no more, and settles them as any other transaction would. Whoever is locked
//! meanwhile is passed by.
//!
//! A lease ends in the kind of window it was reserved in, although the budget may have another by now.

use std::collections::{BTreeMap, BTreeSet};

use loomflow_core::rules::quota::Cell;
use loomflow_core::{Namespace, Result, Timestamp};
use loomflow_support_sql::postgres::{Access, Several, Transaction, failed};
use sqlx::postgres::PgRow;

use crate::accounts::{ASIDE, Place, Wanted};
use crate::kind::Kind;
use crate::schema::Partition;
use crate::store::Store;

const SAY: &str = "SELECT set_config('loomflow.sweep', $1::bigint::text, true)";

/// Whose leases ran out in the present kind of window, which is what the cap of all together needs: the earliest first, at
/// most 200 users at once.
const DUE: &str = "
SELECT partition, $3 AS period FROM (
  SELECT partition, until FROM ledger_holds WHERE namespace = $1 AND until <= $2 AND open AND period = $3
  ORDER BY until LIMIT 2000
) due GROUP BY partition ORDER BY min(until) LIMIT 200";

/// Whose leases ran out in any kind of window, and who has rows that may go.
const DUE_OR_OVER: &str = "
SELECT partition, period FROM (
  (SELECT partition, period, until FROM ledger_holds WHERE namespace = $1 AND until <= $2 AND open
    ORDER BY until LIMIT 2000)
  UNION ALL (SELECT partition, period, until FROM ledger_holds WHERE namespace = $1 AND until <= $2 AND NOT open
    ORDER BY until LIMIT 2000)
  UNION ALL (SELECT partition, period, until FROM ledger_users WHERE namespace = $1 AND until <= $2 AND open_holds = 0
    ORDER BY until LIMIT 200)
  UNION ALL (SELECT partition, period, until FROM ledger_runs WHERE namespace = $1 AND until <= $2
    ORDER BY until LIMIT 200)
) over WHERE $3::text IS NOT NULL GROUP BY partition, period ORDER BY min(until) LIMIT 200";

/// Sets aside what is due of accounts that cannot be settled, so that no sweep looks at it again. It stays held.
const SET_ASIDE: &str = "
UPDATE ledger_holds SET until = $4 WHERE partition = ANY($1) AND period = $2 AND open AND until <= $3";

/// Takes out what may go. A run's counter stays while a hold of it is open.
const PRUNE: &str = "
WITH holds AS (DELETE FROM ledger_holds WHERE partition = ANY($1) AND until <= $2 AND NOT open),
  runs AS (DELETE FROM ledger_runs WHERE partition = ANY($1) AND until <= $2 AND NOT EXISTS (
    SELECT FROM ledger_holds WHERE ledger_holds.partition = ledger_runs.partition
      AND ledger_holds.period = ledger_runs.period AND ledger_holds.run = ledger_runs.run AND ledger_holds.open))
DELETE FROM ledger_users WHERE partition = ANY($1) AND until <= $2 AND open_holds = 0";

/// How many accounts a sweep lists.
const MOST: usize = 200;

/// What came of a sweep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Swept {
    /// Whether it found anything that it could do something about.
    pub(crate) found: bool,
    /// Whether there may be more.
    pub(crate) more: bool,
}

impl Store {
    /// Settles the holds of the namespace whose lease ran out, those of 200 users at most; `prunes` takes out rows whose time
    /// is over as well, and looks at every kind of window.
    pub(crate) async fn sweep(&self, namespace: &Namespace, prunes: bool) -> Result<Swept> {
        let nobody = Several::new(namespace, &[]).with_whole(true).with_patience(self.patience);
        let question = self.question(true);
        let begun = self.pool.begin_several_asking(&nobody, Access::Exclusive, &question, "sweep").await;
        let (mut tx, answer) = begun?;
        match self.sweep_alone(&mut tx, &answer, namespace, prunes).await {
            Ok(swept) => {
                tx.commit().await?;
                Ok(swept)
            }
            Err(error) => Err(tx.refuse(error).await),
        }
    }

    async fn sweep_alone(
        &self,
        tx: &mut Transaction,
        answer: &PgRow,
        namespace: &Namespace,
        prunes: bool,
    ) -> Result<Swept> {
        let (now, mut total, _) = self.answer(answer, namespace)?;
        let due = self.due(tx, namespace, now, prunes).await?;
        let listed: BTreeSet<Partition> = due.iter().map(|(partition, _)| *partition).collect();
        let listed = Vec::from_iter(listed);
        let free = Several::new(namespace, &listed).again_where_free(tx, "sweep").await?;
        let swept = Swept { found: !free.is_empty(), more: due.len() == MOST && !free.is_empty() };
        let mut kinds: BTreeMap<String, Vec<Partition>> = BTreeMap::new();
        for (partition, period) in due.into_iter().filter(|(partition, _)| free.contains(partition)) {
            kinds.entry(period).or_default().push(partition);
        }
        let place = self.place(namespace, now, "sweep");
        for (period, partitions) in kinds {
            let total = if period == self.period { total.take() } else { None };
            self.settle(tx, &place, &period, &partitions, total).await?;
        }
        if prunes && !free.is_empty() {
            let prune = sqlx::query(PRUNE).bind(&free).bind(now.as_micros());
            prune.execute(tx.conn()).await.map_err(failed("sweep"))?;
        }
        Ok(swept)
    }

    /// Lets the leases of these users run out in one kind of window. `total` is what all have together in the present one.
    async fn settle(
        &self,
        tx: &mut Transaction,
        present: &Place<'_>,
        period: &str,
        partitions: &[Partition],
        total: Option<Cell>,
    ) -> Result<()> {
        let wanted = Wanted::default();
        let kind = if period == self.period {
            Some(Kind::load(tx, present.clone(), partitions, &wanted, total).await?)
        } else {
            self.other_kind(tx, present, period, (partitions, &wanted), true).await?
        };
        let aside = match kind {
            Some(mut kind) => {
                self.note(&kind.accounts);
                let damaged = kind.expire();
                kind.write(tx, false).await?;
                damaged
            }
            None => partitions.to_vec(),
        };
        if aside.is_empty() {
            return Ok(());
        }
        let set = sqlx::query(SET_ASIDE).bind(aside).bind(period).bind(present.now.as_micros()).bind(ASIDE);
        set.execute(tx.conn()).await.map(drop).map_err(failed("sweep"))
    }

    /// Who has something whose time is over, and in which kind of window.
    async fn due(
        &self,
        tx: &mut Transaction,
        namespace: &Namespace,
        now: Timestamp,
        prunes: bool,
    ) -> Result<Vec<(Partition, String)>> {
        sqlx::query(SAY).bind(now.as_micros()).execute(tx.conn()).await.map_err(failed("sweep"))?;
        sqlx::query_as(if prunes { DUE_OR_OVER } else { DUE })
            .bind(namespace.as_str())
            .bind(now.as_micros())
            .bind(&self.period)
            .fetch_all(tx.conn())
            .await
            .map_err(failed("sweep"))
    }
}
