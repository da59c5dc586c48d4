//! Counters and holds as rows: how they are read, and how what changed is written back.

use std::time::Duration;

use loomflow_core::rules::quota::{Account, Amounts, Books, Cell, HoldRecord, RunCell};
use loomflow_core::{Digest, HoldId, HoldKey, Result, RunId, Timestamp};
use loomflow_support_sql::sqlite::failed;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::schema::{Columns as _, Key, damaged, in_row, to_json};

/// How long a counter is kept after nothing in it counts any more, so that a clock that leapt ahead and came back finds
/// what it left.
const MARGIN: Duration = Duration::from_secs(2 * 86_400);
/// How long the counter of a run is kept whose end was never told.
const RUN: Duration = Duration::from_secs(40 * 86_400);

/// Which counter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entity {
    Global,
    User,
    Run(RunId),
}

impl Entity {
    fn name(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::User => "user",
            Self::Run(_) => "run",
        }
    }

    fn run(self) -> Vec<u8> {
        match self {
            Self::Run(run) => run.as_u128().to_be_bytes().to_vec(),
            _ => Vec::new(),
        }
    }
}

/// A counter as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct Counter {
    pub(crate) cell: Cell,
    pub(crate) open_holds: u64,
    pub(crate) life: Option<HoldId>,
}

const COUNTER: &str = "SELECT state, open_holds, life FROM ledger_counters \
                       WHERE partition = ?1 AND entity = ?2 AND window = ?3 AND run = ?4";

/// The counter of an entity, if it has one. Runs have no window.
pub(crate) async fn counter(
    conn: &mut SqliteConnection,
    partition: &Key,
    entity: Entity,
    window: &str,
    operation: &'static str,
) -> Result<Option<Counter>> {
    let found = sqlx::query(COUNTER).bind(&partition[..]).bind(entity.name()).bind(window).bind(entity.run());
    let row = found.fetch_optional(conn).await.map_err(failed(operation))?;
    let which = match entity {
        Entity::Global => String::new(),
        Entity::User => "entity user".to_owned(),
        Entity::Run(run) => format!("entity run, run {run}"),
    };
    row.map(|row| counter_of(&row)).transpose().map_err(in_row("ledger_counters", partition, &which))
}

/// A counter from its row.
pub(crate) fn counter_of(row: &SqliteRow) -> Result<Counter> {
    let open_holds = u64::try_from(row.cell::<i64>("open_holds")?).map_err(|_| damaged("open_holds"))?;
    let life = row.id_if_any("life")?.map(HoldId::from_u128);
    Ok(Counter { cell: row.json("state")?, open_holds, life })
}

const PUT_COUNTER: &str = "INSERT INTO ledger_counters (partition, entity, window, run, life, open_holds, idle_at, state) \
                           VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
                           ON CONFLICT (partition, entity, window, run) DO UPDATE SET life = excluded.life, \
                           open_holds = excluded.open_holds, idle_at = excluded.idle_at, state = excluded.state";

/// Writes a counter, and from when on nobody needs it.
pub(crate) async fn put_counter(
    conn: &mut SqliteConnection,
    partition: &Key,
    entity: Entity,
    window: &str,
    counter: &Counter,
    idle_at: Option<Timestamp>,
    operation: &'static str,
) -> Result<()> {
    let put = sqlx::query(PUT_COUNTER)
        .bind(&partition[..])
        .bind(entity.name())
        .bind(window)
        .bind(entity.run())
        .bind(counter.life.map(|life| life.as_u128().to_be_bytes().to_vec()))
        .bind(counter.open_holds.cast_signed())
        .bind(idle_at.map(Timestamp::as_micros))
        .bind(to_json(&counter.cell)?);
    put.execute(conn).await.map(drop).map_err(failed(operation))
}

/// From when on the counter of a user, or of all together, is of no use: never while something is held.
pub(crate) fn idle_at(counter: &Counter, books: &Books, now: Timestamp) -> Option<Timestamp> {
    if counter.open_holds > 0 || counter.cell.held != Amounts::default() {
        return None;
    }
    let is_blank = counter.cell.used.is_zero() && counter.cell.warned == 0;
    let ends = if is_blank { Some(now) } else { counter.cell.ends_at(&books.periods) };
    ends.map(|at| at.saturating_add(MARGIN))
}

/// What of the time at which a counter went was its margin.
pub(crate) fn without_margin(idle_at: i64) -> i64 {
    idle_at.saturating_sub(i64::try_from(MARGIN.as_micros()).unwrap_or(i64::MAX))
}

/// Which hold an operation asks about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pick {
    None,
    Key(HoldKey),
    Id(HoldId),
}

macro_rules! select_holds {
    ($where:literal) => {
        concat!(
            "SELECT h.place, h.id, h.window, h.run, h.seq, h.state, h.terms, h.granted, h.expires, h.number, h.global, h.life ",
            "FROM ledger_holds AS h WHERE ",
            $where
        )
    };
}
pub(crate) use select_holds;

const DUE: &str = select_holds!("h.partition = ?1 AND h.window = ?2 AND h.ended IS NULL AND h.expires <= ?3");
const BY_KEY: &str =
    select_holds!("h.partition = ?1 AND h.window = ?2 AND h.run = ?3 AND h.seq = ?4 AND h.ended IS NULL");
const BY_ID: &str = select_holds!("h.partition = ?1 AND h.window = ?2 AND h.id = ?3");

/// A hold of this partition from its row.
pub(crate) fn hold_of(row: &SqliteRow, partition: &Key) -> Result<(HoldId, HoldRecord)> {
    read_hold(row).map_err(|error| {
        let place = row.cell::<i64>("place").unwrap_or_default();
        in_row("ledger_holds", partition, &format!("place {place}"))(error)
    })
}

fn read_hold(row: &SqliteRow) -> Result<(HoldId, HoldRecord)> {
    let seq = u32::try_from(row.cell::<i64>("seq")?).map_err(|_| damaged("seq"))?;
    let key = HoldKey::new(row.run_id("run")?, seq);
    let terms = Digest::from_bytes(row.bytes("terms")?);
    let (granted, expires, number) = (row.json("granted")?, row.time("expires")?, row.cell("number")?);
    let record = HoldRecord::new(key, row.json("state")?, terms, granted, expires, number)
        .with_counters(row.cell("global")?, row.id_if_any("life")?.map(HoldId::from_u128));
    Ok((row.hold_id("id")?, record))
}

/// An account, and what it was when it was loaded.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) partition: Key,
    pub(crate) window: String,
    pub(crate) books: Books,
    pub(crate) account: Account,
    before: Account,
}

/// Loads of a user what an operation needs: the counter, what is due, what is asked about, and the runs of these.
pub(crate) async fn load(
    conn: &mut SqliteConnection,
    (partition, window, books): (Key, String, Books),
    (now, begin): (Timestamp, Timestamp),
    pick: Pick,
    operation: &'static str,
) -> Result<Loaded> {
    let fail = failed(operation);
    let mut account = Account::new(&books, begin);
    if let Some(found) = counter(conn, &partition, Entity::User, &window, operation).await? {
        (account.user, account.open_holds) = (found.cell, found.open_holds);
    }
    let due = sqlx::query(DUE).bind(&partition[..]).bind(&window).bind(now.as_micros());
    let mut rows = due.fetch_all(&mut *conn).await.map_err(fail)?;
    let asked = match pick {
        Pick::None => None,
        Pick::Key(key) => {
            let run = key.run.as_u128().to_be_bytes().to_vec();
            let query =
                sqlx::query(BY_KEY).bind(&partition[..]).bind(&window).bind(run).bind(i64::from(key.seq));
            query.fetch_optional(&mut *conn).await.map_err(fail)?
        }
        Pick::Id(id) => {
            let id = id.as_u128().to_be_bytes().to_vec();
            let query = sqlx::query(BY_ID).bind(&partition[..]).bind(&window).bind(id);
            query.fetch_optional(&mut *conn).await.map_err(fail)?
        }
    };
    rows.extend(asked);
    account.holds = rows.iter().map(|row| hold_of(row, &partition)).collect::<Result<_>>()?;
    let mut runs: Vec<RunId> =
        account.holds.values().filter(|h| h.life.is_some()).map(|h| h.key.run).collect();
    if let Pick::Key(key) = pick
        && !books.run.is_empty()
    {
        runs.push(key.run);
    }
    for run in runs {
        if account.runs.contains_key(&run) {
            continue;
        }
        let found = counter(conn, &partition, Entity::Run(run), "", operation).await?;
        if let Some(Counter { cell, life: Some(life), .. }) = found {
            account.runs.insert(run, RunCell::new(life, cell));
        }
    }
    Ok(Loaded { partition, window, books, before: account.clone(), account })
}

const INSERT_HOLD: &str = "INSERT INTO ledger_holds (partition, id, space, window, run, seq, state, terms, granted, expires, \
                           number, global, life, ended) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
const UPDATE_HOLD: &str = "UPDATE ledger_holds SET state = ?3, expires = ?4, number = ?5, ended = ?6 \
                           WHERE partition = ?1 AND id = ?2";
const DELETE_HOLD: &str = "DELETE FROM ledger_holds WHERE partition = ?1 AND id = ?2";
/// Estimates beyond so many are let go, those that ended first, a few at a time.
const TRIM: &str = "DELETE FROM ledger_holds WHERE place IN (SELECT place FROM ledger_holds \
                    WHERE partition = ?1 AND ended IS NOT NULL ORDER BY ended DESC, place DESC LIMIT 64 OFFSET ?2)";
/// How many estimates are kept of a user.
pub(crate) const ESTIMATES: i64 = 1_000;

impl Loaded {
    /// Whether a hold was made since.
    pub(crate) fn has_new_hold(&self) -> bool {
        self.account.holds.keys().any(|id| !self.before.holds.contains_key(id))
    }

    /// Whether one of the holds is counted among all users together.
    pub(crate) fn is_in_global(&self) -> bool {
        self.account.holds.values().any(|hold| hold.global)
    }

    /// Writes back what changed.
    pub(crate) async fn save(
        self,
        conn: &mut SqliteConnection,
        space: &Key,
        now: Timestamp,
        operation: &'static str,
    ) -> Result<()> {
        let (account, before) = (&self.account, &self.before);
        if (&account.user, account.open_holds) != (&before.user, before.open_holds) {
            let counter = Counter { cell: account.user.clone(), open_holds: account.open_holds, life: None };
            let idle = idle_at(&counter, &self.books, now);
            put_counter(conn, &self.partition, Entity::User, &self.window, &counter, idle, operation).await?;
        }
        for (run, RunCell { life, cell, .. }) in &account.runs {
            if before.runs.get(run).is_some_and(|old| old.cell == *cell) {
                continue;
            }
            let counter = Counter { cell: cell.clone(), open_holds: 0, life: Some(*life) };
            let idle = (cell.held == Amounts::default()).then(|| now.saturating_add(RUN));
            put_counter(conn, &self.partition, Entity::Run(*run), "", &counter, idle, operation).await?;
        }
        let mut ended = false;
        for (id, hold) in &account.holds {
            if before.holds.get(id).is_some_and(|old| old != hold) {
                ended |= !hold.is_open();
                self.update(conn, *id, hold, now, operation).await?;
            }
        }
        for id in before.holds.keys().filter(|id| !account.holds.contains_key(id)) {
            let id = id.as_u128().to_be_bytes().to_vec();
            let delete = sqlx::query(DELETE_HOLD).bind(&self.partition[..]).bind(id);
            delete.execute(&mut *conn).await.map_err(failed(operation))?;
        }
        // After the rest: a hold whose lease just ran out left its key to the new one.
        for (id, hold) in account.holds.iter().filter(|(id, _)| !before.holds.contains_key(id)) {
            self.insert(conn, *id, hold, space, operation).await?;
        }
        if ended {
            let trim = sqlx::query(TRIM).bind(&self.partition[..]).bind(ESTIMATES);
            trim.execute(&mut *conn).await.map_err(failed(operation))?;
        }
        Ok(())
    }

    async fn insert(
        &self,
        conn: &mut SqliteConnection,
        id: HoldId,
        hold: &HoldRecord,
        space: &Key,
        operation: &'static str,
    ) -> Result<()> {
        let insert = sqlx::query(INSERT_HOLD)
            .bind(&self.partition[..])
            .bind(id.as_u128().to_be_bytes().to_vec())
            .bind(&space[..])
            .bind(&self.window)
            .bind(hold.key.run.as_u128().to_be_bytes().to_vec())
            .bind(i64::from(hold.key.seq))
            .bind(to_json(&hold.state)?)
            .bind(&hold.terms.as_bytes()[..])
            .bind(to_json(&hold.granted)?)
            .bind(hold.expires.as_micros())
            .bind(hold.window)
            .bind(hold.global)
            .bind(hold.life.map(|life| life.as_u128().to_be_bytes().to_vec()))
            .bind(None::<i64>);
        insert.execute(conn).await.map(drop).map_err(failed(operation))
    }

    async fn update(
        &self,
        conn: &mut SqliteConnection,
        id: HoldId,
        hold: &HoldRecord,
        now: Timestamp,
        operation: &'static str,
    ) -> Result<()> {
        let update = sqlx::query(UPDATE_HOLD)
            .bind(&self.partition[..])
            .bind(id.as_u128().to_be_bytes().to_vec())
            .bind(to_json(&hold.state)?)
            .bind(hold.expires.as_micros())
            .bind(hold.window)
            .bind((!hold.is_open()).then(|| now.as_micros()));
        update.execute(conn).await.map(drop).map_err(failed(operation))
    }
}
