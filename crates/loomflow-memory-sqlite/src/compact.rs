//! Giving space back: the rows that erasures blanked go, and the file is written anew without them.

use loomflow_core::Result;
use loomflow_support_sql::sqlite::failed;
use sqlx::sqlite::SqliteConnection;

/// Deleting blank rows one by one would merge pages and leave copies of their neighbours behind. So what stays is put
/// aside, each table is emptied at once, which overwrites its pages, and what stayed is appended again in its order.
const STATEMENTS: [[&str; 4]; 3] = [
    [
        "CREATE TEMP TABLE kept AS SELECT * FROM memory_episode_texts WHERE partition <> x''",
        "DELETE FROM memory_episode_texts",
        "INSERT INTO memory_episode_texts SELECT * FROM temp.kept ORDER BY content",
        "DROP TABLE temp.kept",
    ],
    [
        "CREATE TEMP TABLE kept AS SELECT * FROM memory_block_texts WHERE partition <> x''",
        "DELETE FROM memory_block_texts",
        "INSERT INTO memory_block_texts SELECT * FROM temp.kept ORDER BY content",
        "DROP TABLE temp.kept",
    ],
    [
        "CREATE TEMP TABLE kept AS SELECT * FROM memory_fact_texts WHERE partition <> x''",
        "DELETE FROM memory_fact_texts",
        "INSERT INTO memory_fact_texts SELECT * FROM temp.kept ORDER BY content",
        "DROP TABLE temp.kept",
    ],
];

/// Takes the blank rows out of the tables of texts.
pub(crate) async fn compact(conn: &mut SqliteConnection) -> Result<()> {
    for statement in STATEMENTS.as_flattened() {
        sqlx::raw_sql(*statement).execute(&mut *conn).await.map_err(failed("compact"))?;
    }
    Ok(())
}
