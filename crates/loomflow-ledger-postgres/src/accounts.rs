//! The accounts of a transaction, loaded from their rows.

use std::collections::{BTreeMap, BTreeSet};

use loomflow_core::rules::quota::{Account, Books, Periods};
use loomflow_core::{Error, ErrorKind, HoldId, HoldKey, Namespace, Owner, Result, RunId, Timestamp};
use loomflow_support_sql::postgres::{Transaction, failed};
use loomflow_support_sql::window_of;
use sqlx::Row as _;

use crate::query::Reads;
use crate::rows::{Read, foreign};
use crate::schema::{Partition, id_column};

/// Counters of users, and of their holds those with an id, those with a key, those whose lease ran out, and those that a
/// sweep set aside: in one round trip, so what a row is not about is null. Each hold is looked up by itself, whatever the
/// server thinks of the table's size.
const ACCOUNTS: &str = "
WITH holds AS (
  SELECT found.* FROM unnest($3::bytea[], $4::bytea[]) AS ids(of_partition, of_id) CROSS JOIN LATERAL (
    SELECT * FROM ledger_holds
    WHERE partition = ANY($1) AND partition = of_partition AND period = $2 AND id = of_id LIMIT 1
  ) found
  UNION ALL
  SELECT found.* FROM unnest($5::bytea[], $6::bytea[], $7::bigint[]) AS keys(of_partition, of_run, of_seq) CROSS JOIN LATERAL (
    SELECT * FROM ledger_holds
    WHERE partition = ANY($1) AND partition = of_partition AND period = $2 AND run = of_run AND seq = of_seq AND open LIMIT 1
  ) found
  UNION ALL
  (SELECT * FROM ledger_holds WHERE partition = ANY($1) AND period = $2 AND open AND until <= $8 ORDER BY until LIMIT 1000)
  UNION ALL
  (SELECT * FROM ledger_holds WHERE partition = ANY($1) AND period = $2 AND open AND until = $9 LIMIT 1000)
)
SELECT partition, period, namespace, user_id, named, epoch, open_holds, cell, NULL::bytea AS id, NULL::bytea AS run,
  NULL::bigint AS seq, NULL::bigint AS made, NULL::text AS state, NULL::bytea AS terms, NULL::text AS granted,
  NULL::bigint AS expires, NULL::bigint AS number, NULL::boolean AS global, NULL::bytea AS life
FROM ledger_users WHERE partition = ANY($1)
UNION ALL
SELECT partition, period, namespace, user_id, named, NULL, NULL, NULL, id, run, seq, made, state, terms, granted, expires,
  number, global, life
FROM holds";

/// Of holds that may be in these kinds of windows, those that are.
const FIND: &str = "
SELECT found.* FROM unnest($2::bytea[], $3::text[], $4::bytea[]) AS keys(of_partition, of_period, of_id) CROSS JOIN LATERAL (
  SELECT partition, period, id FROM ledger_holds
  WHERE partition = ANY($1) AND partition = of_partition AND period = of_period AND id = of_id LIMIT 1
) found";

const LISTED: &str = "
SELECT * FROM ledger_holds WHERE partition = ANY($1) AND charged AND NOT open ORDER BY made DESC, id DESC LIMIT $2";

const RUNS: &str = "
SELECT found.* FROM unnest($3::bytea[], $4::bytea[]) AS keys(of_partition, of_run) CROSS JOIN LATERAL (
  SELECT * FROM ledger_runs
  WHERE partition = ANY($1) AND partition = of_partition AND period = $2 AND run = of_run LIMIT 1
) found";

/// How many estimates of a user are listed, and kept.
pub(crate) const ESTIMATES: i64 = 1_000;

/// In the column `until` of an open hold: a sweep found its account damaged and set it aside. It is due to no sweep, stays
/// held, and is loaded with its account, which it damages still, or is settled in.
pub(crate) const ASIDE: i64 = i64::MAX;
/// Which rows a transaction needs of its partitions, beside their counters and what is due.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    partitions_of_ids: Vec<Partition>,
    ids: Vec<Vec<u8>>,
    partitions_of_keys: Vec<Partition>,
    runs_of_keys: Vec<Vec<u8>>,
    seqs_of_keys: Vec<i64>,
}

impl Wanted {
    pub(crate) fn hold(&mut self, partition: Partition, id: HoldId) {
        self.partitions_of_ids.push(partition);
        self.ids.push(id_column(id.as_u128()));
    }

    /// Whose rows are wanted by their ids.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        Vec::from_iter(self.partitions_of_ids.iter().copied().collect::<BTreeSet<_>>())
    }

    /// The holds that are not in these accounts, although nothing is wrong with them, and the other kinds of windows of
    /// their users.
    pub(crate) fn missing(&self, accounts: &Accounts) -> Vec<(Partition, String, Vec<u8>)> {
        let mut missing = Vec::new();
        for (partition, id) in self.partitions_of_ids.iter().zip(&self.ids) {
            let Some(loaded) = accounts.get(partition) else { continue };
            let here = loaded.account.holds.keys().any(|held| id_column(held.as_u128()) == *id);
            if !here && loaded.wrong.is_none() {
                missing.extend(loaded.periods.iter().map(|period| (*partition, period.clone(), id.clone())));
            }
        }
        missing
    }

    pub(crate) fn key(&mut self, partition: Partition, key: HoldKey) {
        self.run(partition, key.run, i64::from(key.seq));
    }

    /// The counter of a run, whose number of a hold is nobody's.
    pub(crate) fn counter(&mut self, partition: Partition, run: RunId) {
        self.run(partition, run, -1);
    }

    fn run(&mut self, partition: Partition, run: RunId, seq: i64) {
        self.partitions_of_keys.push(partition);
        self.runs_of_keys.push(id_column(run.as_u128()));
        self.seqs_of_keys.push(seq);
    }
}

/// Where accounts are kept: one kind of window, in one namespace.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) books: Books,
    pub(crate) namespace: &'a Namespace,
    pub(crate) period: String,
    pub(crate) reads: Reads,
    pub(crate) now: Timestamp,
    pub(crate) operation: &'static str,
}

/// One user's account, as it was and as it is now.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) account: Account,
    pub(crate) before: Account,
    /// The name beside the counter, as it was and as it is now.
    pub(crate) name: Option<Owner>,
    pub(crate) name_before: Option<Owner>,
    /// Whether there is a row.
    pub(crate) is_stored: bool,
    pub(crate) epoch: i64,
    /// The other kinds of windows that the user has an account in.
    pub(crate) periods: BTreeSet<String>,
    /// When each hold was reserved.
    pub(crate) made: BTreeMap<HoldId, i64>,
    /// Why nothing may be done with it.
    wrong: Option<(ErrorKind, String)>,
}

impl Loaded {
    fn new(account: Account) -> Self {
        Self {
            before: account.clone(),
            account,
            name: None,
            name_before: None,
            is_stored: false,
            epoch: 0,
            periods: BTreeSet::new(),
            made: BTreeMap::new(),
            wrong: None,
        }
    }

    /// Whether all its rows are the user's own and can be read.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::IsolationViolation`] when one of them says that it is another's; [`ErrorKind::Internal`] when one cannot
    /// be read.
    pub(crate) fn check(&self) -> Result<()> {
        self.wrong.as_ref().map_or(Ok(()), |(kind, message)| Err(Error::new(*kind, message.clone())))
    }

    /// Names the counter, unless the scope is from before the user's erasure.
    pub(crate) fn name(&mut self, owner: &Owner, epoch: u64) {
        if self.name.is_none() && i64::try_from(epoch).unwrap_or(i64::MAX) >= self.epoch {
            self.name = Some(owner.clone());
        }
    }

    /// Has nothing done with it any more, for this reason.
    pub(crate) fn refuse(&mut self, error: &Error) {
        self.wrong.get_or_insert_with(|| (error.kind(), error.message().to_owned()));
    }

    /// Whether nothing of it needs a row.
    pub(crate) fn is_blank(&self) -> bool {
        let account = &self.account;
        account.open_holds == 0
            && account.holds.is_empty()
            && account.user.used.is_zero()
            && account.user.warned == 0
    }

    pub(crate) fn is_changed(&self) -> bool {
        let (before, now) = (&self.before, &self.account);
        let counted = before.user != now.user || before.open_holds != now.open_holds;
        if self.is_stored { counted || self.name != self.name_before } else { !self.is_blank() }
    }
}

pub(crate) type Accounts = BTreeMap<Partition, Loaded>;

impl Place<'_> {
    /// The same in another kind of window; `None` where this program does not know it.
    pub(crate) fn of_kind(&self, period: &str) -> Option<Self> {
        let mut place = Self { period: period.to_owned(), ..self.clone() };
        place.books.periods = Periods::new(window_of(period)?);
        Some(place)
    }

    /// The accounts of `partitions`, each with the holds that are wanted and those that are due.
    ///
    /// A row that is not what it should be spoils its own account and no other.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::IsolationViolation`] for a row of a partition that was not asked for.
    pub(crate) async fn load(
        &self,
        tx: &mut Transaction,
        partitions: &[Partition],
        wanted: &Wanted,
    ) -> Result<Accounts> {
        let mut accounts: Accounts =
            partitions.iter().map(|p| (*p, Loaded::new(Account::new(&self.books, self.now)))).collect();
        let rows = sqlx::query(self.reads.sql(ACCOUNTS))
            .bind(partitions)
            .bind(&self.period)
            .bind(&wanted.partitions_of_ids)
            .bind(&wanted.ids)
            .bind(&wanted.partitions_of_keys)
            .bind(&wanted.runs_of_keys)
            .bind(&wanted.seqs_of_keys)
            .bind(self.now.as_micros())
            .bind(ASIDE);
        for row in &rows.fetch_all(tx.conn()).await.map_err(failed(self.operation))? {
            if row.try_get::<Option<&[u8]>, _>("id").map_err(failed(self.operation))?.is_some() {
                self.keep(&mut accounts, row, "ledger_holds", |row, _, loaded| hold(row, loaded))?;
            } else {
                self.keep(&mut accounts, row, "ledger_users", |row, name, loaded| {
                    self.user(row, name, loaded)
                })?;
            }
        }
        self.load_runs(tx, partitions, wanted, &mut accounts).await?;
        for loaded in accounts.values_mut() {
            loaded.before = loaded.account.clone();
            loaded.name_before.clone_from(&loaded.name);
        }
        Ok(accounts)
    }

    /// The counters of the runs that the holds are for.
    async fn load_runs(
        &self,
        tx: &mut Transaction,
        partitions: &[Partition],
        wanted: &Wanted,
        accounts: &mut Accounts,
    ) -> Result<()> {
        let mut wants: BTreeSet<(Partition, Vec<u8>)> = BTreeSet::new();
        for (partition, loaded) in accounts.iter() {
            let counted = loaded.account.holds.values().filter(|hold| hold.life.is_some());
            wants.extend(counted.map(|hold| (*partition, id_column(hold.key.run.as_u128()))));
        }
        if !self.books.run.is_empty() {
            let keys = wanted.partitions_of_keys.iter().copied().zip(wanted.runs_of_keys.iter().cloned());
            wants.extend(keys);
        }
        if wants.is_empty() {
            return Ok(());
        }
        let (of, runs): (Vec<Partition>, Vec<Vec<u8>>) = wants.into_iter().unzip();
        let runs = sqlx::query(self.reads.sql(RUNS)).bind(partitions).bind(&self.period).bind(of).bind(runs);
        for row in &runs.fetch_all(tx.conn()).await.map_err(failed(self.operation))? {
            self.keep(accounts, row, "ledger_runs", |row, _, loaded| {
                loaded.account.runs.insert(RunId::from_u128(row.id("run")?), row.run()?);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Where holds are that may be in another kind of window.
    pub(crate) async fn find(
        &self,
        tx: &mut Transaction,
        missing: Vec<(Partition, String, Vec<u8>)>,
    ) -> Result<Vec<(Partition, String, HoldId)>> {
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let partitions: Vec<Partition> = missing.iter().map(|(partition, ..)| *partition).collect();
        let (periods, ids): (Vec<String>, Vec<Vec<u8>>) =
            missing.into_iter().map(|(_, period, id)| (period, id)).unzip();
        let find =
            sqlx::query(self.reads.sql(FIND)).bind(&partitions).bind(&partitions).bind(periods).bind(ids);
        let rows = find.fetch_all(tx.conn()).await.map_err(failed(self.operation))?;
        let found = rows.iter().map(|row| {
            let row = Read { row, table: "ledger_holds", operation: self.operation };
            Ok((row.partition()?, row.get("period")?, HoldId::from_u128(row.id("id")?)))
        });
        found.collect()
    }

    /// The newest estimates of these partitions in windows of every kind, to be looked at.
    pub(crate) async fn load_estimates(
        &self,
        tx: &mut Transaction,
        partitions: &[Partition],
        accounts: &mut Accounts,
    ) -> Result<()> {
        let listed = sqlx::query(self.reads.sql(LISTED)).bind(partitions).bind(ESTIMATES);
        for row in &listed.fetch_all(tx.conn()).await.map_err(failed(self.operation))? {
            self.keep(accounts, row, "ledger_holds", |row, _, loaded| hold(row, loaded))?;
        }
        Ok(())
    }

    fn keep(
        &self,
        accounts: &mut Accounts,
        row: &sqlx::postgres::PgRow,
        table: &'static str,
        put: impl FnOnce(Read<'_>, Option<Owner>, &mut Loaded) -> Result<()>,
    ) -> Result<()> {
        let row = Read { row, table, operation: self.operation };
        let Some(loaded) = accounts.get_mut(&row.partition()?) else { return Err(foreign(self.operation)) };
        let done = row.owner(self.namespace).and_then(|name| put(row, name, loaded));
        if let Err(error) = done {
            loaded.refuse(&error);
        }
        Ok(())
    }

    fn user(&self, row: Read<'_>, name: Option<Owner>, loaded: &mut Loaded) -> Result<()> {
        // An erasure counts for every kind of window.
        loaded.epoch = loaded.epoch.max(row.get("epoch")?);
        let period: &str = row.get("period")?;
        if period != self.period {
            loaded.periods.insert(period.to_owned());
            return Ok(());
        }
        loaded.account.user = row.cell()?;
        loaded.account.open_holds = row.get::<i64>("open_holds")?.unsigned_abs();
        (loaded.name, loaded.is_stored) = (name, true);
        Ok(())
    }
}

fn hold(row: Read<'_>, loaded: &mut Loaded) -> Result<()> {
    let id = HoldId::from_u128(row.id("id")?);
    loaded.made.insert(id, row.get("made")?);
    loaded.account.holds.insert(id, row.hold()?);
    Ok(())
}
