//! Clearing away, a little at a time, what nobody needs: counters of ended windows, and estimates that nobody corrected.

use std::time::Duration;

use loomflow_core::{Result, Timestamp};
use loomflow_support_sql::sqlite::failed;

use crate::desk::Desk;
use crate::rows::without_margin;
use crate::schema::Columns as _;

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

fn before(now: Timestamp, ago: Duration) -> Timestamp {
    let ago = i64::try_from(ago.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.as_micros().saturating_sub(ago))
}
