//! Writers and erasures at the same time, dropped at any point, through several clients.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::Arc;
use std::task::Poll;

use common::{World, at, connect, new_run, session, shared, turn};
use futures_util::future::join_all;
use loomflow_core::{
    Cardinality, Erase, ErrorKind, FactQuery, FactStore as _, HistoryLimit, MemoryStore, NewFact, PutBlock,
    RecallQuery, Scope, TenantData as _,
};
use loomflow_memory_qdrant::QdrantMemory;

/// What a tenant can read, as one text.
async fn all(memory: &QdrantMemory, scope: &Scope) -> String {
    let episodes = memory.recall(scope, &RecallQuery::new("", 1_000)).await.unwrap();
    let facts = memory.query(scope, &FactQuery::all(1_000).known_at(at(1_000_000))).await.unwrap();
    let blocks = memory.blocks(scope).await.unwrap();
    format!("{episodes:?}{facts:?}{blocks:?}")
}

async fn fill(memory: &QdrantMemory, scope: &Scope, word: &str, session_name: &str) {
    let run = new_run();
    memory.remember(scope, turn(run, &session(session_name), at(1), word, "r")).await.unwrap();
    memory.put_block(scope, PutBlock::new(word, word, at(1))).await.unwrap();
    let fact = NewFact::new("me", "said", word, at(1)).with_sources(vec![run.into()]);
    memory.assert(scope, fact).await.unwrap();
}

type Work<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Lets a future get as far as `polls` polls, and drops it.
async fn abandon<T>(work: Work<'_, T>, polls: usize) -> Option<T> {
    pause(work, polls).await.ok()
}

/// An erasure that its caller left at any await has happened whole, or not at all, for whoever looks next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_erasure_is_whole_or_absent() {
    let (memory, other) = (connect(&shared()).await, connect(&shared()).await);
    let mut whole = 0;
    for polls in 0..60 {
        let world = World::new();
        let alice = world.user("alice");
        fill(&memory, &alice, "falcon", "gone").await;
        fill(&memory, &alice, "badger", "stays").await;
        let fresh = world.user_at("alice", 1);
        let what = Erase::session(session("gone"));
        let done = abandon(Box::pin(memory.forget(&fresh, &what)), polls).await;
        let seen = all(&other, &fresh).await;
        assert!(seen.contains("badger"), "{polls}: {seen}");
        let erased = other.epoch(&fresh).await.unwrap().get() == 1;
        // A block belongs to no session; the episode and the fact have the word as well.
        let left = seen.matches("falcon").count();
        let before = seen.matches("badger").count();
        assert_eq!(erased, left < before, "{polls}: {seen}");
        if erased {
            whole += 1;
            let facts = other.query(&fresh, &FactQuery::all(10).object("falcon")).await.unwrap();
            let limit = HistoryLimit::messages(9);
            let history = other.history(&fresh, &session("gone"), limit).await.unwrap();
            assert!(facts.is_empty() && history.is_empty(), "{polls}: {seen}");
            let late = other.remember(&alice, turn(new_run(), &session("gone"), at(2), "late", "r")).await;
            assert_eq!(late.unwrap_err().kind(), ErrorKind::Erased);
        } else {
            assert!(done.is_none());
        }
        if let Some(line) = done {
            assert_eq!(line.unwrap().total(), 2, "an episode and a fact");
        }
    }
    assert!(whole > 0, "no erasure got far enough to be seen");
}

/// Every writer that began before an erasure is refused, or was before it: nothing of it is there afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_race_an_erasure_leave_nothing() {
    let memories = [connect(&shared()).await, connect(&shared()).await];
    for round in 0..12_i64 {
        let world = Arc::new(World::new());
        fill(&memories[0], &world.user("alice"), "stale", "s").await;
        let mut writers = Vec::new();
        for n in 0..12_i64 {
            let (memory, world) = (memories[n as usize % 2].clone(), world.clone());
            writers.push(tokio::spawn(async move {
                let alice = world.user("alice");
                tokio::time::sleep(std::time::Duration::from_millis(((n * 7 + round * 3) % 23) as u64)).await;
                let result = match n % 4 {
                    0 => memory
                        .remember(&alice, turn(new_run(), &session("s"), at(n), "stale", "r"))
                        .await
                        .map(drop),
                    1 => memory.put_block(&alice, PutBlock::new("stale", "stale", at(n))).await,
                    2 => memory
                        .assert(&alice, NewFact::new("me", "said", &*format!("stale{n}"), at(n)))
                        .await
                        .map(drop),
                    _ => memory.put_block(&alice, PutBlock::new(format!("b{n}"), "stale", at(n))).await,
                };
                if let Err(error) = result {
                    assert_eq!(error.kind(), ErrorKind::Erased, "{error}");
                }
            }));
        }
        tokio::time::sleep(std::time::Duration::from_millis(round as u64 * 2)).await;
        let fresh = world.user_at("alice", 1);
        memories[0].forget(&fresh, &Erase::everything()).await.unwrap();
        // From here on nothing stale may be seen, also while the late writers are still at work.
        for _ in 0..4 {
            assert!(!all(&memories[1], &fresh).await.contains("stale"), "round {round}");
        }
        for writer in join_all(writers).await {
            writer.unwrap();
        }
        assert!(!all(&memories[1], &fresh).await.contains("stale"), "round {round}");
    }
}

/// Of erasures at the same time each has an epoch of its own, or is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erasures_at_the_same_time_never_share_an_epoch() {
    let memories = [connect(&shared()).await, connect(&shared()).await];
    let world = World::new();
    for n in 0..5 {
        fill(&memories[0], &world.user("alice"), &format!("w{n}"), "s").await;
    }
    let scopes: Vec<Scope> = [1, 1, 2, 2].iter().map(|epoch| world.user_at("alice", *epoch)).collect();
    let what = Erase::everything();
    let erasures = scopes.iter().enumerate().map(|(n, scope)| memories[n % 2].forget(scope, &what));
    let results = join_all(erasures).await;
    let mut total = 0;
    for epochs in results.chunks(2) {
        assert!(epochs.iter().filter(|r| r.is_ok()).count() <= 1, "{results:?}");
    }
    for result in &results {
        match result {
            Ok(line) => total += line.total(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
        }
    }
    assert_eq!(total, 15, "every record is counted once: {results:?}");
}

/// Two clients that supersede one fact again and again end with one that is believed, and a history without a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clients_supersede_one_fact() {
    let memories = [connect(&shared()).await, connect(&shared()).await];
    let world = World::new();
    let clients = memories.iter().enumerate().map(|(client, memory)| {
        let alice = world.user("alice");
        async move {
            for n in 0..10 {
                let fact = NewFact::new("me", "lives_in", &*format!("city {client} {n}"), at(n))
                    .with_validity(at(0), None)
                    .with_cardinality(Cardinality::One);
                memory.assert(&alice, fact).await.unwrap();
            }
        }
    });
    join_all(clients).await;
    let alice = world.user("alice");
    let believed = memories[0].query(&alice, &FactQuery::all(100)).await.unwrap();
    assert_eq!(believed.len(), 1, "{believed:?}");
    let profile = memories[1].profile(&alice).await.unwrap().open(&alice).unwrap();
    assert_eq!(profile.facts, 1);
}

/// A dropped write is there whole or not at all, and can be made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_write_is_whole_or_absent() {
    let memory = connect(&shared()).await;
    for polls in 0..16 {
        let world = World::new();
        let alice = world.user("alice");
        let run = new_run();
        let new = || turn(run, &session("s"), at(1), "falcon", "r");
        abandon(Box::pin(memory.remember(&alice, new())), polls).await;
        let tea = || NewFact::new("me", "drinks", "tea", at(1)).with_cardinality(Cardinality::One);
        abandon(Box::pin(memory.assert(&alice, tea())), polls).await;
        abandon(Box::pin(memory.put_block(&alice, PutBlock::new("b", "c", at(1)))), polls).await;
        let limit = HistoryLimit::messages(9);
        let history = memory.history(&alice, &session("s"), limit).await.unwrap();
        assert!(history.is_empty() || history.len() == 2);
        memory.remember(&alice, new()).await.unwrap();
        memory.assert(&alice, tea()).await.unwrap();
        memory.put_block(&alice, PutBlock::new("b", "c", at(1))).await.unwrap();
        let profile = memory.profile(&alice).await.unwrap().open(&alice).unwrap();
        assert_eq!((profile.episodes, profile.facts, profile.blocks), (1, 1, 1));
    }
}

/// Lets a future get as far as `polls` polls, and hands it back.
async fn pause<T>(mut work: Work<'_, T>, polls: usize) -> Result<T, Work<'_, T>> {
    for _ in 0..polls {
        if let Poll::Ready(value) = std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
            return Ok(value);
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    Err(work)
}

/// A writer that pauses at any await while an erasure goes by writes nothing afterwards, to what the erasure left as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_pauses_during_an_erasure_writes_nothing_after_it() {
    let (memory, other) = (connect(&shared()).await, connect(&shared()).await);
    let mut refused = 0;
    for polls in 0..14 {
        let world = World::new();
        let (alice, fresh) = (world.user("alice"), world.user_at("alice", 1));
        fill(&memory, &alice, "old", "stays").await;
        let said = NewFact::new("me", "said", "late", at(2));
        let late = |what: usize| -> Work<'_, loomflow_core::Result<()>> {
            let (memory, alice, said) = (&memory, &alice, said.clone());
            Box::pin(async move {
                match what {
                    0 => memory.put_block(alice, PutBlock::new("old", "late", at(2))).await,
                    1 => memory.put_block(alice, PutBlock::new("new", "late", at(2))).await,
                    2 => memory.put_block(alice, PutBlock::remove("old", at(2))).await,
                    3 => memory.assert(alice, said).await.map(drop),
                    _ => memory
                        .remember(alice, turn(new_run(), &session("s"), at(2), "late", "r"))
                        .await
                        .map(drop),
                }
            })
        };
        let mut paused = Vec::new();
        for what in 0..5 {
            match pause(late(what), polls).await {
                Ok(done) => done.unwrap(),
                Err(work) => paused.push(work),
            }
        }
        other.forget(&fresh, &Erase::session(session("gone"))).await.unwrap();
        let before = all(&other, &fresh).await;
        for work in paused {
            match work.await {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Erased, "{error}");
                    refused += 1;
                }
            }
        }
        assert_eq!(all(&other, &fresh).await, before, "{polls}");
    }
    assert!(refused > 20, "{refused}");
}

/// An erasure whose caller pauses at any await, while others finish it and go on, takes nothing of what came after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_that_pauses_takes_nothing_that_came_after_it() {
    let (memory, other) = (connect(&shared()).await, connect(&shared()).await);
    for what in [Erase::session(session("s")), Erase::everything()] {
        for polls in 0..40 {
            let world = World::new();
            let (alice, fresh) = (world.user("alice"), world.user_at("alice", 1));
            let run = new_run();
            memory.remember(&alice, turn(run, &session("s"), at(1), "old", "r")).await.unwrap();
            for object in ["old", "older"] {
                let fact = NewFact::new("me", "said", object, at(1)).with_sources(vec![run.into()]);
                memory.assert(&alice, fact).await.unwrap();
            }
            let (line, before) = match pause(Box::pin(memory.forget(&fresh, &what)), polls).await {
                Ok(line) => (line, None),
                Err(paused) => {
                    // Finishes it, if it was begun; the same run and the same facts again are new ones.
                    if other.epoch(&fresh).await.unwrap().get() == 0 {
                        continue;
                    }
                    other.remember(&fresh, turn(run, &session("s"), at(2), "new", "r")).await.unwrap();
                    let fact = NewFact::new("me", "said", "new", at(2)).with_sources(vec![run.into()]);
                    other.assert(&fresh, fact).await.unwrap();
                    let before = all(&other, &fresh).await;
                    assert!(!before.contains("old"), "{before}");
                    (paused.await, Some(before))
                }
            };
            assert_eq!(line.unwrap().total(), 3, "an episode and two facts, whoever did the work");
            if let Some(before) = before {
                assert_eq!(all(&other, &fresh).await, before, "{polls}");
            }
        }
    }
}

/// The counts of an erasure that many others overtook are not known, and are not given as none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_that_are_not_kept_any_more_are_not_said_to_be_zero() {
    let (memory, other) = (connect(&shared()).await, connect(&shared()).await);
    let mut unknown = 0;
    for polls in 0..60 {
        let world = World::new();
        let (alice, fresh) = (world.user("alice"), world.user_at("alice", 1));
        fill(&memory, &alice, "falcon", "s").await;
        let what = Erase::everything();
        let Err(paused) = pause(Box::pin(memory.forget(&fresh, &what)), polls).await else { break };
        if other.epoch(&fresh).await.unwrap().get() == 0 {
            continue;
        }
        for epoch in 2..12 {
            other.forget(&world.user_at("alice", epoch), &what).await.unwrap();
        }
        match paused.await {
            Ok(line) if line.counts.is_empty() => {
                assert_eq!(line.retained.len(), 2, "{line:?}");
                unknown += 1;
            }
            Ok(line) => assert_eq!(line.total(), 3, "{line:?}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
        }
    }
    assert!(unknown > 0, "no erasure was overtaken after it was decided");
}
