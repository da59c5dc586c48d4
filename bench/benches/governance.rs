//! What governance costs per call: a policy decision among 10,000 users, scrubbing clean text, opening and closing a run.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a bench that cannot set itself up has nothing to measure")]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt as _;
use loomflow_core::danger::{assume_scope, detached_context};
use loomflow_core::{
    Amounts, Effect, Epoch, Identity, KeepAll, Namespace, Permissions as _, RateLimitConfig,
    RateLimiter as _, Redactor, RunId, RunOpening, RunStatus, Runtime as _, Scope, Scrub as _, Secret,
    SessionId, Timestamp, ToolCall, UserId,
};
use loomflow_local::{
    InProcRuntime, PatternScrub, PerUserPermissions, StandardPermissions, StandardRateLimiter,
};

fn scope(user: &str) -> Scope {
    assume_scope(Namespace::default(), Identity::User(UserId::new(user).unwrap()), Epoch::ZERO)
}

fn policy(c: &mut Criterion) {
    let mut policy = PerUserPermissions::new(StandardPermissions::default());
    for n in 0..10_000 {
        policy = policy.policy(UserId::new(format!("user_{n}")).unwrap(), StandardPermissions::bypass());
    }
    let (ctx, call) = (detached_context(scope("user_777")), ToolCall::new("c", "pay", "{}"));
    c.bench_function("policy/check_among_10000_users", |b| {
        b.iter(|| black_box(policy.check(&ctx, &call, Effect::Write).now_or_never().unwrap()).unwrap());
    });
}

fn scrub(c: &mut Criterion) {
    let scrub = PatternScrub::new();
    let clean = "The quick brown fox jumps over the lazy dog while Ada asks where her order of 3 blue chairs may be now.";
    c.bench_function("scrub/clean_103_bytes", |b| b.iter(|| black_box(scrub.scrub(black_box(clean))).len()));
    for n in 0..100 {
        scrub.register(&Arc::new(Secret::new(format!("secret-number-{n:04}"))));
    }
    c.bench_function("scrub/clean_103_bytes_100_secrets", |b| {
        b.iter(|| black_box(scrub.scrub(black_box(clean))).len())
    });
}

fn runtime(c: &mut Criterion) {
    let runtime = InProcRuntime::new();
    let alice = scope("alice");
    let opening = RunOpening::new(
        RunId::from_u128(9),
        SessionId::new("conv_42").unwrap(),
        Redactor::new(Arc::new(KeepAll)).text(""),
        Duration::from_secs(60),
        Timestamp::from_micros(0),
    );
    let paused = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = paused.enter();
    c.bench_function("runtime/open_and_close", |b| {
        b.iter(|| {
            let lease = runtime.open(&alice, opening.clone()).now_or_never().unwrap().unwrap();
            runtime.close(&alice, &lease, RunStatus::Completed).now_or_never().unwrap().unwrap();
        });
    });
}

fn rate_limit(c: &mut Criterion) {
    let limits = RateLimitConfig::new()
        .per_user_model_calls_per_minute(1_000_000_000)
        .per_user_tokens_per_minute(60_000_000_000)
        .global_model_calls_per_minute(1_000_000_000);
    let limiter = StandardRateLimiter::new(&limits).unwrap();
    let users: Vec<Scope> = (0..10_000).map(|n| scope(&format!("user_{n}"))).collect();
    let (mut next, ask) = (0, Amounts::model_call(1));
    c.bench_function("rate_limit/take_among_10000_users", |b| {
        b.iter(|| {
            next = (next + 1) % users.len();
            black_box(limiter.take(&users[next], &ask).now_or_never().unwrap()).unwrap()
        });
    });
}

criterion_group!(benches, policy, scrub, runtime, rate_limit);
criterion_main!(benches);
