//! One test a law: isolation, bounds, eviction that forgets no erasure, determinism.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    AssertOutcome, Cardinality, Clock, Embedding, EpisodeId, Epoch, Erase, ErrorKind, FactQuery,
    HistoryLimit, MemoryStore, Namespace, NewFact, PutBlock, RecallQuery, Scope, TenantData, Timestamp,
};
use proptest::prelude::*;

use super::{HOSTILE, scope, session, time, turn};
use crate::memory::{InMemoryMemory, MemoryConfig};

async fn said(memory: &InMemoryMemory, scope: &Scope) -> Vec<String> {
    let query = RecallQuery::new("", usize::MAX);
    let found = memory.recall(scope, &query).await.unwrap();
    found.into_iter().map(|m| m.open(scope).unwrap().episode.input().to_owned()).collect()
}

async fn remember(memory: &InMemoryMemory, user: &str, run: u128) {
    memory.remember(&scope(user, 0), turn(run, "s", run as i64, &format!("{user} {run}"))).await.unwrap();
}

async fn fails_as_erased(memory: &InMemoryMemory, stale: &Scope) {
    let fact = NewFact::new("a", "b", "c", time(0));
    let errors = [
        memory.remember(stale, turn(99, "s", 0, "late")).await.unwrap_err(),
        memory.put_block(stale, PutBlock::new("b", "late", time(0))).await.unwrap_err(),
        memory.facts().unwrap().assert(stale, fact).await.unwrap_err(),
    ];
    assert!(errors.iter().all(|e| e.kind() == ErrorKind::Erased), "{errors:?}");
}

#[tokio::test]
async fn hostile_names_never_meet() {
    let memory = InMemoryMemory::new();
    for user in HOSTILE {
        remember(&memory, user, 1).await;
        memory.put_block(&scope(user, 0), PutBlock::new("b", user, time(0))).await.unwrap();
        let fact = NewFact::new("i", "am", user, time(0)).with_cardinality(Cardinality::One);
        memory.facts().unwrap().assert(&scope(user, 0), fact).await.unwrap();
    }
    memory.forget(&scope(HOSTILE[0], 1), &Erase::everything()).await.unwrap();
    for user in &HOSTILE[1..] {
        let scope = scope(user, 0);
        assert_eq!(said(&memory, &scope).await, [format!("{user} 1")]);
        let blocks = memory.blocks(&scope).await.unwrap();
        assert_eq!(
            blocks.into_iter().map(|b| b.open(&scope).unwrap().content).collect::<Vec<_>>(),
            [Arc::<str>::from(*user)]
        );
        let facts = memory.facts().unwrap().query(&scope, &FactQuery::all(9)).await.unwrap();
        assert_eq!(
            facts.into_iter().map(|f| f.open(&scope).unwrap().object).collect::<Vec<_>>(),
            [Arc::<str>::from(*user)]
        );
    }
    assert!(said(&memory, &scope(HOSTILE[0], 1)).await.is_empty());
}

#[tokio::test]
async fn one_user_of_many_applications_has_many_partitions() {
    let memory = InMemoryMemory::new();
    // Enough that a look-up meets entries that agree with it in every bit of the hash a table compares first.
    let applications = 4_000_u128;
    let user_of = |n: u128| {
        let identity = scope("user_1", 0).identity().clone();
        assume_scope(Namespace::new(format!("app_{n}")).unwrap(), identity, Epoch::ZERO)
    };
    for n in 0..applications {
        memory.remember(&user_of(n), turn(n, "s", 0, &n.to_string())).await.unwrap();
    }
    for n in 0..applications {
        assert_eq!(said(&memory, &user_of(n)).await, [n.to_string()]);
    }
}

#[tokio::test]
async fn one_relevant_among_many_foreign_is_found_with_the_score_it_has_alone() {
    let alone = InMemoryMemory::new();
    let crowded = InMemoryMemory::new();
    for n in 0..2_000 {
        let foreign = scope(&format!("other_{n}"), 0);
        let vector = Embedding::new("m", [1.0, 0.1]);
        let new = turn(n, "s", 50, "the refund of order 42").with_embedding(vector);
        crowded.remember(&foreign, new).await.unwrap();
    }
    let me = scope("me", 0);
    for memory in [&alone, &crowded] {
        let mine = turn(7, "s", 1, "refund please").with_embedding(Embedding::new("m", [1.0, 0.0]));
        memory.remember(&me, mine).await.unwrap();
        memory.remember(&me, turn(8, "s", 2, "nice weather")).await.unwrap();
    }
    let query = RecallQuery::new("refund of order 42", 5).with_embedding(Embedding::new("m", [1.0, 0.0]));
    let [a, b] = [alone.recall(&me, &query).await.unwrap(), crowded.recall(&me, &query).await.unwrap()];
    assert_eq!(a, b, "statistics are those of the partition alone");
    assert_eq!(b.len(), 1);
    assert_eq!(b[0].clone().open(&me).unwrap().episode.input(), "refund please");
}

#[tokio::test]
async fn recall_does_not_depend_on_the_order_of_arrival() {
    let texts = ["refund order", "order refund", "refund", "order", "other", "refund order refund"];
    let mut answers = Vec::new();
    for turned in 0..texts.len() {
        let memory = InMemoryMemory::new();
        let me = scope("me", 0);
        for i in 0..texts.len() {
            let n = (i + turned) % texts.len();
            memory.remember(&me, turn(n as u128, "s", (n / 2) as i64, texts[n])).await.unwrap();
        }
        let found = memory.recall(&me, &RecallQuery::new("refund order", 9)).await.unwrap();
        answers.push(found.into_iter().map(|m| m.open(&me).unwrap().episode.id).collect::<Vec<_>>());
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    assert_eq!(&answers[0][..1], [EpisodeId::from_u128(5)]);
    // Equal scores: 1 and 0 have the same words and the same time, so the larger id goes first.
    assert_eq!(&answers[0][1..3], [EpisodeId::from_u128(1), EpisodeId::from_u128(0)]);
}

#[tokio::test]
async fn the_least_recently_used_user_goes_and_the_erasure_stays() {
    let memory = InMemoryMemory::with_config(&MemoryConfig::new().with_max_users(2));
    remember(&memory, "a", 1).await;
    memory.forget(&scope("a", 4), &Erase::everything()).await.unwrap();
    fails_as_erased(&memory, &scope("a", 3)).await;
    remember(&memory, "b", 1).await;
    said(&memory, &scope("a", 0)).await;
    remember(&memory, "c", 1).await;
    assert!(said(&memory, &scope("b", 0)).await.is_empty(), "b was used before a");
    remember(&memory, "d", 1).await;
    remember(&memory, "e", 1).await;
    let stats = memory.stats();
    assert_eq!((stats.users, stats.evictions, stats.episodes), (2, 3, 2));
    // `a` is gone, and still erased.
    assert_eq!(memory.epoch(&scope("a", 0)).await.unwrap(), Epoch::new(4));
    fails_as_erased(&memory, &scope("a", 3)).await;
    assert!(said(&memory, &scope("a", 4)).await.is_empty());
    memory.remember(&scope("a", 4), turn(5, "s", 0, "new life")).await.unwrap();
    assert_eq!(memory.epoch(&scope("a", 0)).await.unwrap(), Epoch::new(4));
    assert_eq!(memory.epoch(&scope("b", 0)).await.unwrap(), Epoch::ZERO);
}

#[tokio::test]
async fn erasing_an_unknown_user_raises_the_epoch() {
    let memory = InMemoryMemory::new();
    let receipt = memory.forget(&scope("a", 2), &Erase::session(session("s"))).await.unwrap();
    assert_eq!((receipt.total(), receipt.counts.len()), (0, 3));
    fails_as_erased(&memory, &scope("a", 1)).await;
    assert_eq!(memory.stats().users, 0, "a refused write makes no partition");
    memory.remember(&scope("a", 2), turn(1, "s", 0, "x")).await.unwrap();
    fails_as_erased(&memory, &scope("a", 1)).await;
}

#[tokio::test]
async fn a_full_tombstone_table_fails_closed() {
    let config = MemoryConfig::new().with_max_users(1).with_max_tombstones(2);
    let memory = InMemoryMemory::with_config(&config);
    for (user, epoch) in [("a", 1), ("b", 7), ("c", 2)] {
        memory.forget(&scope(user, epoch), &Erase::everything()).await.unwrap();
    }
    // The floor is what "d" counts as erased up to: its erasure needs a newer epoch, like any other.
    let older = memory.forget(&scope("d", 1), &Erase::everything()).await;
    assert_eq!(older.unwrap_err().kind(), ErrorKind::Conflict);
    for user in ["a", "b", "c", "d", "never erased"] {
        assert_eq!(memory.epoch(&scope(user, 0)).await.unwrap(), Epoch::new(7));
        fails_as_erased(&memory, &scope(user, 6)).await;
    }
    memory.remember(&scope("never erased", 7), turn(1, "s", 0, "x")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn idle_users_go() {
    let memory =
        InMemoryMemory::with_config(&MemoryConfig::new().with_user_idle_ttl(Duration::from_secs(10)));
    for user in ["a", "b", "c"] {
        remember(&memory, user, 1).await;
        memory.forget(&scope(user, 1), &Erase::before(time(0))).await.unwrap();
    }
    tokio::time::advance(Duration::from_secs(9)).await;
    assert_eq!(said(&memory, &scope("b", 0)).await.len(), 1);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(said(&memory, &scope("a", 0)).await.is_empty(), "an idle user is not served");
    assert_eq!(said(&memory, &scope("b", 0)).await.len(), 1);
    // Whether a look-up came across `c` already depends on the shard it is in.
    assert!(memory.evict_idle() <= 1);
    assert_eq!(memory.evict_idle(), 0);
    let stats = memory.stats();
    assert_eq!((stats.users, stats.idle_evictions, stats.evictions), (1, 2, 2));
    fails_as_erased(&memory, &scope("a", 0)).await;
}

#[tokio::test]
async fn bytes_are_bounded() {
    let config = MemoryConfig::new().with_max_bytes(100_000).with_max_bytes_per_user(10_000);
    let memory = InMemoryMemory::with_config(&config);
    let long = "word ".repeat(200);
    for user in 0..50 {
        for run in 0..20 {
            let me = scope(&format!("u{user}"), 0);
            memory.remember(&me, turn(run, "s", run as i64, &format!("{run} {long}"))).await.unwrap();
            assert!(memory.stats().bytes <= 100_000);
        }
    }
    let me = scope("u49", 0);
    let kept = said(&memory, &me).await;
    assert!(kept.len() == 2 && kept[0].starts_with("19 ") && kept[1].starts_with("18 "), "the oldest went");
    let huge = memory.remember(&me, turn(77, "s", 99, &"x".repeat(11_000))).await.unwrap_err();
    assert_eq!(huge.kind(), ErrorKind::Capacity);
    assert_eq!(said(&memory, &me).await.len(), 2, "what does not fit pushes nothing out");
    memory.put_block(&me, PutBlock::new("b", "x".repeat(8_000), time(0))).await.unwrap();
    assert!(said(&memory, &me).await.is_empty());
    let second = memory.put_block(&me, PutBlock::new("c", "x".repeat(8_000), time(0))).await.unwrap_err();
    assert_eq!(second.kind(), ErrorKind::Capacity);
    memory.put_block(&me, PutBlock::new("b", "x".repeat(8_001), time(0))).await.unwrap();
}

#[tokio::test]
async fn believed_facts_are_never_dropped_for_want_of_room() {
    let memory = InMemoryMemory::with_config(&MemoryConfig::new().with_max_facts_per_user(3));
    let me = scope("me", 0);
    let facts = memory.facts().unwrap();
    let lives =
        |city: &str, at| NewFact::new("me", "lives in", city, time(at)).with_cardinality(Cardinality::One);
    facts.assert(&me, lives("Paris", 1)).await.unwrap();
    facts.assert(&me, lives("Rome", 5)).await.unwrap();
    // Paris once believed to go on, Paris until 5, Rome: the first makes room.
    facts.assert(&me, NewFact::new("me", "likes", "tea", time(6))).await.unwrap();
    let full = facts.assert(&me, NewFact::new("me", "likes", "rum", time(6))).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Capacity);
    let again = facts.assert(&me, NewFact::new("me", "likes", "tea", time(9))).await.unwrap();
    assert_eq!(again.outcome, AssertOutcome::Reinforced);
    let now = facts.query(&me, &FactQuery::current(time(7), 9)).await.unwrap();
    assert_eq!(now.iter().map(|f| f.clone().open(&me).unwrap().object).collect::<Vec<_>>().len(), 2);
}

#[tokio::test]
async fn a_late_arrival_does_not_undo_the_present_and_belief_can_be_asked_of_the_past() {
    let memory = InMemoryMemory::new();
    let me = scope("me", 0);
    let facts = memory.facts().unwrap();
    let lives = |city: &str, from, known| {
        let mut new = NewFact::new("me", "lives in", city, time(from)).with_cardinality(Cardinality::One);
        new.recorded_at = time(known);
        new
    };
    facts.assert(&me, lives("Rome", 50, 100)).await.unwrap();
    let late = facts.assert(&me, lives("Paris", 10, 200)).await.unwrap();
    assert!(late.superseded.is_empty());
    let rewritten = facts.assert(&me, lives("Oslo", 20, 300)).await.unwrap();
    assert_eq!(rewritten.superseded, [late.id]);
    let ask = async |valid, known: Option<i64>| {
        let mut query = FactQuery::all(9).valid_at(time(valid));
        query.known_at = known.map(time);
        let found = facts.query(&me, &query).await.unwrap();
        found.into_iter().map(|f| f.open(&me).unwrap().object.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ask(15, None).await, ["Paris"]);
    assert_eq!(ask(20, None).await, ["Oslo"]);
    assert_eq!(ask(50, None).await, ["Rome"]);
    assert_eq!(ask(30, Some(250)).await, ["Paris"]);
    assert_eq!(ask(30, Some(150)).await, [""; 0]);
    assert_eq!(ask(9, None).await, [""; 0]);
}

#[tokio::test]
async fn bad_facts_and_block_names_are_refused() {
    let memory = InMemoryMemory::new();
    let me = scope("me", 0);
    for (s, p, o) in [("", "p", "o"), ("s", " ", "o"), ("s", "p", "")] {
        let error = memory.facts().unwrap().assert(&me, NewFact::new(s, p, o, time(0))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let backwards = NewFact::new("s", "p", "o", time(0)).with_validity(time(5), Some(time(5)));
    assert!(memory.facts().unwrap().assert(&me, backwards).await.is_err());
    let endless = NewFact::new("s", "p", "o", Timestamp::MAX);
    assert!(memory.facts().unwrap().assert(&me, endless).await.is_ok(), "no end comes after every moment");
    for name in ["", "a\nb", &"x".repeat(129)] {
        let error = memory.put_block(&me, PutBlock::new(name, "x", time(0))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[derive(Debug)]
struct At(i64);

impl Clock for At {
    fn now(&self) -> Timestamp {
        time(self.0)
    }
}

#[tokio::test]
async fn a_profile_counts_what_holds_now() {
    let memory = InMemoryMemory::new().with_clock(Arc::new(At(100)));
    let me = scope("me", 0);
    for n in 0..30 {
        memory.remember(&me, turn(n, &format!("s{}", n / 2), n as i64, "x")).await.unwrap();
    }
    let facts = memory.facts().unwrap();
    facts.assert(&me, NewFact::new("me", "likes", "tea", time(1))).await.unwrap();
    let over = NewFact::new("me", "likes", "rum", time(1)).with_validity(time(1), Some(time(100)));
    facts.assert(&me, over).await.unwrap();
    facts
        .assert(&me, NewFact::new("me", "likes", "gin", time(1)).with_validity(time(101), None))
        .await
        .unwrap();
    let profile = memory.profile(&me).await.unwrap().open(&me).unwrap();
    assert_eq!((profile.episodes, profile.facts, profile.blocks), (30, 1, 0));
    assert_eq!(profile.last_seen, Some(time(29)));
    assert_eq!(profile.recent_sessions, (5..15).rev().map(|n| session(&format!("s{n}"))).collect::<Vec<_>>());
    assert_eq!(&*profile.sample_facts[0].object, "tea");
}

#[tokio::test]
async fn erasing_a_session_reaches_facts_of_episodes_that_were_dropped() {
    let memory = InMemoryMemory::with_config(&MemoryConfig::new().with_max_episodes_per_user(1));
    let me = scope("me", 0);
    memory.remember(&me, turn(1, "private", 1, "i am ill")).await.unwrap();
    let fact = NewFact::new("me", "is", "ill", time(1)).with_sources(vec![EpisodeId::from_u128(1)]);
    memory.facts().unwrap().assert(&me, fact).await.unwrap();
    memory.remember(&me, turn(2, "work", 2, "hello")).await.unwrap();
    assert_eq!(memory.stats().dropped_episodes, 1);
    memory.forget(&scope("me", 1), &Erase::session(session("work"))).await.unwrap();
    let items: Vec<_> = memory.export(&me).await.unwrap().try_collect().await.unwrap();
    assert_eq!(items.len(), 1, "the fact came from elsewhere");
    memory.forget(&scope("me", 2), &Erase::session(session("private"))).await.unwrap();
    let items: Vec<_> = memory.export(&me).await.unwrap().try_collect().await.unwrap();
    assert!(items.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_users_evictions_and_erasures_keep_the_books() {
    let memory = InMemoryMemory::with_config(&MemoryConfig::new().with_max_users(20));
    let mut tasks = Vec::new();
    for task in 0..8_u128 {
        let memory = memory.clone();
        tasks.push(tokio::spawn(async move {
            for n in 0..400_u128 {
                let user = format!("u{}", (n * 7 + task) % 40);
                let epoch = memory.epoch(&scope(&user, 0)).await.unwrap();
                let me = scope(&user, epoch.get());
                let run = task * 1_000 + n;
                let text = format!("{user} says {run}");
                match memory.remember(&me, turn(run, "s", run as i64, &text)).await {
                    Ok(_) => {}
                    Err(e) => assert_eq!(e.kind(), ErrorKind::Erased),
                }
                for found in memory.history(&me, &session("s"), HistoryLimit::default()).await.unwrap() {
                    let message = found.open(&me).unwrap();
                    assert!(&*message.text == "ok" || message.text.starts_with(&format!("{user} says")));
                }
                if n % 50 == 0 {
                    let erasing = scope(&user, epoch.get() + 1);
                    // Of erasures at once one takes the epoch; the others are refused, and the data is gone all the same.
                    if let Err(e) = memory.forget(&erasing, &Erase::everything()).await {
                        assert_eq!(e.kind(), ErrorKind::Conflict);
                    }
                    fails_as_erased(&memory, &me).await;
                }
                tokio::task::yield_now().await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert!(memory.stats().users <= 20);
    let mut episodes = 0;
    for n in 0..40 {
        episodes += said(&memory, &scope(&format!("u{n}"), 0)).await.len() as u64;
    }
    assert_eq!(memory.stats().episodes, episodes);
    assert!(memory.stats().evictions > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Who is held after any sequence of uses is what a plain list says.
    #[test]
    fn eviction_is_strictly_by_least_recent_use(
        max in 1..6_usize,
        uses in prop::collection::vec((0..10_u32, any::<bool>()), 0..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let memory = InMemoryMemory::with_config(&MemoryConfig::new().with_max_users(max));
            let mut held: Vec<u32> = Vec::new();
            for (run, (user, write)) in uses.into_iter().enumerate() {
                let name = format!("u{user}");
                let was = held.contains(&user);
                held.retain(|u| *u != user);
                if write {
                    remember(&memory, &name, run as u128).await;
                    held.push(user);
                    if held.len() > max {
                        held.remove(0);
                    }
                } else {
                    assert_eq!(!said(&memory, &scope(&name, 0)).await.is_empty(), was);
                    if was {
                        held.push(user);
                    }
                }
                assert_eq!(memory.stats().users, held.len() as u64);
            }
        });
    }
}
