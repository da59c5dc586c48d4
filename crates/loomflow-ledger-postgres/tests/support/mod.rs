//! Databases of a test's own, and rows by raw SQL.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::ManualClock;
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    BudgetConfig, Charge, Epoch, Granted, Hold, HoldKey, Identity, Ledger as _, Namespace, Owner, Reserve,
    RunId, Scope, Timestamp, Usage, UserId,
};
use loomflow_ledger_postgres::{PostgresLedger, PostgresLedgerConfig};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _};

/// A database of a test's own, dropped with it as far as that is possible.
pub(crate) struct Database {
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) admin: String,
}

impl Database {
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

    /// A ledger in it, with a role of its own, so that no two tests meet in the cluster.
    pub(crate) fn config(&self, budget: BudgetConfig) -> PostgresLedgerConfig {
        PostgresLedgerConfig::new(self.url(), budget)
            .with_app_role(self.role.as_str())
            .with_connect_timeout(Duration::from_secs(20))
    }

    pub(crate) async fn ledger(&self, budget: BudgetConfig) -> PostgresLedger {
        PostgresLedger::connect(self.config(budget)).await.unwrap()
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

fn identity(user: &str) -> Identity {
    Identity::User(UserId::new(user).unwrap())
}

pub(crate) fn scope(user: &str) -> Scope {
    scope_at(user, 0)
}

pub(crate) fn scope_at(user: &str, epoch: u64) -> Scope {
    assume_scope(Namespace::new("app").unwrap(), identity(user), Epoch::new(epoch))
}

pub(crate) fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Timestamp::from_micros(1_780_000_000_000_000)))
}

/// A key that no other hold has.
pub(crate) fn key() -> HoldKey {
    HoldKey::new(RunId::from_u128(rand::random()), 0)
}

pub(crate) fn hold(tokens: u64) -> Hold {
    Hold::tokens(key(), tokens, 0)
}

pub(crate) fn used(tokens: u64) -> Charge {
    Charge::Used { usage: Usage::new(tokens, 0), estimated: false }
}

pub(crate) fn estimated(tokens: u64) -> Charge {
    Charge::Used { usage: Usage::new(tokens, 0), estimated: true }
}

pub(crate) async fn held(ledger: &PostgresLedger, scope: &Scope, hold: &Hold) -> Granted {
    match ledger.reserve(scope, hold).await.unwrap() {
        Reserve::Held(granted) => granted,
        Reserve::Refused(refusal) => panic!("refused: {refusal}"),
    }
}
