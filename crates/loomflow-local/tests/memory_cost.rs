//! What the in-process memory costs: heap bytes a user, and time a run. Counts with a global allocator of its own.
//!
//! Times: `cargo test --release -p loomflow-local --test memory_cost -- --ignored --nocapture`.

#![allow(unsafe_code, reason = "a global allocator can only be written with it")]
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::print_stderr, reason = "the figures are the point")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use loomflow_core::danger::assume_scope;
use loomflow_core::{
    Epoch, FactQuery, HistoryLimit, Identity, MemoryStore, Message, Namespace, NewEpisode, RecallQuery,
    RunId, Scope, SessionId, Timestamp, UserId,
};
use loomflow_local::{InMemoryMemory, MemoryConfig};

const MAX_BYTES_PER_USER: i64 = 3_500;

struct Counting;

static LIVE: AtomicI64 = AtomicI64::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

/// What glibc's allocator takes for a request: a word beside it, rounded up to two.
fn rounded(size: usize) -> i64 {
    i64::try_from((size + 8).next_multiple_of(16).max(32)).unwrap_or(i64::MAX)
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn scope(user: usize) -> Scope {
    let user = UserId::new(format!("user_{user:06}")).unwrap();
    assume_scope(Namespace::default(), Identity::User(user), Epoch::ZERO)
}

fn turn(user: usize, turn: usize) -> NewEpisode {
    let run = RunId::from_u128(((user as u128) << 64) | turn as u128);
    let at = Timestamp::from_micros(1_700_000_000_000_000 + turn as i64);
    let messages = [
        Message::user(format!("where is order {turn:05}?")),
        Message::assistant(format!("on its way {turn:05} ok")),
    ];
    NewEpisode::new(run, SessionId::new(format!("conv_{user}")).unwrap(), at, messages)
}

#[tokio::test]
async fn five_turns_of_a_user_are_small() {
    const USERS: usize = 2_000;
    let memory = InMemoryMemory::with_config(&MemoryConfig::new().with_max_users(100_000));
    let before = LIVE.load(Ordering::Relaxed);
    for user in 0..USERS {
        for n in 0..5 {
            memory.remember(&scope(user), turn(user, n)).await.unwrap();
        }
    }
    let each = (LIVE.load(Ordering::Relaxed) - before) / USERS as i64;
    let estimate = memory.stats().bytes / USERS as u64;
    eprintln!("heap bytes a user after 5 turns: {each} (estimated by the store: {estimate})");
    assert!(each <= MAX_BYTES_PER_USER, "{each} bytes a user");
    assert!((each / 2..each * 2).contains(&(estimate as i64)), "the estimate {estimate} is not near {each}");
}

#[tokio::test]
#[ignore = "a measurement, meaningful in release only"]
async fn time_of_a_run() {
    const USERS: usize = 500;
    const ROUNDS: usize = 40;
    for held in [0_usize, 5, 9] {
        let memory = InMemoryMemory::new();
        let scopes: Vec<Scope> = (0..USERS).map(scope).collect();
        let session: Vec<SessionId> =
            (0..USERS).map(|u| SessionId::new(format!("conv_{u}")).unwrap()).collect();
        let other = SessionId::new("another").unwrap();
        // Medians: the mean of a busy machine is that of its scheduler.
        let mut samples: [Vec<u64>; 7] = Default::default();
        for _ in 0..ROUNDS {
            let memory = if held == 0 { memory.clone() } else { InMemoryMemory::new() };
            for (user, scope) in scopes.iter().enumerate() {
                for n in 0..held {
                    memory.remember(scope, turn(user, n)).await.unwrap();
                }
            }
            for (user, scope) in scopes.iter().enumerate() {
                let hidden = RecallQuery::new("where is my order now", 5)
                    .excluding_history(session[user].clone(), HistoryLimit::default());
                let open = RecallQuery::new("where is my order now", 5)
                    .excluding_history(other.clone(), HistoryLimit::default());
                let facts = FactQuery::current(Timestamp::from_micros(1_700_000_000_000_000), 5)
                    .about("where is my order now", None);
                let episode = turn(user, held);
                let t0 = Instant::now();
                std::hint::black_box(memory.history(scope, &session[user], HistoryLimit::default()).await)
                    .unwrap();
                let t1 = Instant::now();
                std::hint::black_box(memory.blocks(scope).await).unwrap();
                let t2 = Instant::now();
                std::hint::black_box(memory.recall(scope, &hidden).await).unwrap();
                let t3 = Instant::now();
                std::hint::black_box(memory.recall(scope, &open).await).unwrap();
                let t4 = Instant::now();
                std::hint::black_box(memory.facts().unwrap().query(scope, &facts).await).unwrap();
                let t5 = Instant::now();
                std::hint::black_box(memory.remember(scope, episode).await).unwrap();
                let t6 = Instant::now();
                let spans = [(t0, t1), (t1, t2), (t2, t3), (t3, t4), (t4, t5), (t5, t6)];
                let spans = spans.map(|(a, b)| (b - a).as_nanos() as u64);
                let run = spans.iter().sum::<u64>() - spans[2];
                samples.iter_mut().zip(spans.into_iter().chain([run])).for_each(|(all, one)| all.push(one));
            }
        }
        let [history, blocks, hidden, open, facts, remember, run] = samples.map(|mut all| {
            all.sort_unstable();
            all[all.len() / 2]
        });
        eprintln!(
            "{held} episodes held: history {history} ns, blocks {blocks}, recall (all in the history) {hidden}, \
             recall {open}, facts {facts}, remember {remember}; a run {run} ns"
        );
    }
}
