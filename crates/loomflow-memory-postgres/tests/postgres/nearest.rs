//! Approximate indexes: of large partitions alone, so that nobody's rows hide another's.

use loomflow_core::{Erase, HistoryLimit, MemoryStore as _, RecallQuery, SessionId, TenantData as _};
use loomflow_memory_postgres::PostgresMemory;
use sqlx::Executor as _;

use crate::support::{Database, connect, owner, scope, scope_at, turn, vector};

/// Adds `rows` episodes of `user` whose vectors are near (1, 1, 1, 1), by raw SQL.
async fn crowd(database: &Database, user: &str, rows: u32) {
    crowd_of(database, user, "s", rows, 10).await;
}

/// The larger `closeness`, the nearer.
async fn crowd_of(database: &Database, user: &str, session: &str, rows: u32, closeness: u32) {
    database
        .sql(&format!(
            "INSERT INTO loomflow.memory_episodes (partition, namespace, user_id, id, session, said_at, message_count,
               term_count, terms, messages, embedding)
             SELECT '\\x{hex}', 'app', '{user}', decode(md5('{user}{session}' || n), 'hex'), '{session}', n, 1, 0, '{{}}', '[]',
               ARRAY[1 + random() / {closeness}, 1 + random() / {closeness}, 1 + random() / {closeness}, 1]::real[]::vector
             FROM generate_series(1, {rows}) n;
             ANALYZE memory_episodes",
            hex = owner(user).partition_hex()
        ))
        .await;
}

async fn near(memory: &PostgresMemory, user: &str) -> Vec<String> {
    let query = RecallQuery::new("", 3).with_embedding(vector(&[1.0, 1.0, 1.0, 1.0]));
    let found = memory.recall(&scope_at(user, 9), &query).await.unwrap();
    found.into_iter().map(|m| m.open(&scope(user)).unwrap().episode.input().to_owned()).collect()
}

/// The one row of a tenant is found among very many of others that are nearer to the query, and so is the one of a tenant
/// whose own partition has an index, and no index holds rows of two.
#[tokio::test(flavor = "multi_thread")]
async fn the_only_own_row_is_found_among_many_that_are_nearer() {
    let database = Database::new().await;
    let memory = database.memory().await;
    let all = [("small", "own"), ("large", "first"), ("other", "first")];
    for (user, said) in all {
        let episode = turn(1, said).with_embedding(vector(&[1.0, 0.2, 0.2, 1.0]));
        memory.remember(&scope(user), episode).await.unwrap();
    }
    crowd(&database, "large", 4_000).await;
    crowd(&database, "other", 4_000).await;
    let config = database.config().with_index_above(1_000);
    PostgresMemory::maintain(&config).await.unwrap();
    PostgresMemory::maintain(&config).await.unwrap();
    let indexes =
        "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'memory_episodes_near%' AND indexdef LIKE
        '%WHERE%partition = %'";
    assert_eq!(database.number(indexes).await, 2, "one for each large partition");
    let marked = "SELECT count(*) FROM memory_partitions WHERE indexed";
    assert_eq!(database.number(marked).await, 2);
    assert_eq!(near(&memory, "small").await, ["own"]);
    assert_eq!(near(&memory, "large").await.len(), 3);
    let exact = memory.recall(&scope("large"), &RecallQuery::new("first", 3)).await.unwrap();
    assert_eq!(exact.len(), 1, "words are searched exactly");
    let both = RecallQuery::new("first", 3).with_embedding(vector(&[1.0, 1.0, 1.0, 1.0]));
    let both = memory.recall(&scope("large"), &both).await.unwrap();
    assert_eq!(
        both[0].clone().open(&scope("large")).unwrap().episode.input(),
        "first",
        "good at both is first"
    );
    uses_its_index(&database, "large").await;
    // A partition whose data was erased may begin with vectors of another length, and loses its index.
    memory.forget(&scope_at("large", 9), &Erase::everything()).await.unwrap();
    let other = turn(1, "short").with_embedding(vector(&[1.0, 1.0]));
    memory.remember(&scope_at("large", 9), other).await.unwrap();
    PostgresMemory::maintain(&config).await.unwrap();
    assert_eq!(database.number(indexes).await, 1);
    assert_eq!(database.number(marked).await, 1);
}

/// However many of the nearest the prompt has already, and however many are wanted, the index gives as many others.
#[tokio::test(flavor = "multi_thread")]
async fn the_index_is_searched_past_what_is_hidden() {
    let database = Database::new().await;
    let memory = database.memory().await;
    let first = turn(1, "first").with_embedding(vector(&[1.0, 0.2, 0.2, 1.0]));
    memory.remember(&scope("large"), first).await.unwrap();
    crowd_of(&database, "large", "now", 1_200, 1_000).await;
    crowd_of(&database, "large", "then", 1_800, 2).await;
    PostgresMemory::maintain(&database.config().with_index_above(1_000)).await.unwrap();
    uses_its_index(&database, "large").await;
    let nearest = |limit| RecallQuery::new("", limit).with_embedding(vector(&[1.0, 1.0, 1.0, 1.0]));
    assert_eq!(memory.recall(&scope("large"), &nearest(1_500)).await.unwrap().len(), 1_500);
    let mut query = nearest(5);
    query.exclude_history = Some((SessionId::new("now").unwrap(), HistoryLimit::messages(1_200)));
    let found = memory.recall(&scope("large"), &query).await.unwrap();
    assert_eq!(found.len(), 5);
    for found in found {
        assert_eq!(found.open(&scope("large")).unwrap().episode.session.as_str(), "then");
    }
}

/// One partition whose index cannot be made keeps no other from theirs, and one of long vectors gets none.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_index_stops_nobody_elses() {
    let database = Database::new().await;
    let memory = database.memory().await;
    for user in ["one", "two"] {
        let first = turn(1, "first").with_embedding(vector(&[1.0, 0.2, 0.2, 1.0]));
        memory.remember(&scope(user), first).await.unwrap();
        crowd(&database, user, 50).await;
    }
    for n in 0..3_u8 {
        let long = vec![f32::from(n) + 70_000.0; 2_001];
        memory.remember(&scope("long"), turn(1, "long").with_embedding(vector(&long))).await.unwrap();
    }
    let earlier = owner("one").partition_hex().min(owner("two").partition_hex());
    let taken = format!("memory_episodes_near_{}_4", &earlier[..32]);
    database.sql(&format!("CREATE TABLE \"{taken}\" ()")).await;
    let config = database.config().with_index_above(1);
    PostgresMemory::maintain(&config).await.unwrap_err();
    let indexes = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'memory_episodes_near%'";
    let marked = "SELECT count(*) FROM memory_partitions WHERE indexed";
    assert_eq!((database.number(indexes).await, database.number(marked).await), (1, 1));
    database.sql(&format!("DROP TABLE \"{taken}\"")).await;
    PostgresMemory::maintain(&config).await.unwrap();
    assert_eq!((database.number(indexes).await, database.number(marked).await), (2, 2));
    let long = turn(2, "long").with_embedding(vector(&[70_000.0; 2_001]));
    memory.remember(&scope("long"), long).await.unwrap();
}

/// As the application's role, under row-level security, the statement that recall makes is answered by the index.
async fn uses_its_index(database: &Database, user: &str) {
    let mut conn = connect(&database.url()).await;
    let hex = owner(user).partition_hex();
    let set = format!(
        "SET search_path TO loomflow, public; SET ROLE {}; SELECT set_config('loomflow.partition', '{hex}', false)",
        database.role
    );
    conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(set))).await.unwrap();
    let explain = format!(
        "EXPLAIN (COSTS OFF) SELECT id FROM memory_episodes
         WHERE partition = '\\x{hex}'::bytea AND vector_dims(embedding) = 4
         ORDER BY (embedding::vector(4)) <=> '[1,1,1,1]'::vector(4) LIMIT 100"
    );
    let plan: Vec<String> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(explain)).fetch_all(&mut conn).await.unwrap();
    let plan = plan.join("\n");
    assert!(plan.contains(&format!("memory_episodes_near_{}_4", &hex[..32])), "{plan}");
}
