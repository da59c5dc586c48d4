//! One connection that inserts the rows of an episode, as many in a transaction as there are writers, into a file beside
//! the store's, with its tables and its way of writing through.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use loomflow_core::Result;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use super::failed;
use crate::stores::{Args, Floor};

const SCHEMA: &str = "SELECT sql FROM store.sqlite_schema WHERE name LIKE 'memory_episode%' AND sql IS NOT NULL ORDER BY rowid";
const TEXT: &str = "INSERT INTO memory_episode_texts (partition, namespace, user_id, session, terms, messages, vector) SELECT \
                    partition, namespace, user_id, session, terms, messages, vector FROM sample";
const EPISODE: &str =
    "INSERT INTO memory_episodes SELECT partition, ?1, randomblob(16), last_insert_rowid(), 1, 2 FROM sample";

pub(super) async fn measure(args: &Args) -> Result<Floor> {
    let store = PathBuf::from(args.memory.trim_start_matches("sqlite:"));
    let file = store.with_extension("floor");
    let outcome = on(args, &store, &file).await.map_err(failed);
    for suffix in ["", "-wal", "-shm"] {
        let mut path = file.clone().into_os_string();
        path.push(suffix);
        let _gone = std::fs::remove_file(path);
    }
    outcome
}

async fn on(args: &Args, store: &std::path::Path, file: &std::path::Path) -> sqlx::Result<Floor> {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    let mut conn = options.connect().await?;
    sqlx::query("ATTACH ?1 AS store").bind(store.display().to_string()).execute(&mut conn).await?;
    for sql in sqlx::query_scalar::<_, String>(SCHEMA).fetch_all(&mut conn).await? {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut conn).await?;
    }
    let sample = "CREATE TEMP TABLE sample AS SELECT * FROM store.memory_episode_texts WHERE length(messages) > 9 LIMIT 1";
    sqlx::raw_sql(sample).execute(&mut conn).await?;
    sqlx::raw_sql("DETACH store").execute(&mut conn).await?;
    let (began, time) = (Instant::now(), Duration::from_secs(args.seconds));
    let mut rows = 0;
    while began.elapsed() < time {
        group(&mut conn, args.writers, rows).await?;
        rows += args.writers as i64;
    }
    let per_s = rows as f64 / began.elapsed().as_secs_f64();
    conn.close().await?;
    Ok(Floor { how: format!("one connection, {} episodes a transaction", args.writers), per_s })
}

async fn group(conn: &mut SqliteConnection, size: usize, first: i64) -> sqlx::Result<()> {
    let mut group = conn.begin_with("BEGIN IMMEDIATE").await?;
    for n in 0..size as i64 {
        sqlx::query(TEXT).execute(&mut *group).await?;
        sqlx::query(EPISODE).bind(first + n).execute(&mut *group).await?;
    }
    group.commit().await
}
