//! The suite of memory stores on a SQLite file.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::Arc;

use common::{Folder, plant_block, plant_episode, plant_fact, raw};
use loomflow_conformance::memory::{Harness, Planted};
use loomflow_memory_sqlite::{SqliteMemory, SqliteMemoryConfig};

async fn fresh() -> Harness {
    let folder = Arc::new(Folder::new());
    let store = SqliteMemory::connect(SqliteMemoryConfig::new(folder.file())).await.unwrap();
    Harness::new(Arc::new(store)).with_plant(move |order| {
        let folder = folder.clone();
        async move {
            let mut conn = raw(&folder.file()).await;
            let (under, owner) = (order.scope.owner(), &order.foreign);
            match &order.record {
                Planted::Episode(episode) => plant_episode(&mut conn, under, owner, episode).await,
                Planted::Block(block) => plant_block(&mut conn, under, owner, block).await,
                Planted::Fact(fact) => plant_fact(&mut conn, under, owner, fact).await,
                other => panic!("the hook cannot plant {other:?}"),
            }
            Ok(())
        }
    })
}

loomflow_conformance::memory!(fresh);
