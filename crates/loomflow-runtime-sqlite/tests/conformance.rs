//! The suite of approval stores on a SQLite file.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::Arc;

use common::{Folder, plant, raw};
use loomflow_conformance::approvals::Harness;
use loomflow_runtime_sqlite::{SqliteApprovals, SqliteApprovalsConfig};

async fn fresh() -> Harness {
    let folder = Arc::new(Folder::new());
    let store = SqliteApprovals::connect(SqliteApprovalsConfig::new(folder.file())).await.unwrap();
    Harness::new(Arc::new(store)).with_plant(move |order| {
        let folder = folder.clone();
        async move {
            let mut conn = raw(&folder.file()).await;
            plant(&mut conn, order.scope.owner(), &order.foreign, order.record).await;
            Ok(())
        }
    })
}

loomflow_conformance::approvals!(fresh);
