//! What the store costs: `cargo run --release -p loomflow-memory-sqlite --example rates -- FOLDER`. The folder should be on
//! the disk that is asked about. Compares writes with a bare loop on the same connection settings, and reads of one user
//! in a small and in a large file.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that ends at the first error")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use loomflow_core::danger::assume_scope;
use loomflow_core::rules::words;
use loomflow_core::{
    Epoch, Fact, FactId, FactQuery, FactStore as _, Identity, MemoryStore as _, Message, Namespace,
    NewEpisode, NewFact, RecallQuery, RunId, Scope, SessionId, Timestamp, UserId,
};
use loomflow_memory_sqlite::{SqliteMemory, SqliteMemoryConfig};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, SqliteConnection};

const WRITERS: usize = 16;
const WRITES: usize = 8_000;
const USERS: usize = 10_000;
const FACTS_EACH: usize = 100;
const EPISODES_EACH: usize = 20;
const READS: usize = 2_000;

#[tokio::main]
async fn main() {
    let folder = PathBuf::from(std::env::args().nth(1).expect("name a folder"));
    std::fs::create_dir_all(&folder).unwrap();
    let bare = bare(&folder.join("bare.db")).await;
    let store = writes(&folder.join("writes.db")).await;
    println!("bare loop, {WRITERS} rows a commit   {bare:8.0}/s");
    println!(
        "remember, {WRITERS} writers          {store:8.0}/s   {:.0} % of the bare loop",
        100.0 * store / bare
    );
    let small = open(&folder.join("small.db")).await;
    let one = scope("the one");
    small.remember(&one, episode("the one", 0, 1)).await.unwrap();
    reads("1 own episode, nothing foreign", || recall(&small, &one)).await;
    let path = folder.join("large.db");
    let large = open(&path).await;
    let begun = Instant::now();
    fill(&path).await;
    println!(
        "filled in {:.0} s: {} bytes",
        begun.elapsed().as_secs_f64(),
        std::fs::metadata(&path).unwrap().len()
    );
    large.remember(&one, episode("the one", 0, 1)).await.unwrap();
    let foreign = USERS * EPISODES_EACH;
    reads(&format!("1 own episode, {foreign} foreign"), || recall(&large, &one)).await;
    reads(&format!("recall, {EPISODES_EACH} own episodes of {foreign}"), || async {
        recall(&large, &scope(&anybody())).await;
    })
    .await;
    let all = USERS * FACTS_EACH;
    reads(&format!("facts by words, {FACTS_EACH} own of {all}"), || async {
        let query = FactQuery::all(10).about("which order number 17 is late", None);
        assert_eq!(large.query(&scope(&anybody()), &query).await.unwrap().len(), 10);
    })
    .await;
    for size in [1_000_u128, 10_000, 30_000] {
        let name = format!("big {size}");
        let remembered =
            (0..size).map(|n| large.remember(Box::leak(Box::new(scope(&name))), episode(&name, n, 40)));
        for chunk in chunks(remembered.collect(), 256) {
            join_all(chunk).await.into_iter().for_each(|done| drop(done.unwrap()));
        }
        let scope = scope(&name);
        reads(&format!("recall in a partition of {size} episodes"), || recall(&large, &scope)).await;
    }
}

fn chunks<T>(mut all: Vec<T>, size: usize) -> Vec<Vec<T>> {
    let mut out = Vec::new();
    while !all.is_empty() {
        out.push(all.drain(..size.min(all.len())).collect());
    }
    out
}

fn anybody() -> String {
    format!("user_{}", rand::random::<u64>() as usize % USERS)
}

fn scope(user: &str) -> Scope {
    assume_scope(Namespace::default(), Identity::User(UserId::new(user).unwrap()), Epoch::ZERO)
}

fn episode(user: &str, n: u128, length: usize) -> NewEpisode {
    let run = RunId::from_u128(u128::from(words::pair(user, "")) << 64 | n);
    let filler: String = (0..length).map(|i| format!("word{} ", (n as usize * 31 + i * 7) % 5_000)).collect();
    let messages = [
        Message::user(format!("where is order {n}? {filler}")),
        Message::assistant("it is on its way, not late"),
    ];
    NewEpisode::new(run, SessionId::new("s").unwrap(), Timestamp::from_micros(n as i64), messages)
}

async fn open(path: &Path) -> SqliteMemory {
    SqliteMemory::connect(SqliteMemoryConfig::new(path).with_operation_timeout(Duration::from_secs(60)))
        .await
        .unwrap()
}

async fn recall(store: &SqliteMemory, scope: &Scope) {
    let found = store.recall(scope, &RecallQuery::new("which order is late", 10)).await.unwrap();
    assert!(!found.is_empty());
}

async fn reads<F: Future<Output = ()>>(what: &str, read: impl Fn() -> F) {
    let mut micros: Vec<u128> = Vec::new();
    let until = Instant::now() + Duration::from_secs(15);
    for _ in 0..READS {
        let begun = Instant::now();
        read().await;
        micros.push(begun.elapsed().as_micros());
        if Instant::now() > until {
            break;
        }
    }
    micros.sort_unstable();
    let at = |share: f64| micros[(micros.len() as f64 * share) as usize];
    println!("{what:<45} p50 {:>6} us   p99 {:>6} us   ({} reads)", at(0.5), at(0.99), micros.len());
}

async fn writes(path: &Path) -> f64 {
    let store = Arc::new(open(path).await);
    let begun = Instant::now();
    let writers = (0..WRITERS).map(|w| {
        let store = store.clone();
        tokio::spawn(async move {
            let user = format!("user_{w}");
            let scope = scope(&user);
            for n in 0..WRITES / WRITERS {
                store.remember(&scope, episode(&user, n as u128, 30)).await.unwrap();
            }
        })
    });
    join_all(writers).await.into_iter().for_each(|done| done.unwrap());
    WRITES as f64 / begun.elapsed().as_secs_f64()
}

/// The same rows with no store in between: one connection, as many rows a commit as there are writers.
async fn bare(path: &Path) -> f64 {
    drop(open(path).await);
    let mut conn = connect(path, SqliteSynchronous::Full).await;
    let begun = Instant::now();
    for group in 0..WRITES / WRITERS {
        sqlx::query("BEGIN IMMEDIATE").execute(&mut conn).await.unwrap();
        for w in 0..WRITERS {
            let user = format!("user_{w}");
            insert_episode(&mut conn, &user, &episode(&user, group as u128, 30)).await;
        }
        sqlx::query("COMMIT").execute(&mut conn).await.unwrap();
    }
    WRITES as f64 / begun.elapsed().as_secs_f64()
}

async fn connect(path: &Path, synchronous: SqliteSynchronous) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).journal_mode(SqliteJournalMode::Wal);
    options
        .synchronous(synchronous)
        .pragma("secure_delete", "ON")
        .disable_statement_logging()
        .connect()
        .await
        .unwrap()
}

async fn fill(path: &Path) {
    let mut conn = connect(path, SqliteSynchronous::Off).await;
    for chunk in 0..100 {
        sqlx::query("BEGIN IMMEDIATE").execute(&mut conn).await.unwrap();
        // Users take turns, as they would.
        for n in 0..FACTS_EACH {
            for user in chunk * (USERS / 100)..(chunk + 1) * (USERS / 100) {
                let user = format!("user_{user}");
                insert_fact(&mut conn, &user, n).await;
                if n < EPISODES_EACH {
                    insert_episode(&mut conn, &user, &episode(&user, n as u128, 30)).await;
                }
            }
        }
        sqlx::query("COMMIT").execute(&mut conn).await.unwrap();
    }
}

async fn insert_episode(conn: &mut SqliteConnection, user: &str, new: &NewEpisode) {
    let partition = scope(user).owner().partition().to_vec();
    let text = sqlx::query(
        "INSERT INTO memory_episode_texts (partition, namespace, user_id, session, terms, messages) VALUES (?, 'default', ?, 's', ?, ?)",
    )
    .bind(&partition)
    .bind(user)
    .bind(words::to_bytes(&words::of_episode(&new.messages)))
    .bind(serde_json::to_string(&new.messages).unwrap());
    let content = text.execute(&mut *conn).await.unwrap().last_insert_rowid();
    let key = sqlx::query("INSERT INTO memory_episodes VALUES (?, ?, ?, ?, ?, 2)")
        .bind(&partition)
        .bind(new.at.as_micros())
        .bind(new.run.as_u128().to_be_bytes().to_vec())
        .bind(content)
        .bind(words::pair("session", "s").cast_signed());
    key.execute(conn).await.unwrap();
}

async fn insert_fact(conn: &mut SqliteConnection, user: &str, n: usize) {
    let partition = scope(user).owner().partition().to_vec();
    let at = Timestamp::from_micros(n as i64);
    let fact = Fact::from_new(
        FactId::fresh(),
        &NewFact::new("ada", "asked_about", format!("order number {n}, which was late"), at),
    );
    let text = sqlx::query(
        "INSERT INTO memory_fact_texts (partition, namespace, user_id, subject, predicate, object, terms) VALUES (?, 'default', ?, ?, ?, ?, ?)",
    )
    .bind(&partition)
    .bind(user)
    .bind(&*fact.subject)
    .bind(&*fact.predicate)
    .bind(&*fact.object)
    .bind(words::to_bytes(&words::of_fact(&fact)));
    let content = text.execute(&mut *conn).await.unwrap().last_insert_rowid();
    let key = sqlx::query("INSERT INTO memory_facts VALUES (?, ?, ?, ?, ?, 100, ?, NULL, NULL, x'')")
        .bind(&partition)
        .bind(n as i64)
        .bind(fact.id.as_u128().to_be_bytes().to_vec())
        .bind(content)
        .bind(words::pair(&fact.subject, &fact.predicate).cast_signed())
        .bind(n as i64);
    key.execute(conn).await.unwrap();
}
