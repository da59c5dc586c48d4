//! What changed in the accounts of a transaction, written column by column in one round trip.

use loomflow_core::rules::quota::{Cell, HoldRecord, HoldState};
use loomflow_core::{Error, ErrorKind, HoldId, Owner, Result};
use loomflow_support_sql::postgres::{Transaction, failed};
use serde::Serialize;

use crate::accounts::{Accounts, ESTIMATES, Loaded, Place};
use crate::schema::{Partition, id_column, user_column};

/// What changed, in one round trip. It answers with the transaction's id, by which its outcome can be asked for.
const WRITE: &str = "
WITH totals AS (
  INSERT INTO ledger_totals (namespace, period, cell) SELECT $1, $2, unnest($3::text[])
  ON CONFLICT (namespace, period) DO UPDATE SET cell = excluded.cell
), users AS (
  INSERT INTO ledger_users (namespace, period, partition, user_id, named, epoch, open_holds, cell, until)
  SELECT $1, $2, * FROM unnest($4::bytea[], $5::text[], $6::boolean[], $7::bigint[], $8::bigint[], $9::text[], $10::bigint[])
  ON CONFLICT (partition, period) DO UPDATE SET user_id = excluded.user_id, named = excluded.named,
    open_holds = excluded.open_holds, cell = excluded.cell, until = excluded.until
), ended AS (
  DELETE FROM ledger_holds USING unnest($11::bytea[], $12::bytea[]) AS keys(of_partition, of_id) CROSS JOIN LATERAL (
    SELECT ctid AS place FROM ledger_holds WHERE partition = of_partition AND period = $2 AND id = of_id LIMIT 1
  ) found
  WHERE ledger_holds.ctid = found.place
), holds AS (
  INSERT INTO ledger_holds (namespace, period, partition, user_id, named, id, run, seq, made, open, state, charged, terms,
    granted, expires, number, global, life, until)
  SELECT $1, $2, * FROM unnest($13::bytea[], $14::text[], $15::boolean[], $16::bytea[], $17::bytea[], $18::bigint[],
    $19::bigint[], $20::boolean[], $21::text[], $22::boolean[], $23::bytea[], $24::text[], $25::bigint[], $26::bigint[],
    $27::boolean[], $28::bytea[], $29::bigint[])
  ON CONFLICT (partition, period, id) DO UPDATE SET open = excluded.open, state = excluded.state,
    charged = excluded.charged, expires = excluded.expires, number = excluded.number, until = excluded.until
)
SELECT pg_current_xact_id()::text";

const WRITE_RUNS: &str = "
WITH ended AS (
  DELETE FROM ledger_runs USING unnest($3::bytea[], $4::bytea[]) AS keys(of_partition, of_run) CROSS JOIN LATERAL (
    SELECT ctid AS place FROM ledger_runs WHERE partition = of_partition AND period = $2 AND run = of_run LIMIT 1
  ) found
  WHERE ledger_runs.ctid = found.place
)
INSERT INTO ledger_runs (namespace, period, partition, user_id, named, run, life, cell, until)
SELECT $1, $2, * FROM unnest($5::bytea[], $6::text[], $7::boolean[], $8::bytea[], $9::bytea[], $10::text[], $11::bigint[])
ON CONFLICT (partition, period, run) DO UPDATE SET life = excluded.life, cell = excluded.cell, until = excluded.until";

/// Of a user's estimates the newest stay: those that can be listed, and as many that charged nothing.
const TRIM: &str = "
DELETE FROM ledger_holds USING (
  SELECT partition AS of_partition, id AS of_id,
    row_number() OVER (PARTITION BY partition, charged ORDER BY made DESC, id DESC) AS place
  FROM ledger_holds WHERE partition = ANY($1) AND period = $2 AND NOT open
) ranked
WHERE partition = of_partition AND period = $2 AND id = of_id AND place > $3";

/// One estimate in so many trims its user's.
const TRIM_EVERY: u128 = 64;

const DAY: i64 = 86_400_000_000;
/// How long a counter stays that nothing counts in any more: longer than a clock is set back.
const GRACE: i64 = DAY;
/// How long an ended run's counter, a name's erasure and an estimate of an ended window stay.
const RETAINED: i64 = 40 * DAY;

impl Place<'_> {
    /// Writes what changed, and answers with the transaction's id; `None` when nothing did.
    pub(crate) async fn write(
        &self,
        tx: &mut Transaction,
        accounts: &Accounts,
        total: Option<&Cell>,
    ) -> Result<Option<String>> {
        let mut users = Users::default();
        let mut holds = Holds::default();
        let mut runs = Runs::default();
        for (partition, loaded) in accounts.iter().filter(|(_, loaded)| loaded.check().is_ok()) {
            if loaded.is_changed() {
                users.push(self, *partition, loaded)?;
            }
            holds.push(self, *partition, loaded)?;
            runs.push(self, *partition, loaded)?;
        }
        let total = total.map(json).transpose()?;
        let is_empty = users.partition.is_empty() && holds.is_empty() && total.is_none();
        let mut written = None;
        if !is_empty {
            let trims = std::mem::take(&mut holds.trims);
            written = Some(self.write_accounts(tx, total, users, holds).await?);
            if !trims.is_empty() {
                self.trim(tx, &trims).await?;
            }
        }
        if !runs.is_empty() {
            self.write_runs(tx, runs).await?;
        }
        Ok(written)
    }

    async fn write_accounts(
        &self,
        tx: &mut Transaction,
        total: Option<String>,
        users: Users,
        holds: Holds,
    ) -> Result<String> {
        sqlx::query_scalar(WRITE)
            .bind(self.namespace.as_str())
            .bind(&self.period)
            .bind(Vec::from_iter(total))
            .bind(users.partition)
            .bind(users.user_id)
            .bind(users.named)
            .bind(users.epoch)
            .bind(users.open_holds)
            .bind(users.cell)
            .bind(users.until)
            .bind(holds.ended_partition)
            .bind(holds.ended_id)
            .bind(holds.partition)
            .bind(holds.user_id)
            .bind(holds.named)
            .bind(holds.id)
            .bind(holds.run)
            .bind(holds.seq)
            .bind(holds.made)
            .bind(holds.open)
            .bind(holds.state)
            .bind(holds.charged)
            .bind(holds.terms)
            .bind(holds.granted)
            .bind(holds.expires)
            .bind(holds.number)
            .bind(holds.global)
            .bind(holds.life)
            .bind(holds.until)
            .fetch_one(tx.conn())
            .await
            .map_err(failed(self.operation))
    }

    async fn write_runs(&self, tx: &mut Transaction, runs: Runs) -> Result<()> {
        sqlx::query(WRITE_RUNS)
            .bind(self.namespace.as_str())
            .bind(&self.period)
            .bind(runs.ended_partition)
            .bind(runs.ended_run)
            .bind(runs.partition)
            .bind(runs.user_id)
            .bind(runs.named)
            .bind(runs.run)
            .bind(runs.life)
            .bind(runs.cell)
            .bind(runs.until)
            .execute(tx.conn())
            .await
            .map(drop)
            .map_err(failed(self.operation))
    }

    async fn trim(&self, tx: &mut Transaction, partitions: &[Partition]) -> Result<()> {
        let trim = sqlx::query(TRIM).bind(partitions).bind(&self.period).bind(ESTIMATES);
        trim.execute(tx.conn()).await.map(drop).map_err(failed(self.operation))
    }

    /// Some days from now, in whole days: rows that are written often keep the value.
    fn in_days(&self, micros: i64) -> i64 {
        (self.now.as_micros().div_euclid(DAY) + 1) * DAY + micros
    }

    /// Until when what is kept for a while stays.
    pub(crate) fn retained(&self) -> i64 {
        self.in_days(RETAINED)
    }

    /// From when on a user's row may go.
    fn until(&self, loaded: &Loaded) -> Option<i64> {
        let ends = if loaded.is_blank() {
            self.in_days(GRACE)
        } else {
            loaded.account.user.ends_at(&self.books.periods)?.as_micros().saturating_add(GRACE)
        };
        Some(if loaded.epoch > 0 { ends.max(self.retained()) } else { ends })
    }
}

/// Rows of `ledger_users`, column by column.
#[derive(Debug, Default)]
struct Users {
    partition: Vec<Partition>,
    user_id: Vec<Option<String>>,
    named: Vec<bool>,
    epoch: Vec<i64>,
    open_holds: Vec<i64>,
    cell: Vec<String>,
    until: Vec<Option<i64>>,
}

impl Users {
    fn push(&mut self, place: &Place<'_>, partition: Partition, loaded: &Loaded) -> Result<()> {
        self.partition.push(partition);
        self.user_id.push(user_column(loaded.name.as_ref()).map(str::to_owned));
        self.named.push(loaded.name.is_some());
        self.epoch.push(loaded.epoch);
        self.open_holds.push(i64::try_from(loaded.account.open_holds).unwrap_or(i64::MAX));
        self.cell.push(json(&loaded.account.user)?);
        self.until.push(place.until(loaded));
        Ok(())
    }
}

/// Rows of `ledger_holds`, column by column: those that go, and those that changed or are new.
#[derive(Debug, Default)]
struct Holds {
    ended_partition: Vec<Partition>,
    ended_id: Vec<Vec<u8>>,
    partition: Vec<Partition>,
    user_id: Vec<Option<String>>,
    named: Vec<bool>,
    id: Vec<Vec<u8>>,
    run: Vec<Vec<u8>>,
    seq: Vec<i64>,
    made: Vec<i64>,
    open: Vec<bool>,
    state: Vec<String>,
    charged: Vec<bool>,
    terms: Vec<Vec<u8>>,
    granted: Vec<String>,
    expires: Vec<i64>,
    number: Vec<i64>,
    global: Vec<bool>,
    life: Vec<Option<Vec<u8>>>,
    until: Vec<Option<i64>>,
    /// Whose estimates are to be trimmed.
    trims: Vec<Partition>,
}

impl Holds {
    fn is_empty(&self) -> bool {
        self.id.is_empty() && self.ended_id.is_empty()
    }

    fn push(&mut self, place: &Place<'_>, partition: Partition, loaded: &Loaded) -> Result<()> {
        let (before, now) = (&loaded.before.holds, &loaded.account.holds);
        for id in before.keys().filter(|id| !now.contains_key(id)) {
            self.ended_partition.push(partition);
            self.ended_id.push(id_column(id.as_u128()));
        }
        for (id, record) in now.iter().filter(|(id, record)| before.get(id) != Some(*record)) {
            // Those that were reserved now come in the order of their ids, and all after those that were there.
            let made = loaded.made.get(id).copied().unwrap_or(place.now.as_micros());
            self.put(place, partition, loaded.name.as_ref(), *id, record, made)?;
        }
        Ok(())
    }

    fn put(
        &mut self,
        place: &Place<'_>,
        partition: Partition,
        name: Option<&Owner>,
        id: HoldId,
        record: &HoldRecord,
        made: i64,
    ) -> Result<()> {
        let is_open = record.is_open();
        let charged = matches!(record.state, HoldState::Estimated { charged, .. } if !charged.is_zero());
        let lasts = place.books.periods.window() == loomflow_core::Window::Lifetime;
        self.partition.push(partition);
        self.user_id.push(user_column(name).map(str::to_owned));
        self.named.push(name.is_some());
        self.id.push(id_column(id.as_u128()));
        self.run.push(id_column(record.key.run.as_u128()));
        self.seq.push(i64::from(record.key.seq));
        self.made.push(made);
        self.open.push(is_open);
        self.state.push(json(&record.state)?);
        self.charged.push(charged);
        self.terms.push(record.terms.as_bytes().to_vec());
        self.granted.push(json(&record.granted)?);
        self.expires.push(record.expires.as_micros());
        self.number.push(record.window);
        self.global.push(record.global);
        self.life.push(record.life.map(|life| id_column(life.as_u128())));
        self.until.push(match (is_open, charged && lasts) {
            (true, _) => Some(record.expires.as_micros()),
            // A charge that never leaves its window can always be corrected.
            (false, true) => None,
            (false, false) => Some(place.retained()),
        });
        if !is_open && id.as_u128().is_multiple_of(TRIM_EVERY) {
            self.trims.push(partition);
        }
        Ok(())
    }
}

/// Rows of `ledger_runs`, column by column: those that go, and those that changed or are new.
#[derive(Debug, Default)]
struct Runs {
    ended_partition: Vec<Partition>,
    ended_run: Vec<Vec<u8>>,
    partition: Vec<Partition>,
    user_id: Vec<Option<String>>,
    named: Vec<bool>,
    run: Vec<Vec<u8>>,
    life: Vec<Vec<u8>>,
    cell: Vec<String>,
    until: Vec<i64>,
}

impl Runs {
    fn is_empty(&self) -> bool {
        self.run.is_empty() && self.ended_run.is_empty()
    }

    fn push(&mut self, place: &Place<'_>, partition: Partition, loaded: &Loaded) -> Result<()> {
        let (before, now) = (&loaded.before.runs, &loaded.account.runs);
        for run in before.keys().filter(|run| !now.contains_key(run)) {
            self.ended_partition.push(partition);
            self.ended_run.push(id_column(run.as_u128()));
        }
        for (run, counter) in now.iter().filter(|(run, counter)| before.get(run) != Some(*counter)) {
            self.partition.push(partition);
            self.user_id.push(user_column(loaded.name.as_ref()).map(str::to_owned));
            self.named.push(loaded.name.is_some());
            self.run.push(id_column(run.as_u128()));
            self.life.push(id_column(counter.life.as_u128()));
            self.cell.push(json(&counter.cell)?);
            self.until.push(place.retained());
        }
        Ok(())
    }
}

pub(crate) fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::new(ErrorKind::Internal, "a counter could not be written as JSON").with_source(e))
}
