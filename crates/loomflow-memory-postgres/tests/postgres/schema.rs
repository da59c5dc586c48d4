//! Migrations, versions, roles, and errors that say what to do.

use loomflow_core::{ErrorKind, MemoryStore as _, RecallQuery, TenantData as _};
use loomflow_memory_postgres::{PostgresMemory, PostgresMemoryConfig};

use crate::support::{Database, run, scope, turn, vector};

async fn refused(config: PostgresMemoryConfig) -> (ErrorKind, String) {
    let error = PostgresMemory::connect(config).await.unwrap_err();
    let mut text = format!("{error} {error:?}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text += &format!(" {cause} {cause:?}");
        source = cause.source();
    }
    assert!(!text.contains("hunter2"), "{text}");
    (error.kind(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_is_made_once_and_a_newer_one_is_left_alone() {
    let database = Database::new().await;
    let checks = || database.config().with_migrate(false);
    let (kind, text) = refused(checks()).await;
    assert_eq!(kind, ErrorKind::Config);
    assert!(text.contains("is version 0") && text.contains("needs version 1"), "{text}");
    PostgresMemory::migrate(&database.config()).await.unwrap();
    PostgresMemory::migrate(&database.config()).await.unwrap();
    PostgresMemory::connect(checks()).await.unwrap();
    database
        .sql("UPDATE schema_versions SET version = 7; ALTER TABLE memory_facts DROP COLUMN sources")
        .await;
    for config in [checks(), database.config()] {
        let (kind, text) = refused(config).await;
        assert_eq!(kind, ErrorKind::Config);
        assert!(text.contains("version 7") && text.contains("up to 1"), "{text}");
    }
    assert_eq!(PostgresMemory::migrate(&database.config()).await.unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(database.number("SELECT version::bigint FROM schema_versions").await, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_migrate_at_once_make_one_schema() {
    let database = Database::new().await;
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let config = database.config();
            tokio::spawn(async move { PostgresMemory::connect(config).await.map(drop) })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(database.number("SELECT version::bigint FROM schema_versions").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_of_one_server_may_make_the_role_at_once() {
    let databases = [Database::new().await, Database::new().await, Database::new().await];
    let role = databases[2].role.clone();
    let tasks: Vec<_> = databases
        .iter()
        .map(|database| {
            let config = database.config().with_app_role(role.as_str());
            tokio::spawn(async move { PostgresMemory::connect(config).await.map(drop) })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}

/// Wherever a migration is cut off, the next one completes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_died_is_continued() {
    let database = Database::new().await;
    for n in 0..12_u64 {
        let admin = database.admin.clone();
        let name = database.name.clone();
        let config = database.config();
        let task = tokio::spawn(async move { PostgresMemory::migrate(&config).await });
        tokio::time::sleep(std::time::Duration::from_millis(n * 3)).await;
        let kill = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
        run(&admin, &kill).await;
        // It was done before it was killed, or it was not; both are well.
        drop(task.await.unwrap());
    }
    let memory = database.memory().await;
    memory.remember(&scope("alice"), turn(1, "falcon")).await.unwrap();
    assert_eq!(memory.recall(&scope("alice"), &RecallQuery::new("falcon", 9)).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_row_level_security_does_not_bind_is_refused() {
    let database = Database::new().await;
    database.memory().await;
    let role = &database.role;
    let breaks = [
        ("ALTER TABLE memory_facts DISABLE ROW LEVEL SECURITY", "ENABLE ROW LEVEL SECURITY"),
        ("ALTER TABLE memory_blocks NO FORCE ROW LEVEL SECURITY", "FORCE ROW LEVEL SECURITY"),
        ("DROP POLICY loomflow_partition ON memory_facts", "run the migration again"),
        ("ALTER POLICY loomflow_partition ON memory_facts USING (true) WITH CHECK (true)", "was changed"),
        (
            "ALTER POLICY loomflow_partition ON memory_facts
             USING (partition = decode(current_setting('loomflow.partition', true), 'hex') OR true)
             WITH CHECK (partition = decode(current_setting('loomflow.partition', true), 'hex') OR true)",
            "was changed",
        ),
    ];
    for (sql, says) in breaks {
        database.sql(sql).await;
        let (kind, text) = refused(database.config()).await;
        assert!(kind == ErrorKind::Config && text.contains(says), "{sql}: {text}");
        PostgresMemory::migrate(&database.config()).await.unwrap();
        database.memory().await;
    }
    database.sql("CREATE POLICY all_of_it ON memory_facts USING (true)").await;
    let (kind, text) = refused(database.config()).await;
    assert!(kind == ErrorKind::Config && text.contains("another policy"), "{text}");
    database.sql("DROP POLICY all_of_it ON memory_facts").await;
    for (set, reset) in [("SUPERUSER", "NOSUPERUSER"), ("BYPASSRLS", "NOBYPASSRLS")] {
        database.sql(&format!("ALTER ROLE {role} {set}")).await;
        let (kind, text) = refused(database.config()).await;
        assert!(kind == ErrorKind::Config && text.contains("is not bound by row-level security"), "{text}");
        database.sql(&format!("ALTER ROLE {role} {reset}")).await;
    }
    database.sql(&format!("ALTER TABLE memory_facts OWNER TO {role}")).await;
    let (kind, text) = refused(database.config()).await;
    assert!(kind == ErrorKind::Config && text.contains("OWNER TO"), "{text}");
}

/// A user without privileges owns nothing and acts as the role; one that was not granted it is told how.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_user_needs_the_role_and_nothing_else() {
    let database = Database::new().await;
    database.memory().await;
    let user = format!("{}_user", database.name);
    run(&database.admin, &format!("CREATE ROLE {user} LOGIN NOINHERIT")).await;
    let config = || {
        let mut config = PostgresMemoryConfig::new(database.url_as(&user));
        config.app_role.clone_from(&database.role);
        config.with_migrate(false)
    };
    let (kind, text) = refused(config()).await;
    assert!(kind == ErrorKind::Config && text.contains("GRANT"), "{text}");
    run(&database.admin, &format!("GRANT {} TO {user}", database.role)).await;
    let memory = PostgresMemory::connect(config()).await.unwrap();
    memory.remember(&scope("alice"), turn(1, "falcon")).await.unwrap();
    assert_eq!(memory.recall(&scope("alice"), &RecallQuery::new("", 9)).await.unwrap().len(), 1);
    drop(memory);
    run(&database.admin, &format!("DROP ROLE {user}")).await;
}

/// An owner without superuser rights can migrate, where an administrator made the extension.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_is_no_superuser_can_migrate() {
    let database = Database::new().await;
    let user = format!("{}_owner", database.name);
    run(&database.admin, &format!("CREATE ROLE {user} LOGIN CREATEROLE")).await;
    run(&database.admin, &format!("GRANT CREATE ON DATABASE {} TO {user}", database.name)).await;
    let mut config = database.config();
    config.url = PostgresMemoryConfig::new(database.url_as(&user)).url;
    // A new database has what its template has.
    run(&database.url(), "DROP EXTENSION IF EXISTS vector").await;
    let (kind, text) = refused(config.clone()).await;
    assert!(kind == ErrorKind::Config && text.contains("CREATE EXTENSION"), "{text}");
    run(&database.url(), "CREATE EXTENSION vector").await;
    let memory = PostgresMemory::connect(config.clone()).await.unwrap();
    let said = turn(1, "falcon").with_embedding(vector(&[1.0, 0.0]));
    memory.remember(&scope("alice"), said).await.unwrap();
    assert_eq!(memory.recall(&scope("bob"), &RecallQuery::new("", 9)).await.unwrap().len(), 0);
    PostgresMemory::maintain(&config.with_index_above(0)).await.unwrap();
    let indexes = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'memory_episodes_near%'";
    assert_eq!(database.number(indexes).await, 1, "the owner counts rows that it cannot read as a tenant");
    assert_eq!(database.number("SELECT count(*) FROM memory_partitions WHERE indexed").await, 1);
    drop(memory);
    run(&database.url(), &format!("DROP OWNED BY {user} CASCADE")).await;
    run(&database.admin, &format!("REVOKE ALL ON DATABASE {} FROM {user}", database.name)).await;
    run(
        &database.admin,
        &format!("DROP OWNED BY {user}; DROP ROLE IF EXISTS {}; DROP ROLE {user}", database.role),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_connecting_say_what_to_do_and_no_password() {
    let database = Database::new().await;
    let with = |url: String| PostgresMemoryConfig::new(url);
    let url = database.url().replace("postgres@", "postgres:hunter2@");
    let no_database = format!("{url}_not_there");
    let server = url.split('@').nth(1).and_then(|rest| rest.split('/').next()).unwrap();
    let no_port = url.replace(server, "127.0.0.1:1");
    let no_host = url.replace(server, "no-such-host.invalid");
    let no_user = url.replace("postgres:hunter2", "nobody_here:hunter2");
    for (url, kind, says) in [
        (no_database, ErrorKind::Config, "no such database"),
        (no_port, ErrorKind::Unreachable, "is it up"),
        (no_host, ErrorKind::Unreachable, "host and port"),
        (no_user, ErrorKind::Config, "refused the user or the password"),
        ("postgres://x:hunter2@h:port/d".to_owned(), ErrorKind::Config, "postgres://user:password@host"),
    ] {
        let (found, text) = refused(with(url)).await;
        assert!(found == kind && text.contains(says), "{found:?} {text}");
    }
    let (kind, _) = refused(with(database.url()).with_schema("a\"b")).await;
    assert_eq!(kind, ErrorKind::Config);
    let shown = format!("{:?}", with(url.clone()));
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_of_one_database_are_apart() {
    let database = Database::new().await;
    let one = database.memory().await;
    let two = PostgresMemory::connect(database.config().with_schema("second")).await.unwrap();
    one.remember(&scope("alice"), turn(1, "falcon")).await.unwrap();
    assert!(two.recall(&scope("alice"), &RecallQuery::new("", 9)).await.unwrap().is_empty());
    assert!(two.ready().await.ready);
}
