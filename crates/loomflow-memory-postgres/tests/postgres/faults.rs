//! A server that cuts, stalls and ends connections: a write is whole or absent, and the pool recovers.

use std::time::Duration;

use futures_util::StreamExt as _;
use loomflow_conformance::doubles::{Direction, FaultyProxy};
use loomflow_core::{
    ErrorKind, FactQuery, FactStore as _, MemoryStore as _, NewFact, PutBlock, RecallQuery, TenantData as _,
};
use loomflow_memory_postgres::PostgresMemory;
use loomflow_support_sql::Migration;
use loomflow_support_sql::postgres::{Access, Component, PgSettings, Pool, Table};

use crate::support::{Database, at, connect, owner, run, scope, turn};

async fn behind_a_proxy(database: &Database) -> (FaultyProxy, PostgresMemory) {
    let proxy = FaultyProxy::start(&database.admin).await.unwrap();
    let mut config = database.config().with_operation_timeout(Duration::from_secs(2)).with_max_connections(4);
    config.url = loomflow_memory_postgres::PostgresMemoryConfig::new(proxy.url_like(&database.url())).url;
    let memory = PostgresMemory::connect(config).await.unwrap();
    (proxy, memory)
}

/// Every connection is cut at once, again and again: the next operation finds a live one by itself.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_cut_the_next_operation_works() {
    let database = Database::new().await;
    let (proxy, memory) = behind_a_proxy(&database).await;
    for n in 0..5 {
        let alice = scope("alice");
        let all = (0..4).map(|_| memory.remember(&alice, turn(n, "falcon")));
        let all: Vec<_> = futures_util::future::join_all(all).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
        proxy.cut().await;
        let written = memory.assert(&scope("alice"), NewFact::new("n", "is", n.to_string(), at(n))).await;
        assert!(written.is_ok(), "what was never sent is sent again: {written:?}");
    }
    assert!(memory.ready().await.ready);
}

/// A connection is cut after each possible number of bytes, towards the server and from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_cut_anywhere_is_whole_or_absent() {
    let database = Database::new().await;
    let (proxy, memory) = behind_a_proxy(&database).await;
    let mut known = Vec::new();
    let mut kept = 0;
    for n in 0..60_i64 {
        let direction = if n % 2 == 0 { Direction::Requests } else { Direction::Replies };
        proxy.cut_after(direction, u64::try_from(n * 23).unwrap());
        let fact = NewFact::new(format!("s{n}"), "is", "x", at(n));
        if memory.assert(&scope("alice"), fact).await.is_ok() {
            known.push(format!("s{n}"));
        }
        // Whatever opened the circuit is over.
        while !memory.ready().await.ready {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        kept += 1;
    }
    let facts = memory.query(&scope("alice"), &FactQuery::all(1_000)).await.unwrap();
    let facts: Vec<_> =
        facts.into_iter().map(|f| f.open(&scope("alice")).unwrap().subject.to_string()).collect();
    assert!(known.iter().all(|subject| facts.contains(subject)), "what was acknowledged is there");
    let once: std::collections::BTreeSet<_> = facts.iter().collect();
    assert!(once.len() == facts.len() && facts.len() <= kept, "nothing is there twice");
}

/// The server ends every connection while writers write; each of them succeeds or says that it did not.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_ends_connections_loses_nothing_acknowledged() {
    let database = Database::new().await;
    let memory = database.memory().await;
    let writers: Vec<_> = (0..8_i64)
        .map(|w| {
            let memory = memory.clone();
            tokio::spawn(async move {
                let mut acknowledged = 0;
                for n in 0..40 {
                    acknowledged += u64::from(
                        memory.remember(&scope("alice"), turn(w * 100 + n, "falcon")).await.is_ok(),
                    );
                }
                acknowledged
            })
        })
        .collect();
    let kill = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND application_name = 'loomflow'",
        database.name
    );
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        run(&database.admin, &kill).await;
    }
    let mut acknowledged = 0;
    for writer in writers {
        acknowledged += writer.await.unwrap();
    }
    while !memory.ready().await.ready {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let held = memory.profile(&scope("alice")).await.unwrap().open(&scope("alice")).unwrap().episodes;
    assert!(held >= acknowledged && held <= 320, "{acknowledged} acknowledged, {held} held");
    assert!(acknowledged > 0);
}

/// A server that does not answer costs the operation's time and no more, and leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_stall_ends_with_the_operations_time() {
    let database = Database::new().await;
    let (proxy, memory) = behind_a_proxy(&database).await;
    memory.remember(&scope("alice"), turn(1, "falcon")).await.unwrap();
    proxy.stall(true);
    let late = memory.recall(&scope("alice"), &RecallQuery::new("falcon", 9)).await.unwrap_err();
    assert!(late.kind() == ErrorKind::Timeout && late.is_retryable(), "{late:?}");
    proxy.stall(false);
    assert_eq!(memory.recall(&scope("alice"), &RecallQuery::new("falcon", 9)).await.unwrap().len(), 1);
    proxy.refuse(true);
    proxy.cut().await;
    let gone = memory.recall(&scope("alice"), &RecallQuery::new("falcon", 9)).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Unreachable, "{gone:?}");
    let readiness = memory.ready().await;
    assert!(!readiness.ready && !readiness.detail.is_empty());
    proxy.refuse(false);
    while !memory.ready().await.ready {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Operations that are dropped at any moment leave no transaction and no lock behind.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_leaves_no_transaction_behind() {
    let database = Database::new().await;
    let memory = database.memory().await;
    let (alice, bob, query) = (scope("alice"), scope("bob"), RecallQuery::new("x", 1));
    for micros in 0..60 {
        let write = memory.assert(&alice, NewFact::new("a", "b", format!("{micros}"), at(1)));
        drop(tokio::time::timeout(Duration::from_micros(micros * 50), write).await);
        let read = memory.recall(&bob, &query);
        drop(tokio::time::timeout(Duration::from_micros(micros * 50), read).await);
    }
    // A lock that was left would keep this waiting for ever.
    memory.assert(&scope("alice"), NewFact::new("a", "b", "last", at(1))).await.unwrap();
    let open = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND application_name = 'loomflow'
           AND state LIKE 'idle in transaction%'",
        database.name
    );
    let mut left = database.number(&open).await;
    for _ in 0..100 {
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        left = database.number(&open).await;
    }
    assert_eq!(left, 0);
}

/// Assertions that are dropped while they wait for a lock stop waiting on the server, too, though the lock is never let go.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_dropped_while_waiting_stops_waiting_on_the_server() {
    const WAITING: usize = 6;
    let database = Database::new().await;
    let memory = database.memory().await;
    let alice = owner("alice");
    let mut holder = connect(&database.url()).await;
    let key = i64::from_be_bytes(*alice.partition().first_chunk::<8>().unwrap());
    sqlx::query("SELECT pg_advisory_lock($1)").bind(key).execute(&mut holder).await.unwrap();
    let tasks: Vec<_> = (0..WAITING)
        .map(|n| {
            let memory = memory.clone();
            tokio::spawn(async move {
                let fact = NewFact::new("a", "b", format!("{n}"), at(1));
                memory.assert(&scope("alice"), fact).await.map(drop)
            })
        })
        .collect();
    until_waiting(&database, WAITING).await;
    for task in tasks {
        task.abort();
    }
    until_waiting(&database, 0).await;
}

/// Waits until so many of the pool's backends wait for a lock, for at most 20 s: less than a statement's own limit.
async fn until_waiting(database: &Database, wanted: usize) {
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND application_name = 'loomflow'
           AND wait_event_type = 'Lock'",
        database.name
    );
    let mut found = database.number(&waiting).await;
    for _ in 0..200 {
        if found == i64::try_from(wanted).unwrap() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        found = database.number(&waiting).await;
    }
    panic!("{found} backends wait for a lock, not {wanted}");
}

/// A block that may have been written is not written again by itself: that could undo what another wrote in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_whose_connection_is_lost_is_not_written_again() {
    let database = Database::new().await;
    let memory = database.memory().await;
    let mut holder = connect(&database.url()).await;
    sqlx::raw_sql("BEGIN; LOCK TABLE loomflow.memory_blocks IN EXCLUSIVE MODE")
        .execute(&mut holder)
        .await
        .unwrap();
    let write = tokio::spawn(async move {
        memory.put_block(&scope("alice"), PutBlock::new("note", "x", at(1))).await.map_err(|e| e.kind())
    });
    until_waiting(&database, 1).await;
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = '{}' AND application_name = 'loomflow'",
        database.name
    );
    run(&database.admin, &end).await;
    sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    assert_eq!(write.await.unwrap(), Err(ErrorKind::Transport));
    assert_eq!(database.number("SELECT count(*) FROM memory_blocks").await, 0);
}

/// An export that nobody reads on keeps no connection; read on, it is complete.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_pauses_holds_no_connection() {
    let database = Database::new().await;
    let memory = PostgresMemory::connect(database.config().with_max_connections(1)).await.unwrap();
    for n in 0..250 {
        memory.remember(&scope("alice"), turn(n, "falcon")).await.unwrap();
    }
    let mut export = memory.export(&scope("alice")).await.unwrap();
    export.next().await.unwrap().unwrap();
    memory.remember(&scope("bob"), turn(1, "falcon")).await.unwrap();
    assert_eq!(export.count().await, 249);
}

/// What a transaction wrote before it was dropped is undone, and the next user of the pool's only place begins afresh.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_transaction_is_undone() {
    const MADE: [Migration; 1] =
        [Migration::new(1, "one table", "CREATE TABLE probe (partition bytea NOT NULL, n bigint)")];
    const PROBE: Component = Component::new("probe", &MADE, &[Table::new("probe", "SELECT, INSERT")]);
    let database = Database::new().await;
    let mut settings = PgSettings::new(database.config().url);
    (settings.role, settings.max_connections) = (database.role.clone(), 1);
    let pool = Pool::connect(&settings, &PROBE, true).await.unwrap();
    let alice = owner("alice");
    for commits in [false, true] {
        let mut tx = pool.begin(&alice, Access::Exclusive, "probe").await.unwrap();
        let insert = sqlx::query("INSERT INTO probe VALUES ($1, 1)").bind(alice.partition());
        insert.execute(tx.conn()).await.unwrap();
        if commits {
            tx.commit().await.unwrap();
        } else {
            drop(tx);
        }
        let mut tx = pool.begin(&alice, Access::Exclusive, "probe").await.unwrap();
        let held = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM probe").fetch_one(tx.conn()).await;
        tx.commit().await.unwrap();
        assert_eq!(held.unwrap(), i64::from(commits));
    }
}
