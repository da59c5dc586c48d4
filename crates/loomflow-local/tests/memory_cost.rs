//! What the in-process memory costs in heap bytes a user. Counts with a global allocator of its own.

#![allow(unsafe_code, reason = "a global allocator can only be written with it")]
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::print_stderr, reason = "the figure is the point")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering};

use loomflow_core::danger::assume_scope;
use loomflow_core::{
    Epoch, Identity, MemoryStore, Message, Namespace, NewEpisode, RunId, Scope, SessionId, Timestamp, UserId,
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
