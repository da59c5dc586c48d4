//! The two walls, each alone: the filter of every statement, and row-level security.

use futures_util::StreamExt as _;
use loomflow_core::{
    Erase, ErrorKind, FactQuery, FactStore as _, HistoryLimit, MemoryStore as _, NewFact, PutBlock,
    RecallQuery, Result, Scope, SessionId, TenantData as _,
};
use loomflow_memory_postgres::{Fault, PostgresMemory};
use sqlx::{Connection as _, Executor as _, Row as _};

use crate::support::{Database, at, connect, owner, scope, scope_at, turn, vector};

/// Everything that two users wrote, each with a vector of the same kind.
async fn filled() -> (Database, PostgresMemory) {
    let database = Database::new().await;
    let memory = database.memory().await;
    for (n, user) in (0..).zip(["alice", "bob", "mallory"]) {
        let scope = scope(user);
        let said = turn(n, &format!("falcon of {user}")).with_embedding(vector(&[1.0, 0.0]));
        memory.remember(&scope, said).await.unwrap();
        memory.put_block(&scope, PutBlock::new("note", user, at(n))).await.unwrap();
        let fact = NewFact::new("me", "am", user, at(n)).with_embedding(vector(&[0.0, 1.0]));
        memory.facts().unwrap().assert(&scope, fact).await.unwrap();
    }
    (database, memory)
}

/// What every way to read gives, each record as text; an error as its kind.
async fn everything(memory: &PostgresMemory, scope: &Scope) -> Vec<Result<Vec<String>, ErrorKind>> {
    let mut all = Vec::new();
    let queries = [
        RecallQuery::new("", 100),
        RecallQuery::new("falcon", 100),
        RecallQuery::new("", 100).with_embedding(vector(&[1.0, 0.0])),
    ];
    for query in queries {
        all.push(opened(scope, memory.recall(scope, &query).await));
    }
    let session = SessionId::new("s").unwrap();
    all.push(opened(scope, memory.history(scope, &session, HistoryLimit::messages(100)).await));
    all.push(opened(scope, memory.blocks(scope).await));
    let words = FactQuery::all(100).about("am", Some(vector(&[0.0, 1.0])));
    for query in [FactQuery::all(100), words] {
        all.push(opened(scope, memory.facts().unwrap().query(scope, &query).await));
    }
    let profile = memory.profile(scope).await.and_then(|p| p.open(scope)).map(|p| vec![format!("{p:?}")]);
    all.push(profile.map_err(|e| e.kind()));
    let exported: Vec<_> = memory.export(scope).await.unwrap().collect().await;
    all.push(opened(scope, exported.into_iter().collect()));
    all
}

fn opened<T: std::fmt::Debug>(
    scope: &Scope,
    read: Result<Vec<loomflow_core::Owned<T>>>,
) -> Result<Vec<String>, ErrorKind> {
    let read = read.map_err(|e| e.kind())?;
    let opened = read.into_iter().map(|owned| owned.open(scope).map(|value| format!("{value:?}")));
    opened.collect::<Result<_>>().map_err(|e| e.kind())
}

#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_holds_where_every_filter_is_gone() {
    let (database, memory) = filled().await;
    let unfiltered =
        PostgresMemory::connect(database.config().with_fault(Fault::NoPartitionFilter)).await.unwrap();
    for user in ["alice", "bob", "nobody"] {
        let expected = everything(&memory, &scope(user)).await;
        assert_eq!(everything(&unfiltered, &scope(user)).await, expected, "{user}");
        assert!(expected.iter().all(Result::is_ok), "{expected:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filters_hold_where_row_level_security_is_lifted() {
    let (database, memory) = filled().await;
    let (alice, nobody) =
        (everything(&memory, &scope("alice")).await, everything(&memory, &scope("nobody")).await);
    lift(&database).await;
    assert_eq!(everything(&memory, &scope("alice")).await, alice);
    assert_eq!(everything(&memory, &scope("nobody")).await, nobody);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tripwire_catches_what_passes_both_walls() {
    let (database, _) = filled().await;
    let unfiltered =
        PostgresMemory::connect(database.config().with_fault(Fault::NoPartitionFilter)).await.unwrap();
    lift(&database).await;
    for read in everything(&unfiltered, &scope("alice")).await {
        assert_eq!(read, Err(ErrorKind::IsolationViolation));
    }
}

async fn lift(database: &Database) {
    for table in ["partitions", "episodes", "blocks", "facts"] {
        database.sql(&format!("ALTER TABLE memory_{table} DISABLE ROW LEVEL SECURITY")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_partition_the_application_sees_and_writes_nothing() {
    let (database, _memory) = filled().await;
    let mut conn = connect(&database.url()).await;
    let act = format!("SET search_path TO loomflow; SET ROLE {}", database.role);
    conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(act))).await.unwrap();
    let alice = owner("alice").partition_hex();
    let set = [
        String::new(),
        "SELECT set_config('loomflow.partition', '', false)".to_owned(),
        format!("SELECT set_config('loomflow.partition', '{}', false)", owner("nobody").partition_hex()),
    ];
    for set in set {
        conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(set.clone()))).await.unwrap();
        for table in ["partitions", "episodes", "blocks", "facts"] {
            let count = format!("SELECT count(*) FROM memory_{table}");
            let row = conn.fetch_one(sqlx::raw_sql(sqlx::AssertSqlSafe(count))).await.unwrap();
            assert_eq!(row.try_get::<i64, _>(0).unwrap(), 0, "{table} after {set:?}");
        }
        for statement in [
            format!("INSERT INTO memory_partitions (partition, namespace) VALUES ('\\x{alice}', 'app')"),
            format!(
                "INSERT INTO memory_blocks (partition, namespace, name, content, place, updated_at)
                 VALUES ('\\x{alice}', 'app', 'planted', '', 0, 0)"
            ),
        ] {
            let refused = conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(statement))).await.unwrap_err();
            let code = refused.as_database_error().and_then(|e| e.code()).unwrap().into_owned();
            assert_eq!(code, "42501", "{refused}");
        }
        let changed = "UPDATE memory_blocks SET content = ''";
        assert_eq!(conn.execute(changed).await.unwrap().rows_affected(), 0);
        assert_eq!(conn.execute("DELETE FROM memory_facts").await.unwrap().rows_affected(), 0);
    }
    // Its own rows it can write, and move to nobody.
    let own = format!("SELECT set_config('loomflow.partition', '{alice}', false)");
    conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(own))).await.unwrap();
    let moved = format!("UPDATE memory_blocks SET partition = '\\x{}'", owner("bob").partition_hex());
    conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(moved))).await.unwrap_err();
    for statement in
        ["UPDATE memory_episodes SET session = 't'", "DELETE FROM memory_partitions", "TRUNCATE memory_facts"]
    {
        conn.execute(statement).await.unwrap_err();
    }
    conn.close().await.unwrap();
}

/// A profile is of nobody as soon as one row that it counts says that it is another's.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_row_trips_the_profile() {
    for table in ["episodes", "blocks", "facts"] {
        let (database, memory) = filled().await;
        let more = turn(9, "more").with_embedding(vector(&[1.0, 0.0]));
        memory.remember(&scope("alice"), more).await.unwrap();
        memory.profile(&scope("alice")).await.unwrap().open(&scope("alice")).unwrap();
        let hex = owner("alice").partition_hex();
        database
            .sql(&format!(
                "UPDATE memory_{table} SET user_id = 'bob' WHERE ctid =
                   (SELECT min(ctid) FROM memory_{table} WHERE partition = '\\x{hex}')"
            ))
            .await;
        let read = memory.profile(&scope("alice")).await.and_then(|p| p.open(&scope("alice")));
        assert_eq!(read.unwrap_err().kind(), ErrorKind::IsolationViolation, "{table}");
    }
}

/// Nothing says whose an erased partition was, until it is written to again.
#[tokio::test(flavor = "multi_thread")]
async fn nobodys_name_is_left_where_everything_was_erased() {
    let (database, memory) = filled().await;
    let named = "SELECT count(*) FROM memory_partitions WHERE user_id = 'alice'";
    assert_eq!(database.number(named).await, 1);
    for epoch in 1..=3 {
        let alice = scope_at("alice", epoch);
        memory.forget(&alice, &Erase::everything()).await.unwrap();
        assert_eq!(database.number(named).await, 0);
        assert_eq!(memory.epoch(&alice).await.unwrap().get(), epoch);
        let profile = memory.profile(&alice).await.unwrap().open(&alice).unwrap();
        assert_eq!(profile.episodes, 0);
        match epoch {
            1 => drop(memory.remember(&alice, turn(1, "again")).await.unwrap()),
            2 => memory.put_block(&alice, PutBlock::new("note", "x", at(1))).await.unwrap(),
            _ => drop(memory.assert(&alice, NewFact::new("me", "am", "here", at(1))).await.unwrap()),
        }
        assert_eq!(database.number(named).await, 1, "after the write of round {epoch}");
    }
}

/// The statements of hot paths look rows up by index, under row-level security and for whatever partition.
#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_does_not_cost_the_index() {
    let (database, _memory) = filled().await;
    database
        .sql(
            "INSERT INTO memory_blocks (partition, namespace, name, content, place, updated_at)
             SELECT sha256(n::text::bytea), 'app', 'x', '', 0, 0 FROM generate_series(1, 20000) n; ANALYZE memory_blocks",
        )
        .await;
    let mut conn = connect(&database.url()).await;
    let set = format!(
        "SET search_path TO loomflow; SET ROLE {}; SELECT set_config('loomflow.partition', '{}', false)",
        database.role,
        owner("alice").partition_hex()
    );
    conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(set))).await.unwrap();
    let explain = "EXPLAIN (COSTS OFF) SELECT * FROM memory_blocks";
    let plan: Vec<String> = sqlx::query_scalar(explain).fetch_all(&mut conn).await.unwrap();
    assert!(plan.join("\n").contains("Index Cond: (partition = decode(current_setting("), "{plan:#?}");
}
