//! What governance costs per call: a policy decision among 10,000 users, scrubbing clean text, opening and closing a run.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a bench that cannot set itself up has nothing to measure")]
#![allow(clippy::print_stdout, reason = "a bench says what it measured")]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt as _;
use loomflow_core::danger::{assume_scope, detached_context};
use loomflow_core::{
    Amounts, Effect, Epoch, Identity, KeepAll, Namespace, Permissions as _, RateLimitConfig,
    RateLimiter as _, Redactor, RunId, RunOpening, RunStatus, Runtime as _, Scope, Scrub as _, Secret,
    SessionId, Timestamp, ToolCall, UserId,
};
use loomflow_local::{
    Argument, InProcRuntime, PatternScrub, PerUserPermissions, Rule, StandardPermissions, StandardRateLimiter,
};

fn scope(user: &str) -> Scope {
    assume_scope(Namespace::default(), Identity::User(UserId::new(user).unwrap()), Epoch::ZERO)
}

/// 10,000 users with a policy of their own, each with rules about a tool and its arguments.
fn policies() -> PerUserPermissions {
    let large = || Argument::at("/cents").above(10_000);
    let rule = |policy: StandardPermissions, rule| policy.rule(rule).unwrap();
    let mut all = PerUserPermissions::new(StandardPermissions::default());
    for n in 0..USERS {
        let mut own = StandardPermissions::accept_edits().denied_tools(["shell", "admin.*"]).unwrap();
        own = rule(own, Rule::allow("mail.*").when(Argument::at("/to").matches("*@example.com")));
        own = rule(own, Rule::ask("pay").when(Argument::at("/cents").above(n as i64)));
        own = rule(own, Rule::deny("pay").when(large()).because("large payments are made by hand"));
        all = all.policy(UserId::new(format!("user_{n}")).unwrap(), own);
    }
    all
}

const USERS: usize = 10_000;

fn policy(c: &mut Criterion) {
    let policy = policies();
    let (ctx, call) = (detached_context(scope("user_777")), ToolCall::new("c", "look", "{}"));
    c.bench_function("policy/check_among_10000_users", |b| {
        b.iter(|| black_box(policy.judge(&ctx, &call, Effect::Write).now_or_never().unwrap()).unwrap());
    });
    each_decision(&policy);
}

/// Times decisions one by one, each of another user and about arguments that have to be read, and says how long the slow ones
/// take: a mean hides them.
fn each_decision(policy: &PerUserPermissions) {
    const DECISIONS: usize = 200_000;
    let contexts: Vec<_> = (0..USERS).map(|n| detached_context(scope(&format!("user_{n}")))).collect();
    let calls: Vec<_> = (0..97)
        .map(|n| {
            ToolCall::new(
                "c",
                "pay",
                format!(r#"{{"order":"A{n}","cents":{},"note":"for {n} chairs"}}"#, n * 150),
            )
        })
        .collect();
    let mut took: Vec<u64> = Vec::with_capacity(DECISIONS);
    let mut outcomes = [0_u32; 3];
    for n in 0..DECISIONS {
        // A stride that visits all users, none of them twice in a row.
        let (ctx, call) = (&contexts[(n * 7_919) % USERS], &calls[n % calls.len()]);
        let began = Instant::now();
        // As the door does it: a policy that is exchanged while it decides is asked again.
        let version = policy.version();
        let judged = policy.judge(ctx, call, Effect::External).now_or_never().unwrap().unwrap();
        assert_eq!(policy.version(), version);
        took.push(u64::try_from(began.elapsed().as_nanos()).unwrap());
        outcomes[["allow", "ask", "deny"].iter().position(|d| *d == judged.decision.as_str()).unwrap()] += 1;
    }
    took.sort_unstable();
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
    println!(
        "policy/each_decision_among_10000_users  {DECISIONS} decisions with rules (allow, ask, deny: {outcomes:?}): \
         p50 {} ns, p99 {} ns, p99.9 {} ns, slowest {} ns",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
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
