//! The writer and the migrations of SQLite files: groups, failures, callers that leave, kills, and files that are not ours.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use loomflow_core::{Error, ErrorKind, Result};
use loomflow_support_sql::Migration;
use loomflow_support_sql::sqlite::{Database, Schema, SqliteFile, failed};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::oneshot;

/// A folder that is gone when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("loomflow-sql-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> SqliteFile {
        SqliteFile::new(self.0.join("test.db"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

const NOTES: &[Migration] =
    &[Migration::new(1, "notes", "CREATE TABLE notes (n INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT")];
const SCHEMA: Schema = Schema::new("notes", "notes:sqlite", NOTES);

async fn open(folder: &Folder) -> Database {
    Database::open(folder.file(), &SCHEMA, true).await.unwrap()
}

async fn insert(conn: &mut SqliteConnection, n: i64) -> Result<i64> {
    let insert = sqlx::query("INSERT INTO notes VALUES (?1, 'text')").bind(n).execute(conn).await;
    insert.map(|done| done.last_insert_rowid()).map_err(failed("insert"))
}

async fn write(database: &Database, n: i64) -> Result<i64> {
    database.write("insert", move |conn| Box::pin(insert(conn, n))).await
}

async fn held(database: &Database) -> Vec<i64> {
    let mut read = database.read("held").await.unwrap();
    sqlx::query_scalar("SELECT n FROM notes ORDER BY n").fetch_all(&mut *read).await.unwrap()
}

/// Keeps the writer busy until the sender is used, so that what follows waits together.
async fn busy(database: &Database) -> oneshot::Sender<()> {
    let (go, gone) = oneshot::channel::<()>();
    let (begun, has_begun) = oneshot::channel::<()>();
    let database = database.clone();
    tokio::spawn(async move {
        let hold = database.write("hold", move |_| {
            Box::pin(async move {
                begun.send(()).ok();
                gone.await.ok();
                Ok(())
            })
        });
        hold.await.ok();
    });
    has_begun.await.unwrap();
    go
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_wait_are_committed_together_and_one_that_fails_undoes_itself_alone() {
    let folder = Folder::new();
    let database = open(&folder).await;
    let go = busy(&database).await;
    let before = commits(&folder);
    let writes = (0..40).map(|n| {
        let database = &database;
        async move {
            if n % 4 != 3 {
                return write(database, n).await;
            }
            let fails = database.write("fails", move |conn| {
                Box::pin(async move {
                    insert(conn, n + 1_000).await?;
                    Err(Error::invalid_input("no"))
                })
            });
            fails.await
        }
    });
    let writes = join_all(writes);
    let (outcomes, ()) = tokio::join!(writes, async {
        tokio::task::yield_now().await;
        go.send(()).unwrap();
    });
    for (n, outcome) in (0..).zip(&outcomes) {
        match outcome {
            Ok(written) => assert_eq!(*written, n),
            Err(e) => assert_eq!((n % 4, e.kind()), (3, ErrorKind::InvalidInput)),
        }
    }
    let expected: Vec<i64> = (0..40).filter(|n| n % 4 != 3).collect();
    assert_eq!(held(&database).await, expected);
    assert_eq!(commits(&folder) - before, 1, "what waited was committed at once");
}

/// How many commits the log has: frames that say how large the file is after them.
fn commits(folder: &Folder) -> usize {
    let log = std::fs::read(folder.0.join("test.db-wal")).unwrap();
    log.get(32..).unwrap_or_default().chunks(24 + 4_096).filter(|frame| frame[4..8] != [0; 4]).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_fails_undoes_its_write_alone() {
    let folder = Folder::new();
    let database = open(&folder).await;
    let go = busy(&database).await;
    let twice = database.write("twice", |conn| {
        Box::pin(async move {
            insert(conn, 7).await?;
            insert(conn, 7).await
        })
    });
    let writes = async { tokio::join!(write(&database, 1), twice, write(&database, 2)) };
    let ((one, twice, two), ()) = tokio::join!(writes, async { go.send(()).unwrap() });
    assert_eq!((one.unwrap(), two.unwrap()), (1, 2));
    assert_eq!(twice.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(held(&database).await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_blocks_nobody_and_its_write_is_whole_or_absent() {
    let folder = Folder::new();
    let database = open(&folder).await;
    let go = busy(&database).await;
    let left = tokio::time::timeout(Duration::from_millis(20), write(&database, 1)).await;
    assert!(left.is_err());
    let (two, ()) = tokio::join!(write(&database, 2), async { go.send(()).unwrap() });
    two.unwrap();
    assert_eq!(held(&database).await, [2], "it left before it began");

    let (begun, has_begun) = oneshot::channel();
    let (go, gone) = oneshot::channel::<()>();
    let other = database.clone();
    let caller = tokio::spawn(async move {
        let write = other.write("begun", move |conn| {
            Box::pin(async move {
                insert(conn, 3).await?;
                begun.send(()).ok();
                gone.await.ok();
                insert(conn, 4).await
            })
        });
        write.await
    });
    has_begun.await.unwrap();
    caller.abort();
    caller.await.unwrap_err();
    go.send(()).unwrap();
    write(&database, 5).await.unwrap();
    assert_eq!(held(&database).await, [2, 3, 4, 5], "it left after it began");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writer_survives_a_panic() {
    let folder = Folder::new();
    let database = open(&folder).await;
    let panics = database.write("panics", |conn| {
        Box::pin(async move {
            insert(conn, 1).await?;
            if held_by(conn).await == 1 {
                panic!("on purpose");
            }
            Ok(())
        })
    });
    assert_eq!(panics.await.unwrap_err().kind(), ErrorKind::Internal);
    write(&database, 2).await.unwrap();
    assert_eq!(held(&database).await, [2]);
}

async fn held_by(conn: &mut SqliteConnection) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(conn).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_makes_callers_wait_and_loses_nothing() {
    let folder = Folder::new();
    let file = folder.file().with_queue(2).with_batch(3);
    let database = Database::open(file, &SCHEMA, true).await.unwrap();
    let go = busy(&database).await;
    let answered = Arc::new(AtomicU32::new(0));
    let writes: Vec<_> = (0..20)
        .map(|n| {
            let (database, answered) = (database.clone(), answered.clone());
            tokio::spawn(async move {
                write(&database, n).await.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(answered.load(Ordering::Relaxed), 0, "nobody is answered before the commit");
    go.send(()).unwrap();
    for write in writes {
        write.await.unwrap();
    }
    assert_eq!(held(&database).await, (0..20).collect::<Vec<i64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_group_and_leaves_nothing_half_done() {
    let folder = Folder::new();
    let file = folder.file().with_max_bytes(64 << 10);
    let database = Database::open(file, &SCHEMA, true).await.unwrap();
    write(&database, 1).await.unwrap();
    let go = busy(&database).await;
    let large = |n: i64| {
        database.write("large", move |conn| {
            Box::pin(async move {
                insert(conn, n).await?;
                let text = "x".repeat(100 << 10);
                let update = sqlx::query("UPDATE notes SET text = ?2 WHERE n = ?1").bind(n).bind(text);
                update.execute(conn).await.map(drop).map_err(failed("large"))
            })
        })
    };
    let writes = async { tokio::join!(write(&database, 2), large(3), write(&database, 4)) };
    let ((before, full, after), ()) = tokio::join!(writes, async { go.send(()).unwrap() });
    assert_eq!(full.unwrap_err().kind(), ErrorKind::Capacity);
    let bystanders: Vec<&Error> = [&before, &after].into_iter().filter_map(|r| r.as_ref().err()).collect();
    assert!(!bystanders.is_empty(), "the group was not one");
    for error in bystanders {
        assert_eq!(
            error.kind(),
            ErrorKind::Overloaded,
            "not what somebody else's write failed with: {error}"
        );
        assert!(error.is_retryable() && error.to_string().contains("nothing was written"), "{error}");
    }
    let acknowledged: Vec<i64> = [Ok(1), before, after].into_iter().filter_map(Result::ok).collect();
    assert_eq!(held(&database).await, acknowledged, "what was answered is there, and nothing else");
    write(&database, 5).await.expect("the writer survives, and small writes still fit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_of_another_process_is_waited_for_and_then_named() {
    let folder = Folder::new();
    let database =
        Database::open(folder.file().with_operation_timeout(Duration::from_millis(400)), &SCHEMA, true)
            .await
            .unwrap();
    let mut other = SqliteConnectOptions::new().filename(&folder.file().path).connect().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    assert_eq!(write(&database, 1).await.unwrap_err().kind(), ErrorKind::Overloaded);
    let release = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        sqlx::query("COMMIT").execute(&mut other).await.unwrap();
    };
    let (waited, ()) = tokio::join!(write(&database, 2), release);
    waited.unwrap();
    assert_eq!(held(&database).await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_closed_when_the_last_handle_is_dropped() {
    let folder = Folder::new();
    let database = open(&folder).await;
    write(&database, 1).await.unwrap();
    let log = folder.0.join("test.db-wal");
    assert!(log.exists());
    drop(database);
    while log.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_cannot_write() {
    let folder = Folder::new();
    let database = open(&folder).await;
    let mut read = database.read("read").await.unwrap();
    let error = insert(&mut read, 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

/// Twenty versions, each a table with rows, so that a kill falls into the middle of one.
const MANY: usize = 20;

fn many() -> Schema {
    let all: Vec<Migration> = (1..=MANY)
        .map(|v| {
            let sql = format!(
                "CREATE TABLE t{v} (n INTEGER PRIMARY KEY) STRICT; \
                 INSERT INTO t{v} WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000) SELECT n FROM c;"
            );
            Migration::new(u32::try_from(v).unwrap(), "a table", sql.leak())
        })
        .collect();
    Schema::new("many", "many:sqlite", all.leak())
}

const CHILD: &str = "LOOMFLOW_SQL_MIGRATE";

/// What the killed process does; does nothing unless its parent names a file.
#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "the parent names the file")]
async fn child_migrates() {
    if let Some(path) = std::env::var_os(CHILD) {
        Database::migrate(&SqliteFile::new(path), &many()).await.unwrap();
    }
}

async fn version(path: &Path) -> i64 {
    let mut conn = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut conn).await.unwrap();
    if tables == 0 {
        return 0;
    }
    let version: i64 =
        sqlx::query_scalar("SELECT version FROM loomflow_schema").fetch_one(&mut conn).await.unwrap();
    for v in 1..=MANY {
        let name = format!("t{v}");
        let there: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = ?1")
            .bind(name.clone())
            .fetch_one(&mut conn)
            .await
            .unwrap();
        assert_eq!(there == 1, v as i64 <= version, "version {version} has {name} exactly when it should");
        if there == 1 {
            let rows =
                sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {name}")));
            assert_eq!(rows.fetch_one(&mut conn).await.unwrap(), 20_000, "{name} is whole");
        }
    }
    conn.close().await.unwrap();
    version
}

#[tokio::test]
async fn a_migration_that_is_killed_at_any_moment_is_continued() {
    let folder = Folder::new();
    let path = folder.file().path;
    let (mut reached, mut between) = (0, 0);
    for attempt in 0_u64.. {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_migrates"])
            .env(CHILD, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(15 + attempt * 7)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        if !path.exists() {
            continue;
        }
        let now = version(&path).await;
        assert!(now >= reached, "no version is undone");
        between += u32::from(now > reached && now < MANY as i64);
        reached = now;
        if reached == MANY as i64 {
            break;
        }
    }
    assert!(between > 0, "no kill fell between two versions");
    Database::open(folder.file(), &many(), false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_migrate_at_once_do_it_once() {
    let folder = Folder::new();
    let all = join_all((0..8).map(|_| {
        let file = folder.file();
        tokio::spawn(async move { Database::open(file, &many(), true).await })
    }));
    for opened in all.await {
        opened.unwrap().unwrap();
    }
    assert_eq!(version(&folder.file().path).await, MANY as i64);
}

async fn refused(folder: &Folder, schema: &Schema, bring_up: bool) -> Error {
    let before = std::fs::read(folder.file().path).ok();
    let error = Database::open(folder.file(), schema, bring_up).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert_eq!(std::fs::read(folder.file().path).ok(), before, "a file that is refused is left as it is");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_schema_is_refused_and_left_alone() {
    let folder = Folder::new();
    Database::migrate(&folder.file(), &many()).await.unwrap();
    const OLD: Schema = Schema::new("many", "many:sqlite", NOTES);
    for bring_up in [true, false] {
        let error = refused(&folder, &OLD, bring_up).await;
        assert!(error.to_string().contains("version 20") && error.to_string().contains("up to 1"), "{error}");
    }
    // Another part of the same file is another matter.
    Database::open(folder.file(), &SCHEMA, true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_schema_is_refused_where_it_may_not_be_migrated() {
    let folder = Folder::new();
    Database::migrate(&folder.file(), &SCHEMA).await.unwrap();
    const TWO: &[Migration] = &[NOTES[0], Migration::new(2, "more", "CREATE TABLE more (n INTEGER) STRICT")];
    const NEWER: Schema = Schema::new("notes", "notes:sqlite", TWO);
    let error = refused(&folder, &NEWER, false).await;
    assert!(error.to_string().contains("version 1") && error.to_string().contains("version 2"), "{error}");
    Database::open(folder.file(), &NEWER, true).await.unwrap();
    Database::open(folder.file(), &NEWER, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_ours_are_refused_and_left_alone() {
    let folder = Folder::new();
    let mut foreign = SqliteConnectOptions::new()
        .filename(&folder.file().path)
        .create_if_missing(true)
        .connect()
        .await
        .unwrap();
    sqlx::raw_sql("CREATE TABLE notes (n); INSERT INTO notes VALUES (1)")
        .execute(&mut foreign)
        .await
        .unwrap();
    foreign.close().await.unwrap();
    assert!(refused(&folder, &SCHEMA, true).await.to_string().contains("another program"));

    let folder = Folder::new();
    std::fs::write(folder.file().path, "this is no database, but a text of some length".repeat(20)).unwrap();
    assert!(refused(&folder, &SCHEMA, true).await.to_string().contains("no database"));

    let folder = Folder::new();
    refused(&folder, &SCHEMA, false).await;
    assert!(!folder.file().path.exists(), "checking creates nothing");

    let nowhere = SqliteFile::new(folder.0.join("missing").join("test.db"));
    let error = Database::open(nowhere, &SCHEMA, true).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("folder"), "{error}");
}
