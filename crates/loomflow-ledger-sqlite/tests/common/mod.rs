//! What the tests of this crate share: a folder of their own, tenants, and a raw connection.

#![allow(dead_code, reason = "each test uses some of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use loomflow_conformance::doubles::ManualClock;
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    BudgetConfig, Charge, Epoch, Granted, Hold, HoldKey, Identity, Ledger as _, Namespace, Reserve, RunId,
    Scope, Timestamp, Usage, UserId,
};
use loomflow_ledger_sqlite::{SqliteLedger, SqliteLedgerConfig};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, SqliteConnection};

/// A folder that is gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("loomflow-ledger-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&path).expect("a folder for the test's files");
        Self(path)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.0.join("ledger.db")
    }

    /// Every byte of every file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let files = std::fs::read_dir(&self.0).expect("the folder is there");
        files.flat_map(|file| std::fs::read(file.expect("a file").path()).unwrap_or_default()).collect()
    }

    pub(crate) async fn open(&self, budget: BudgetConfig) -> SqliteLedger {
        SqliteLedger::connect(SqliteLedgerConfig::new(self.file(), budget)).await.unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Noon of a day of March 2026, far from the border of any window.
pub(crate) fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Timestamp::from_micros(1_773_576_000_000_000)))
}

pub(crate) fn scope_in(namespace: &str, name: &str, epoch: u64) -> Scope {
    let identity = Identity::User(UserId::new(name).unwrap());
    assume_scope(Namespace::new(namespace).unwrap(), identity, Epoch::new(epoch))
}

pub(crate) fn scope(name: &str) -> Scope {
    scope_in("app", name, 0)
}

pub(crate) fn key() -> HoldKey {
    HoldKey::new(RunId::from_u128(rand::random()), 0)
}

pub(crate) fn used(input: u64, output: u64) -> Charge {
    Charge::Used { usage: Usage::new(input, output), estimated: false }
}

pub(crate) fn guessed(input: u64, output: u64) -> Charge {
    Charge::Used { usage: Usage::new(input, output), estimated: true }
}

pub(crate) async fn held(ledger: &SqliteLedger, scope: &Scope, hold: &Hold) -> Granted {
    match ledger.reserve(scope, hold).await.unwrap() {
        Reserve::Held(got) => got,
        Reserve::Refused(no) => panic!("{no}"),
    }
}

pub(crate) async fn spend(ledger: &SqliteLedger, scope: &Scope, input: u64, output: u64) {
    let got = held(ledger, scope, &Hold::tokens(key(), input, output)).await;
    ledger.close(scope, got.id, used(input, output)).await.unwrap();
}

/// A connection that knows nothing of the store.
pub(crate) async fn raw(file: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(file).connect().await.expect("the file can be opened")
}

pub(crate) async fn count(file: &Path, table: &'static str) -> i64 {
    let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    sqlx::query_scalar(sql).fetch_one(&mut raw(file).await).await.unwrap()
}
