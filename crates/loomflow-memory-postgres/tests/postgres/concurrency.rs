//! Two processes' pools on one database: what is read and then written is never done at once.

use loomflow_core::{
    Cardinality, Erase, ErrorKind, FactQuery, FactStore as _, MemoryStore as _, NewFact, RecallQuery,
    TenantData as _,
};

use crate::support::{Database, at, scope, scope_at, turn, vector};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_values_asserted_by_two_pools_one_is_current() {
    let database = Database::new().await;
    let pools = [database.memory().await, database.memory().await];
    let tasks: Vec<_> = (0..40_i64)
        .map(|n| {
            let memory = pools[usize::try_from(n).unwrap() % 2].clone();
            tokio::spawn(async move {
                let fact = NewFact::new("ada", "lives_in", format!("city {n}"), at(n % 7));
                memory.assert(&scope("ada"), fact.with_cardinality(Cardinality::One)).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let facts = pools[0].query(&scope("ada"), &FactQuery::all(1_000)).await.unwrap();
    let facts: Vec<_> = facts.into_iter().map(|f| f.open(&scope("ada")).unwrap()).collect();
    for (i, a) in facts.iter().enumerate() {
        for b in &facts[i + 1..] {
            let apart = a.valid_until.is_some_and(|end| end <= b.valid_from)
                || b.valid_until.is_some_and(|end| end <= a.valid_from);
            assert!(apart, "two values hold at once: {a:?} {b:?}");
        }
    }
}

/// Writers and an erasure race: what was acknowledged after the erasure began is refused or gone, and nothing comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_written_back_after_an_erasure() {
    let database = Database::new().await;
    let pools = [database.memory().await, database.memory().await];
    for round in 1..=8 {
        let writers: Vec<_> = (0..12)
            .map(|n| {
                let memory = pools[n % 2].clone();
                tokio::spawn(async move {
                    let written = memory.remember(&scope_at("eve", round - 1), turn(1, "falcon")).await;
                    let fact = NewFact::new("eve", "said", format!("{n}"), at(1));
                    let asserted = memory.assert(&scope_at("eve", round - 1), fact).await;
                    for kind in [written.err().map(|e| e.kind()), asserted.err().map(|e| e.kind())] {
                        assert!(kind.is_none_or(|kind| kind == ErrorKind::Erased), "{kind:?}");
                    }
                })
            })
            .collect();
        pools[0].forget(&scope_at("eve", round), &Erase::everything()).await.unwrap();
        for writer in writers {
            writer.await.unwrap();
        }
        let left = pools[1].recall(&scope_at("eve", round), &RecallQuery::new("", 100)).await.unwrap();
        assert!(left.is_empty(), "an erased user's late writes came back: {left:?}");
        assert!(pools[1].query(&scope_at("eve", round), &FactQuery::all(9)).await.unwrap().is_empty());
    }
}

/// Of two first vectors of different kinds that come at once, one stands and the other is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_partition_has_one_vector_space_whoever_comes_first() {
    let database = Database::new().await;
    let pools = [database.memory().await, database.memory().await];
    for round in 0..20_i64 {
        let user = format!("u{round}");
        if round % 2 == 0 {
            pools[0].remember(&scope(&user), turn(0, "no vector")).await.unwrap();
        }
        let tasks: Vec<_> = (0..4_usize)
            .map(|n| {
                let (memory, user) = (pools[n % 2].clone(), user.clone());
                let components = if n < 2 { vec![1.0, 0.0] } else { vec![1.0, 0.0, 0.0] };
                let said = turn(1, "falcon").with_embedding(vector(&components));
                tokio::spawn(async move { memory.remember(&scope(&user), said).await.map_err(|e| e.kind()) })
            })
            .collect();
        let mut written = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => written += 1,
                Err(kind) => assert_eq!(kind, ErrorKind::Config),
            }
        }
        assert_eq!(written, 2, "two are of one kind");
    }
    let spaces = "SELECT count(*) FROM (SELECT partition FROM memory_episodes WHERE embedding IS NOT NULL
        GROUP BY partition HAVING count(DISTINCT vector_dims(embedding)) > 1) mixed";
    assert_eq!(database.number(spaces).await, 0);
}
