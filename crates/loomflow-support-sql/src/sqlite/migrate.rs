//! The schemas of a file: whose file it is, which parts it has, and how each is brought up to date.
//!
//! The file says by its application id that it is ours. A table says which version each part of it has, so that several
//! stores can share one file. Each change is committed together with its version, under the write lock.

use loomflow_core::{Error, ErrorKind, Result};
use sqlx::sqlite::SqliteConnection;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::time::{Duration, Instant, sleep};

use super::{SqliteFile, failed};
use crate::{Migration, pending};

/// `Loom`, as SQLite's header has it: a file with another id belongs to another program.
const APPLICATION_ID: i64 = 0x4c6f_6f6d;
const SET_APPLICATION_ID: &str = "PRAGMA application_id = 1282371437";
const VERSIONS: &str = "CREATE TABLE IF NOT EXISTS loomflow_schema (part TEXT NOT NULL PRIMARY KEY, version INTEGER NOT \
                        NULL) STRICT, WITHOUT ROWID";
const SET_VERSION: &str = "INSERT INTO loomflow_schema (part, version) VALUES (?1, ?2) ON CONFLICT (part) DO UPDATE SET \
                           version = excluded.version";
const OPERATION: &str = "migrate";

/// The part of a file that one store owns.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Schema {
    /// Its name in the file, such as `memory`. Its tables begin with it.
    pub part: &'static str,
    /// What messages call the store, such as `memory:sqlite`.
    pub store: &'static str,
    /// How it came to be.
    pub migrations: &'static [Migration],
}

impl Schema {
    /// The part named `part` of the store that messages call `store`.
    #[must_use]
    pub const fn new(part: &'static str, store: &'static str, migrations: &'static [Migration]) -> Self {
        Self { part, store, migrations }
    }

    fn newest(&self) -> u32 {
        self.migrations.last().map_or(0, |m| m.version)
    }
}

/// Brings the part up to date, creating the file if there is none.
pub(super) async fn migrate(file: &SqliteFile, schema: &Schema) -> Result<()> {
    let mut conn = connect(file, true).await?;
    let outcome = migrate_on(&mut conn, file, schema).await;
    conn.close().await.ok();
    outcome.map_err(|e| e.with_context("file", file.path.display()))
}

/// Fails unless the part is there and up to date. Changes nothing.
pub(super) async fn check(file: &SqliteFile, schema: &Schema) -> Result<()> {
    let mut conn = connect(file, false).await?;
    let outcome = version_now(&mut conn, schema).await;
    conn.close().await.ok();
    let stored = outcome.map_err(|e| e.with_context("file", file.path.display()))?;
    if pending(schema.migrations, stored, schema.store)?.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the schema of {} is version {stored}, and this program needs version {}: migrate it before it is used",
        schema.store,
        schema.newest()
    );
    Err(Error::new(ErrorKind::Config, message)
        .with_operation("connect")
        .with_context("file", file.path.display()))
}

async fn connect(file: &SqliteFile, create: bool) -> Result<SqliteConnection> {
    let conn = file.plain(create).connect().await;
    conn.map_err(|e| failed(OPERATION)(e).with_context("file", file.path.display()))
}

async fn migrate_on(conn: &mut SqliteConnection, file: &SqliteFile, schema: &Schema) -> Result<()> {
    // Looked at before anything is touched: neither a foreign file nor a newer one is changed by as much as its mode.
    if pending(schema.migrations, version_now(conn, schema).await?, schema.store)?.is_empty() {
        return Ok(());
    }
    write_ahead(conn, file.connect_timeout).await?;
    while one_step(conn, schema).await? {}
    Ok(())
}

/// Changes to write-ahead logging, which is for good. SQLite does not wait for locks here, so this does.
async fn write_ahead(conn: &mut SqliteConnection, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit;
    loop {
        let mode = sqlx::query_scalar::<_, String>("PRAGMA journal_mode = WAL").fetch_one(&mut *conn).await;
        match mode.map_err(failed(OPERATION)) {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(_) => {
                let message = "the file's folder offers no write-ahead log; put it on a local disk";
                return Err(Error::new(ErrorKind::Config, message).with_operation(OPERATION));
            }
            Err(e) if e.kind() == ErrorKind::Overloaded && Instant::now() < until => {
                sleep(Duration::from_millis(10)).await;
            }
            Err(e) => return Err(e),
        }
    }
}

/// Does the next change, if one is lacking. Whoever else migrates meanwhile waits for the lock and finds it done.
async fn one_step(conn: &mut SqliteConnection, schema: &Schema) -> Result<bool> {
    let fail = failed(OPERATION);
    let mut step = conn.begin_with("BEGIN IMMEDIATE").await.map_err(fail)?;
    let stored = version(&mut step, schema).await?;
    let Some(next) = pending(schema.migrations, stored, schema.store)?.first() else { return Ok(false) };
    sqlx::raw_sql(SET_APPLICATION_ID).execute(&mut *step).await.map_err(fail)?;
    sqlx::raw_sql(VERSIONS).execute(&mut *step).await.map_err(fail)?;
    sqlx::raw_sql(next.sql).execute(&mut *step).await.map_err(fail)?;
    let set = sqlx::query(SET_VERSION).bind(schema.part).bind(i64::from(next.version));
    set.execute(&mut *step).await.map_err(fail)?;
    step.commit().await.map_err(fail)?;
    Ok(true)
}

/// The version of the part at one moment: between two looks, another process may make the file ours.
async fn version_now(conn: &mut SqliteConnection, schema: &Schema) -> Result<u32> {
    let mut look = conn.begin().await.map_err(failed(OPERATION))?;
    let version = version(&mut look, schema).await;
    look.rollback().await.map_err(failed(OPERATION))?;
    version
}

/// The version of the part, within a transaction; 0 where it is not there.
async fn version(conn: &mut SqliteConnection, schema: &Schema) -> Result<u32> {
    let fail = failed(OPERATION);
    let id: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *conn).await.map_err(fail)?;
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *conn).await.map_err(fail)?;
    if id != APPLICATION_ID {
        return if id == 0 && tables == 0 { Ok(0) } else { Err(foreign()) };
    }
    let stored = sqlx::query_scalar::<_, i64>("SELECT version FROM loomflow_schema WHERE part = ?1");
    let stored = stored.bind(schema.part).fetch_optional(&mut *conn).await.map_err(fail)?;
    u32::try_from(stored.unwrap_or(0)).map_err(|_| foreign())
}

fn foreign() -> Error {
    let message = "the file is a database of another program and is left untouched; name another file";
    Error::new(ErrorKind::Config, message).with_operation(OPERATION)
}
