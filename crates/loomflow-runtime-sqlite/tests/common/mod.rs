//! What the tests of this crate share: a folder of their own, rows by raw SQL, tenants and requests.

#![allow(dead_code, reason = "each test uses some of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use loomflow_conformance::approvals::Planted;
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    ApprovalRequest, Digest, Effect, Epoch, Identity, Namespace, Owner, RunId, Scope, Timestamp, UserId,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, SqliteConnection};

/// A folder that is gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("loomflow-approvals-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&path).expect("a folder for the test's files");
        Self(path)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.0.join("approvals.db")
    }

    /// Every byte of every file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let files = std::fs::read_dir(&self.0).expect("the folder is there");
        files.flat_map(|file| std::fs::read(file.expect("a file").path()).unwrap_or_default()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

pub(crate) fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

pub(crate) fn scope(name: &str, epoch: u64) -> Scope {
    assume_scope(Namespace::default(), Identity::User(user(name)), Epoch::new(epoch))
}

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros((1_614_600_000 + seconds) * 1_000_000)
}

pub(crate) fn binding() -> Digest {
    Digest::of(&[b"call"])
}

/// A request that ops may decide, asked at 0 and open until 100.
pub(crate) fn request(said: &str) -> ApprovalRequest {
    let run = RunId::from_u128(rand::random());
    let mut request = ApprovalRequest::new(run, "c1", "pay", Effect::External, binding());
    request.arguments = Arc::new(serde_json::json!({ "said": said }));
    request.requested_at = at(0);
    request.expires_at = at(100);
    request.approvers = [user("ops")].into();
    request
}

/// A connection that knows nothing of the store.
pub(crate) async fn raw(file: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(file).connect().await.expect("the file can be opened")
}

pub(crate) async fn plant(conn: &mut SqliteConnection, under: &Owner, owner: &Owner, record: Planted) {
    let (body, id) = match &record {
        Planted::Request(request) => (serde_json::to_string(request).unwrap(), request.id.as_u128()),
        Planted::Grant(grant) => (serde_json::to_string(grant).unwrap(), grant.id.as_u128()),
        other => panic!("the hook cannot plant {other:?}"),
    };
    let text = sqlx::query("INSERT INTO approvals_texts (namespace, user_id, body) VALUES (?, ?, ?)")
        .bind(owner.namespace().as_str().to_owned())
        .bind(owner.user_id().map(ToString::to_string))
        .bind(body);
    let content = text.execute(&mut *conn).await.unwrap().last_insert_rowid();
    let (partition, id) = (under.partition().to_vec(), id.to_be_bytes().to_vec());
    match record {
        Planted::Request(request) => {
            let insert = sqlx::query("INSERT INTO approvals_requests VALUES (?, ?, ?, ?, ?, 0, NULL)")
                .bind(partition)
                .bind(id)
                .bind(content)
                .bind(request.requested_at.as_micros())
                .bind(request.expires_at.as_micros());
            insert.execute(conn).await.unwrap();
        }
        Planted::Grant(grant) => {
            let insert = sqlx::query("INSERT INTO approvals_grants VALUES (?, ?, ?, ?, ?, ?)")
                .bind(partition)
                .bind(id)
                .bind(content)
                .bind(grant.requested_at.as_micros())
                .bind(grant.granted_at.as_micros())
                .bind(grant.expires_at.as_micros());
            insert.execute(conn).await.unwrap();
        }
        other => panic!("the hook cannot plant {other:?}"),
    }
}
