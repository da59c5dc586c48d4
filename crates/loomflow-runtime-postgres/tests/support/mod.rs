//! Databases of a test's own, and rows by raw SQL.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::approvals::{Harness, Planted};
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    ApprovalRequest, Digest, Effect, Epoch, Error, ErrorKind, Identity, Namespace, Owner, Result, RunId,
    Scope, Timestamp, UserId,
};
use loomflow_runtime_postgres::{PostgresApprovals, PostgresApprovalsConfig};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _};

/// A database of a test's own, dropped with it as far as that is possible.
pub(crate) struct Database {
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) admin: String,
}

impl Database {
    pub(crate) async fn new() -> Self {
        let admin = loomflow_tests::services::url("postgres");
        let name = format!("la_{:016x}", rand::random::<u64>());
        run(&admin, &format!("CREATE DATABASE {name}")).await;
        Self { role: format!("{name}_app"), name, admin }
    }

    /// Its address, as superuser.
    pub(crate) fn url(&self) -> String {
        let at = self.admin.rfind('/').unwrap();
        format!("{}/{}", &self.admin[..at], self.name)
    }

    pub(crate) fn config(&self) -> PostgresApprovalsConfig {
        PostgresApprovalsConfig::new(self.url())
            .with_app_role(self.role.as_str())
            .with_connect_timeout(Duration::from_secs(20))
    }

    pub(crate) async fn store(&self) -> PostgresApprovals {
        PostgresApprovals::connect(self.config()).await.unwrap()
    }

    /// Statements as superuser, in the schema.
    pub(crate) async fn sql(&self, sql: &str) {
        run(&self.url(), &format!("SET search_path TO loomflow, public; {sql}")).await;
    }

    /// Statements as the application's role, in a transaction that names the partition of `owner`. How many rows they
    /// touched, or why they were refused.
    pub(crate) async fn as_app(&self, owner: Option<&Owner>, sql: &str) -> std::result::Result<u64, String> {
        let mut conn = connect(&self.url()).await;
        let partition = owner.map(Owner::partition_hex).unwrap_or_default();
        let begin = format!(
            "SET search_path TO loomflow; SET ROLE \"{}\"; BEGIN; \
             SELECT set_config('loomflow.partition', '{partition}', true)",
            self.role
        );
        conn.execute(sqlx::raw_sql(AssertSqlSafe(begin))).await.unwrap();
        let done = conn.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await;
        let done = done.map(|done| done.rows_affected()).map_err(|e| e.to_string())?;
        conn.execute("COMMIT").await.map_err(|e| e.to_string())?;
        Ok(done)
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

pub(crate) fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

pub(crate) fn owner(name: &str) -> Owner {
    Owner::new(Namespace::new("app").unwrap(), Identity::User(user(name)))
}

pub(crate) fn scope(name: &str) -> Scope {
    scope_at(name, 0)
}

pub(crate) fn scope_at(name: &str, epoch: u64) -> Scope {
    assume_scope(Namespace::new("app").unwrap(), Identity::User(user(name)), Epoch::new(epoch))
}

pub(crate) fn at(n: i64) -> Timestamp {
    Timestamp::from_micros(1_600_000_000_000_000 + n * 1_000_000)
}

pub(crate) fn binding() -> Digest {
    Digest::of(&[b"call"])
}

/// A request that ops and lead may decide, asked at 0 and open until 100.
pub(crate) fn request(said: &str) -> ApprovalRequest {
    let run = RunId::from_u128(rand::random());
    let mut request = ApprovalRequest::new(run, "c1", "pay", Effect::External, binding());
    request.arguments = Arc::new(serde_json::json!({ "said": said }));
    request.requested_at = at(0);
    request.expires_at = at(100);
    request.approvers = [user("ops"), user("lead")].into();
    request
}

/// A harness over a store in the database at `url`; foreign rows are planted by raw SQL, as superuser.
pub(crate) fn harness(store: PostgresApprovals, url: String) -> Harness {
    Harness::new(Arc::new(store)).with_plant(move |order| {
        let url = url.clone();
        async move { plant(&url, order.scope.owner(), &order.foreign, order.record).await }
    })
}

/// Files a row under one owner's partition that says it belongs to another.
async fn plant(url: &str, filed_under: &Owner, owner: &Owner, record: Planted) -> Result<()> {
    let mut conn = connect(url).await;
    // A grant needs no request of its number then.
    let set = "SET search_path TO loomflow, public; SET session_replication_role TO replica";
    conn.execute(sqlx::raw_sql(set)).await.unwrap();
    let (partition, namespace) = (filed_under.partition(), owner.namespace().as_str());
    let user = owner.user_id().map(UserId::as_str);
    let done = match record {
        Planted::Request(request) => {
            sqlx::query(
                "INSERT INTO approvals_requests (partition, namespace, user_id, id, asked_at, expires_at,
                   deciders, body) VALUES ($1, $2, $3, $4, $5, $6, '{}', $7)",
            )
            .bind(partition)
            .bind(namespace)
            .bind(user)
            .bind(request.id.as_u128().to_be_bytes().to_vec())
            .bind(request.requested_at.as_micros())
            .bind(request.expires_at.as_micros())
            .bind(serde_json::to_string(&request).unwrap())
            .execute(&mut conn)
            .await
        }
        Planted::Grant(grant) => {
            sqlx::query(
                "INSERT INTO approvals_grants (partition, namespace, user_id, id, decider, tool, asked_at, granted_at,
                   expires_at, deciders, body) VALUES ($1, $2, $3, $4, $1, $5, $6, $7, $8, '{}', $9)",
            )
            .bind(partition)
            .bind(namespace)
            .bind(user)
            .bind(grant.id.as_u128().to_be_bytes().to_vec())
            .bind(&*grant.tool)
            .bind(grant.requested_at.as_micros())
            .bind(grant.granted_at.as_micros())
            .bind(grant.expires_at.as_micros())
            .bind(serde_json::to_string(&grant).unwrap())
            .execute(&mut conn)
            .await
        }
        other => {
            return Err(Error::new(ErrorKind::Unsupported, format!("the hook cannot plant {other:?}")));
        }
    };
    done.map(drop).map_err(|e| Error::new(ErrorKind::Transport, "planting failed").with_source(e))
}
