//! Clearing away, a little at a time, what nobody needs: counters of ended windows, estimates that nobody corrected, and names
//! of users of whom nothing is left.

use std::time::Duration;

use loomflow_core::{Result, Timestamp};
use loomflow_support_sql::sqlite::failed;

use crate::desk::Desk;
use crate::forget::BLANK;
use crate::rows::without_margin;
use crate::schema::{Author, Columns as _, Key};

/// How many rows of a kind one step clears away.
const ROWS: i64 = 64;
/// How many abandoned holds one step closes, after their lease ran out so long ago.
const HOLDS: i64 = 16;
const STALE: Duration = Duration::from_secs(86_400);
/// How long an estimate can be corrected.
const ESTIMATE: Duration = Duration::from_secs(100 * 86_400);

const COUNTERS: &str = "DELETE FROM ledger_counters WHERE (partition, entity, window, run) IN \
                        (SELECT partition, entity, window, run FROM ledger_counters WHERE idle_at <= ?1 ORDER BY idle_at LIMIT ?2) \
                        RETURNING entity, idle_at";
const FLOOR: &str = "UPDATE ledger_meta SET floor = max(floor, ?1)";
const ESTIMATES: &str =
    "DELETE FROM ledger_holds WHERE place IN (SELECT place FROM ledger_holds WHERE ended <= ?1 LIMIT ?2)";

/// The next users, and whether a counter or a hold of theirs is there.
const USERS: &str = "SELECT u.partition, u.epoch, u.name, \
     EXISTS (SELECT 1 FROM ledger_counters AS c WHERE c.partition = u.partition) \
     OR EXISTS (SELECT 1 FROM ledger_holds AS h WHERE h.partition = u.partition) AS is_here \
     FROM ledger_users AS u WHERE u.partition > ?1 ORDER BY u.partition LIMIT ?2";
const GONE: &str = "DELETE FROM ledger_users WHERE partition = ?1 AND epoch = 0";
const UNNAMED: &str = "UPDATE ledger_users SET name = NULL WHERE partition = ?1";

/// Names are written anew without the blank ones when so many are blank, and no more than so many are not.
const BLANKS: i64 = 1_024;
const NAMES: i64 = 8_192;
const COUNT: &str = "SELECT count(*) AS names, coalesce(sum(namespace <> ''), 0) AS live FROM \
                     (SELECT namespace FROM ledger_names LIMIT ?1)";
const LIVE: &str = "SELECT name, namespace, user_id FROM ledger_names WHERE namespace <> '' ORDER BY name";
const EMPTY: &str = "DELETE FROM ledger_names";
const APPEND: &str = "INSERT INTO ledger_names (name, namespace, user_id) VALUES (?1, ?2, ?3)";

/// Closes holds whose users do not come back, so that their counters end some day.
pub(crate) async fn stale(desk: &mut Desk<'_>) -> Result<()> {
    desk.sweep(before(desk.now, STALE), HOLDS, None).await.map(drop)
}

/// Clears away what is over. A counter that went is not begun again in a window that it was cleared away in.
pub(crate) async fn clear(desk: &mut Desk<'_>) -> Result<()> {
    let fail = failed(desk.operation);
    let gone = sqlx::query(COUNTERS).bind(desk.now.as_micros()).bind(ROWS);
    let gone = gone.fetch_all(&mut *desk.conn).await.map_err(fail)?;
    let mut floor = None;
    for row in &gone {
        if row.cell::<&str>("entity")? != "run" {
            floor = floor.max(Some(without_margin(row.cell("idle_at")?)));
        }
    }
    if let Some(floor) = floor {
        sqlx::query(FLOOR).bind(floor).execute(&mut *desk.conn).await.map_err(fail)?;
    }
    let old = sqlx::query(ESTIMATES).bind(before(desk.now, ESTIMATE).as_micros()).bind(ROWS);
    old.execute(&mut *desk.conn).await.map(drop).map_err(fail)
}

/// Takes out users of whom no counter and no hold, open or estimated, is left: nothing there is to give away with them. Looks
/// at the next ones each time, beginning with those that follow the author.
///
/// A name is blanked where it lies, and an erasure's epoch stays.
pub(crate) async fn users(desk: &mut Desk<'_>, author: &Author) -> Result<()> {
    let fail = failed(desk.operation);
    let from = desk.keeping.looked().unwrap_or(author.partition);
    let next =
        sqlx::query(USERS).bind(&from[..]).bind(ROWS).fetch_all(&mut *desk.conn).await.map_err(fail)?;
    for row in &next {
        if row.cell::<bool>("is_here")? {
            continue;
        }
        let partition: Key = row.bytes("partition")?;
        if let Some(name) = row.cell::<Option<i64>>("name")? {
            sqlx::query(BLANK).bind(name).execute(&mut *desk.conn).await.map_err(fail)?;
        }
        for sql in [GONE, UNNAMED] {
            sqlx::query(sql).bind(&partition[..]).execute(&mut *desk.conn).await.map_err(fail)?;
        }
    }
    let last = match next.last() {
        Some(row) if next.len() == ROWS.unsigned_abs() as usize => row.bytes("partition")?,
        // From the beginning.
        _ => {
            shorten(desk).await?;
            [0; 32]
        }
    };
    desk.keeping.set_looked(Some(last));
    Ok(())
}

/// Takes the blank names out where most are. Deleted one by one they would leave copies of their neighbours behind
/// (docs/adr/0013): so the table is emptied at once, which overwrites its pages, and what is not blank is appended again.
async fn shorten(desk: &mut Desk<'_>) -> Result<()> {
    let fail = failed(desk.operation);
    let counted =
        sqlx::query(COUNT).bind(BLANKS + 2 * NAMES).fetch_one(&mut *desk.conn).await.map_err(fail)?;
    let (names, live): (i64, i64) = (counted.cell("names")?, counted.cell("live")?);
    if names - live < BLANKS.max(live) || live > NAMES || names == BLANKS + 2 * NAMES {
        return Ok(());
    }
    let live = sqlx::query(LIVE).fetch_all(&mut *desk.conn).await.map_err(fail)?;
    sqlx::query(EMPTY).execute(&mut *desk.conn).await.map_err(fail)?;
    for row in &live {
        let (name, namespace): (i64, &str) = (row.cell("name")?, row.cell("namespace")?);
        let append =
            sqlx::query(APPEND).bind(name).bind(namespace).bind(row.cell::<Option<&str>>("user_id")?);
        append.execute(&mut *desk.conn).await.map_err(fail)?;
    }
    Ok(())
}

fn before(now: Timestamp, ago: Duration) -> Timestamp {
    let ago = i64::try_from(ago.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.as_micros().saturating_sub(ago))
}
