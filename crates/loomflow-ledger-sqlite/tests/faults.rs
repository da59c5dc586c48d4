//! Reads without their filter: the owner in each row is the other wall, and it holds.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Folder, guessed, held, key, scope, spend};
use futures_util::TryStreamExt as _;
use loomflow_core::{BudgetConfig, ErrorKind, Hold, Ledger as _, Owned, Result, Scope, TenantData as _};
use loomflow_ledger_sqlite::{Fault, SqliteLedger, SqliteLedgerConfig};

fn opens<T>(scope: &Scope, read: Result<Vec<Owned<T>>>) -> Result<usize> {
    read?.into_iter().map(|owned| owned.open(scope)).collect::<Result<Vec<T>>>().map(|all| all.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_lost_its_filter_is_a_violation() {
    let folder = Folder::new();
    let sound = folder.open(BudgetConfig::new()).await;
    for user in ["alice", "bob"] {
        spend(&sound, &scope(user), 3, 3).await;
        let got = held(&sound, &scope(user), &Hold::tokens(key(), 3, 3)).await;
        sound.close(&scope(user), got.id, guessed(1, 1)).await.unwrap();
    }
    let config =
        SqliteLedgerConfig::new(folder.file(), BudgetConfig::new()).with_fault(Fault::NoPartitionFilter);
    let broken = SqliteLedger::connect(config).await.unwrap();
    let alice = scope("alice");
    for (ledger, whole) in [(&sound, true), (&broken, false)] {
        let export = ledger.export(&alice).await.unwrap().try_collect().await;
        for (what, outcome) in [
            ("usage", ledger.usage(&alice).await.map(|_| 1)),
            ("estimates", opens(&alice, ledger.estimates(&alice).await)),
            ("export", opens(&alice, export).map(|all| all / 2)),
        ] {
            match outcome {
                Ok(found) => assert!(whole && found == 1, "{what} handed out what is bob's"),
                Err(error) => {
                    assert!(!whole, "{what}: {error}");
                    assert_eq!(error.kind(), ErrorKind::IsolationViolation, "{what}: {error}");
                    assert!(!format!("{error:?}").contains("bob"), "{what}");
                }
            }
        }
    }
}
