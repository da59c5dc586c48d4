//! A whole text run (history, recall, ledger, audit) on one thread, and how many allocations it makes.
//!
//! The only binary of the workspace with an allocator of its own, because counting allocations needs one; it counts and
//! leaves the work to the system's. The count is printed before criterion begins.

#![allow(unsafe_code, reason = "`GlobalAlloc` is an unsafe trait; see `Counting`")]
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot set itself up has nothing to measure")]
#![allow(clippy::print_stdout, reason = "a bench talks to its user")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser as _;
use criterion::{Criterion, criterion_group, criterion_main};
use loomflow_bench::config::Args;
use loomflow_bench::provider::FixedModel;
use loomflow_bench::system;
use loomflow_core::{Agent, UserId};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// Counts what is asked of the system's allocator.
struct Counting;

// SAFETY: every call is passed on unchanged to `System`, which upholds the contract of `GlobalAlloc`; counting touches
// two atomics and never allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of `alloc`, and it is passed on unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `dealloc`, and every block came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(new_size.saturating_sub(layout.size()) as u64, Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of `realloc`, and every block came from `System`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const COUNTED: u64 = 1_000;

async fn run(agent: &Agent, user: u64) {
    let id = format!("user_{user}");
    let tenant = agent.for_user(UserId::new(&id).unwrap());
    let result = tenant.run(format!("prompt 0 for {id}")).session(&format!("{id}-s")).await.unwrap();
    assert_eq!(&*result.output, "ack");
}

async fn agent(profile: &str, uses_tool: bool) -> Agent {
    let args = ["tenants", "--users", "100000", "--profile", profile];
    let config = Args::try_parse_from(args).unwrap().resolve().unwrap();
    system::fixed(&config, Arc::new(FixedModel::new(config.users, uses_tool))).await.unwrap().agent
}

fn bench(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for (profile, uses_tool) in [("bare", false), ("text", false), ("tool", true)] {
        let agent = runtime.block_on(agent(profile, uses_tool));
        runtime.block_on(run(&agent, 0));
        let before = (ALLOCATIONS.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
        runtime.block_on(async {
            for user in 1..=COUNTED {
                run(&agent, user).await;
            }
        });
        let made = (ALLOCATIONS.load(Ordering::Relaxed) - before.0) as f64 / COUNTED as f64;
        let bytes = (BYTES.load(Ordering::Relaxed) - before.1) as f64 / COUNTED as f64;
        println!("agent_run/{profile}: {made:.1} allocations and {bytes:.0} bytes per first run of a tenant");
        let mut user = COUNTED;
        c.bench_function(&format!("agent_run/{profile}"), |b| {
            b.iter(|| {
                // Always a tenant's first run, so that no history grows; past the last number they begin again.
                user = if user == 99_999 { COUNTED + 1 } else { user + 1 };
                runtime.block_on(run(&agent, user));
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(std::time::Duration::from_secs(3));
    targets = bench
}
criterion_main!(benches);
