//! Databases of a test's own, and rows by raw SQL.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::time::Duration;

use loomflow_conformance::memory::{Harness, Planted};
use loomflow_core::danger::assume_scope;
use loomflow_core::rules::words;
use loomflow_core::{
    Embedding, Epoch, Error, ErrorKind, Identity, Message, Namespace, NewEpisode, Owner, Result, RunId,
    Scope, SessionId, Timestamp, UserId,
};
use loomflow_memory_postgres::{PostgresMemory, PostgresMemoryConfig};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _};

/// A database of a test's own, dropped with it as far as that is possible.
pub(crate) struct Database {
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) admin: String,
}

impl Database {
    /// A fresh database.
    pub(crate) async fn new() -> Self {
        Self::on(&loomflow_tests::services::url("postgres")).await
    }

    /// A fresh database of the server at `admin`.
    pub(crate) async fn on(admin: &str) -> Self {
        let name = format!("lf_{:016x}", rand::random::<u64>());
        run(admin, &format!("CREATE DATABASE {name}")).await;
        Self { role: format!("{name}_app"), name, admin: admin.to_owned() }
    }

    /// Its address, as superuser.
    pub(crate) fn url(&self) -> String {
        let at = self.admin.rfind('/').unwrap();
        format!("{}/{}", &self.admin[..at], self.name)
    }

    /// Its address, as another user.
    pub(crate) fn url_as(&self, user: &str) -> String {
        self.url().replacen("postgres@", &format!("{user}@"), 1)
    }

    /// A memory in it, with a role of its own, so that no two tests meet in the cluster.
    pub(crate) fn config(&self) -> PostgresMemoryConfig {
        PostgresMemoryConfig::new(self.url())
            .with_app_role(self.role.as_str())
            .with_connect_timeout(Duration::from_secs(20))
    }

    pub(crate) async fn memory(&self) -> PostgresMemory {
        PostgresMemory::connect(self.config()).await.unwrap()
    }

    /// Statements as superuser, in the schema.
    pub(crate) async fn sql(&self, sql: &str) {
        run(&self.url(), &format!("SET search_path TO loomflow, public; {sql}")).await;
    }

    /// One number, as superuser, in the schema.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let mut conn = connect(&self.url()).await;
        conn.execute("SET search_path TO loomflow, public").await.unwrap();
        let row = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(&mut conn).await.unwrap();
        row.try_get::<i64, _>(0).unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (admin, name, role) = (self.admin.clone(), self.name.clone(), self.role.clone());
        let drop = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let Ok(mut conn) = PgConnection::connect(&admin).await else { return };
                for sql in [
                    format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
                    format!("DROP ROLE IF EXISTS {role}"),
                ] {
                    // What is left behind has a random name and is in nobody's way.
                    drop(conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await);
                }
            });
        });
        drop.join().unwrap();
    }
}

pub(crate) async fn connect(url: &str) -> PgConnection {
    let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
    options.disable_statement_logging().connect().await.unwrap()
}

pub(crate) async fn run(url: &str, sql: &str) {
    let mut conn = connect(url).await;
    conn.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.unwrap();
    conn.close().await.unwrap();
}

pub(crate) fn owner(user: &str) -> Owner {
    Owner::new(Namespace::new("app").unwrap(), identity(user))
}

pub(crate) fn identity(user: &str) -> Identity {
    Identity::User(UserId::new(user).unwrap())
}

pub(crate) fn scope(user: &str) -> Scope {
    scope_at(user, 0)
}

pub(crate) fn scope_at(user: &str, epoch: u64) -> Scope {
    assume_scope(Namespace::new("app").unwrap(), identity(user), Epoch::new(epoch))
}

pub(crate) fn at(n: i64) -> Timestamp {
    Timestamp::from_micros(1_600_000_000_000_000 + n * 1_000_000)
}

pub(crate) fn turn(n: i64, said: &str) -> NewEpisode {
    let messages = vec![Message::user(said), Message::assistant("noted")];
    NewEpisode::new(RunId::from_u128(rand::random()), SessionId::new("s").unwrap(), at(n), messages)
}

pub(crate) fn vector(components: &[f32]) -> Embedding {
    Embedding::new("test", components)
}

/// A harness over a memory in the database at `url`; foreign rows are planted by raw SQL, as superuser.
pub(crate) fn harness(memory: PostgresMemory, url: String) -> Harness {
    Harness::new(std::sync::Arc::new(memory)).with_plant(move |order| {
        let url = url.clone();
        async move { plant(&url, order.scope.owner(), &order.foreign, order.record).await }
    })
}

/// Files a row under one owner's partition that says it belongs to another.
pub(crate) async fn plant(url: &str, filed_under: &Owner, owner: &Owner, record: Planted) -> Result<()> {
    let mut conn = connect(url).await;
    conn.execute("SET search_path TO loomflow, public").await.unwrap();
    let (partition, namespace) = (filed_under.partition(), owner.namespace().as_str());
    let user = owner.user_id().map(UserId::as_str);
    let done = match record {
        Planted::Episode(new) => {
            let terms = words::of_episode(&new.messages);
            let terms: Vec<i64> = terms.iter().map(|t| t.cast_signed()).collect();
            sqlx::query(
                "INSERT INTO memory_episodes (partition, namespace, user_id, id, session, said_at, message_count,
                   term_count, terms, messages) VALUES ($1, $2, $3, $4, $5, $6, $7, cardinality($8), $8, $9)",
            )
            .bind(partition)
            .bind(namespace)
            .bind(user)
            .bind(loomflow_core::EpisodeId::from(new.run).as_u128().to_be_bytes().to_vec())
            .bind(new.session.as_str())
            .bind(new.at.as_micros())
            .bind(i32::try_from(new.messages.len()).unwrap())
            .bind(terms)
            .bind(serde_json::to_string(&new.messages).unwrap())
            .execute(&mut conn)
            .await
        }
        Planted::Block(block) => {
            sqlx::query(
                "INSERT INTO memory_blocks (partition, namespace, user_id, name, content, place, updated_at)
                 VALUES ($1, $2, $3, $4, $5, 0, $6)",
            )
            .bind(partition)
            .bind(namespace)
            .bind(user)
            .bind(&*block.name)
            .bind(block.content.as_deref().unwrap().as_bytes())
            .bind(block.at.as_micros())
            .execute(&mut conn)
            .await
        }
        Planted::Fact(fact) => sqlx::query(
            "INSERT INTO memory_facts (partition, namespace, user_id, id, subject, predicate, object, key,
                   confidence, valid_from, known_from, sources, term_count, terms)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 100, $8, $8, '{}', 0, '{}')",
        )
        .bind(partition)
        .bind(namespace)
        .bind(user)
        .bind(rand::random::<u128>().to_be_bytes().to_vec())
        .bind(fact.subject.as_bytes())
        .bind(fact.predicate.as_bytes())
        .bind(fact.object.as_bytes())
        .bind(fact.recorded_at.as_micros())
        .execute(&mut conn)
        .await,
        other => return Err(Error::new(ErrorKind::Unsupported, format!("the hook cannot plant {other:?}"))),
    };
    done.map(drop).map_err(|e| Error::new(ErrorKind::Transport, "planting failed").with_source(e))
}
