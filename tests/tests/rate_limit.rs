//! Rate limits through a real agent: who is let in, who is told when to come back, and what it costs to be turned away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::RecordingLedger;
use loomflow_core::{
    Agent, AgentBuilder, Effect, Entity, Erase, Error, ErrorKind, HasModel, LimitReason, Model, OnLimit,
    RateLimitConfig, RateLimiter as _, Resource, RetryPolicy, RunStatus, ToolOutcome,
};
use loomflow_local::{HashEmbedder, InMemoryAuditLog, InMemoryMemory, StandardBudget, StandardRateLimiter};
use loomflow_tests::double::{ModelDouble, Step, call, say};
use loomflow_tests::fixture::{Counts, FnTool, actions, user};
use tokio::sync::Notify;
use tokio::time::Instant;

fn limiter(config: &RateLimitConfig) -> Arc<StandardRateLimiter> {
    Arc::new(StandardRateLimiter::new(config).unwrap())
}

fn agent(model: Arc<dyn Model>, config: &RateLimitConfig) -> AgentBuilder<HasModel> {
    Agent::builder("three word prompt").model(model).rate_limit(limiter(config))
}

/// A burst of so many runs, which comes back so slowly that no test sees it.
fn slow_runs(burst: u64) -> RateLimitConfig {
    RateLimitConfig::new().per_user_rps(1.0 / 3_600.0).burst(burst)
}

#[track_caller]
fn must_be_limited(error: &Error, limit: &str) -> Duration {
    let limited = error.limited().unwrap_or_else(|| panic!("{error} is no limit of ours"));
    assert_eq!((error.kind(), limited.limit), (ErrorKind::RateLimited, limit), "{error}");
    assert_eq!(error.operation(), "rate_limit");
    error.retry_after().unwrap_or_else(|| panic!("{error} does not say when"))
}

/// A limiter with room for ten: nine hundred throw-away ids made a throttled user fresh, because the oldest entry was thrown
/// away. And whoever waited was neither in order nor bounded.
#[tokio::test]
async fn w27_throw_away_ids_make_no_limit_fresh() {
    let config = slow_runs(1).max_users(10);
    let limits = limiter(&config);
    let agent = Agent::builder("x").model(ModelDouble::saying("a b")).rate_limit(limits).build().unwrap();
    let victim = agent.for_user(user("victim"));
    victim.run("hi").await.unwrap();
    must_be_limited(&victim.run("hi").await.unwrap_err(), "per_user_rps");
    let (mut let_in, mut refused) = (0, 0);
    for n in 0..900 {
        match agent.for_user(user(&format!("throw-away-{n}"))).run("hi").await {
            Ok(_) => let_in += 1,
            Err(error) => {
                // Nobody is let go for them: there is no room, and they are told when there may be.
                assert_eq!(error.kind(), ErrorKind::Capacity);
                assert_eq!(error.limited().unwrap().reason, LimitReason::Capacity);
                assert!(error.retry_after().is_some());
                refused += 1;
            }
        }
    }
    assert_eq!((let_in, refused), (9, 891));
    must_be_limited(&victim.run("hi").await.unwrap_err(), "per_user_rps");
}

/// Fifty runs in flight together: each is held inside its model call until all fifty were judged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_fifty_parallel_runs_exactly_a_burst_is_let_in() {
    let gate = Arc::new(Notify::new());
    let opened = gate.clone();
    let model = ModelDouble::new(move |_, _| Ok(vec![Step::Wait(opened.clone()), Step::Say("ok".into())]));
    let agent = agent(model.clone(), &slow_runs(7)).build().unwrap();
    let spawn = |name: &'static str| {
        let tenant = agent.for_user(user(name));
        tokio::spawn(async move { tenant.run("hi").await })
    };
    let all: Vec<_> = (0..50).map(|_| spawn("alice")).collect();
    let other = spawn("bob");
    while model.calls() < 8 || all.iter().filter(|run| run.is_finished()).count() < 43 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let opener = tokio::spawn(async move {
        loop {
            gate.notify_waiters();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let (mut let_in, mut turned_away) = (0, 0);
    for run in all {
        match run.await.unwrap() {
            Ok(result) => let_in += u32::from(result.status == RunStatus::Completed),
            Err(error) => {
                let after = must_be_limited(&error, "per_user_rps");
                assert!(after > Duration::ZERO && after <= Duration::from_secs(3_600));
                assert_eq!(error.limited().unwrap().entity, Entity::User);
                turned_away += 1;
            }
        }
    }
    assert_eq!((let_in, turned_away), (7, 43));
    other.await.unwrap().unwrap();
    opener.abort();
    assert_eq!(model.calls(), 8);
}

#[tokio::test]
async fn a_run_that_is_turned_away_costs_nothing() {
    let (ledger, counts) = (Arc::new(RecordingLedger::new()), Arc::new(Counts::default()));
    let model = ModelDouble::saying("a b");
    let agent = agent(model.clone(), &slow_runs(1))
        .budget(ledger.clone())
        .audit_log(InMemoryAuditLog::new())
        .memory(InMemoryMemory::new())
        .telemetry(counts.clone())
        .build()
        .unwrap();
    let alice = agent.for_user(user("alice"));
    alice.run("hi").await.unwrap();
    let (recorded, holds) = (actions(&alice).await.len(), ledger.holds().len());
    for _ in 0..5 {
        must_be_limited(&alice.run("hi").await.unwrap_err(), "per_user_rps");
        let mut events = alice.stream("hi").await.unwrap();
        assert!(events.next().await.is_none(), "a run that never began says nothing");
        must_be_limited(&events.result().await.unwrap_err(), "per_user_rps");
    }
    assert_eq!((model.calls(), ledger.holds().len()), (1, holds), "no model call, and nothing set aside");
    assert_eq!(actions(&alice).await.len(), recorded, "a run that never began has no record");
    assert_eq!(counts.total("loom.rate_limit.limited"), 10, "but it is counted");
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_served_in_order_within_the_deadline() {
    let config = RateLimitConfig::new().per_user_rps(10.0).burst(1).on_limit(OnLimit::Wait);
    let agent =
        agent(ModelDouble::saying("a b"), &config.max_wait(Duration::from_millis(950))).build().unwrap();
    let began = Instant::now();
    let mut runs = Vec::new();
    for _ in 0..12 {
        let alice = agent.for_user(user("alice"));
        runs.push(tokio::spawn(async move { alice.run("hi").await.map(|_| began.elapsed().as_millis()) }));
        tokio::task::yield_now().await;
    }
    let mut served = Vec::new();
    for run in runs {
        match run.await.unwrap() {
            Ok(at) => served.push(at),
            Err(error) => drop(must_be_limited(&error, "per_user_rps")),
        }
    }
    assert_eq!(served, (0..10).map(|n| n * 100).collect::<Vec<u128>>());
}

/// What a call takes is its prompt and the most it may say; what it did not say is given back when it is over.
#[tokio::test]
async fn tokens_are_taken_before_a_call_and_corrected_after_it() {
    // One token a minute: what was given back is told from what came back.
    let config = RateLimitConfig::new().per_user_tokens_per_minute(1).per_user_token_burst(100);
    let model = ModelDouble::saying("five words are said here");
    let agent = agent(model.clone(), &config).max_output_tokens(40).build().unwrap();
    let alice = agent.for_user(user("alice"));
    let (mut used, mut runs) = (0, 0);
    let error = loop {
        match alice.run("hi").await {
            Ok(result) => used += result.usage.total_tokens(),
            Err(error) => break error,
        }
        runs += 1;
        assert!(runs < 50);
    };
    must_be_limited(&error, "per_user_tokens_per_minute");
    assert_eq!(error.limited().unwrap().resource, Resource::Tokens);
    let (input, output) = model.invoice();
    assert_eq!(used, input + output);
    let each = used / runs;
    assert!(runs >= 3, "{runs} runs of {each} tokens: with 40 taken for good, only two would fit in 100");
    assert!(used + each - 5 + 40 > 100, "one more call could have been made: {used} of 100 used");
}

/// A provider that says more than it was granted leaves a debt, which has to come back before the next call.
#[tokio::test]
async fn what_was_said_beyond_what_was_taken_is_owed() {
    let config = RateLimitConfig::new().per_user_tokens_per_minute(1).per_user_token_burst(60);
    let model = ModelDouble::new(|_, _| Ok((0..90).map(|_| Step::Say("word ".into())).collect()));
    let agent = agent(model.clone(), &config).max_output_tokens(10).build().unwrap();
    let alice = agent.for_user(user("alice"));
    let first = alice.run("hi").await;
    assert_eq!(model.calls(), 1, "{first:?}");
    let (input, output) = model.invoice();
    let after = must_be_limited(&alice.run("hi").await.unwrap_err(), "per_user_tokens_per_minute");
    // The level is what was used; the next call's prompt and grant have to fit on top.
    let owed = input + output + input + 10 - 60;
    let minutes = after.as_secs_f64() / 60.0;
    assert!((minutes - owed as f64).abs() < 1.0, "{owed} tokens come back in {owed} minutes, not {minutes}");
}

#[tokio::test]
async fn a_call_larger_than_a_burst_is_refused_for_good() {
    let config = RateLimitConfig::new().per_user_tokens_per_minute(1_000);
    let model = ModelDouble::saying("a b");
    let agent = agent(model.clone(), &config).max_output_tokens(1_001).build().unwrap();
    let error = agent.for_user(user("alice")).run("hi").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.retry_after(), error.is_retryable()),
        (ErrorKind::RateLimited, None, false)
    );
    assert_eq!(error.limited().unwrap().reason, LimitReason::TooLarge);
    assert!(error.to_string().contains("max_output_tokens") && error.to_string().contains("1000"), "{error}");
    assert_eq!(model.calls(), 0);
}

#[tokio::test]
async fn embeddings_are_counted_and_fail_open_visibly() {
    let calls =
        |burst| RateLimitConfig::new().per_user_model_calls_per_minute(1).per_user_model_call_burst(burst);
    // A run embeds its question, calls the model, and embeds what it remembers: three calls.
    for (burst, runs, embedding_errors) in [(3, 1, 0), (2, 1, 1), (1, 0, 1)] {
        let (counts, model) = (Arc::new(Counts::default()), ModelDouble::saying("a b"));
        let agent = agent(model.clone(), &calls(burst))
            .memory(InMemoryMemory::new())
            .embedder(HashEmbedder::new())
            .telemetry(counts.clone())
            .build()
            .unwrap();
        let ended = agent.for_user(user("alice")).run("hi").await;
        assert_eq!(u64::from(ended.is_ok()), runs, "{burst}: {ended:?}");
        assert_eq!(model.calls(), runs, "{burst}");
        if runs == 0 {
            must_be_limited(&ended.unwrap_err(), "per_user_model_calls_per_minute");
        } else {
            assert_eq!(counts.total("loom.embedding.errors"), embedding_errors, "{burst}");
        }
    }
}

/// A limit in the middle of a run interrupts it: what was done so far is kept and told.
#[tokio::test]
async fn a_limit_in_the_middle_of_a_run_interrupts_it() {
    let config = RateLimitConfig::new().per_user_model_calls_per_minute(1).per_user_model_call_burst(2);
    let look = FnTool::new("look", Effect::Read, |_, _| async { ToolOutcome::ok("seen") });
    let model = ModelDouble::new(|_, _| Ok(call("look", "{}")));
    let agent = agent(model.clone(), &config).tool(look).audit_log(InMemoryAuditLog::new()).build().unwrap();
    let alice = agent.for_user(user("alice"));
    let result = alice.run("hi").await.unwrap();
    assert_eq!(result.status, RunStatus::Interrupted);
    assert_eq!(result.reason.as_deref(), Some("rate_limit:per_user_model_calls_per_minute"));
    assert_eq!((result.turns, result.tool_calls.len(), model.calls()), (2, 2, 2));
    must_be_limited(&alice.run("hi").await.unwrap_err(), "per_user_model_calls_per_minute");
    let bob = agent.for_user(user("bob")).run("hi").await.unwrap();
    assert_eq!(bob.turns, 2, "another tenant is not affected");
}

/// A provider's own 429 is retried as before and never mistaken for ours; each attempt counts.
#[tokio::test(start_paused = true)]
async fn a_provider_s_limit_is_not_ours() {
    let config = RateLimitConfig::new().per_user_model_calls_per_minute(1).per_user_model_call_burst(2);
    let busy = |_: &_, _| Err(Error::new(ErrorKind::RateLimited, "slow down"));
    let model = ModelDouble::new(busy);
    let retry = RetryPolicy::new(2, Duration::from_millis(1), Duration::from_secs(1));
    let agent = agent(model.clone(), &config).retry(retry).build().unwrap();
    let alice = agent.for_user(user("alice"));
    let error = alice.run("hi").await.unwrap_err();
    assert_eq!((error.kind(), model.calls()), (ErrorKind::RateLimited, 2));
    assert!(error.limited().is_none());
    // Ours ends the call: it is not retried behind the caller's back.
    must_be_limited(&alice.run("hi").await.unwrap_err(), "per_user_model_calls_per_minute");
    assert_eq!(model.calls(), 2);
}

/// A call that the budget refuses was not made: its part of the limits is given back.
#[tokio::test]
async fn a_call_that_the_budget_refuses_takes_nothing() {
    let config = RateLimitConfig::new()
        .per_user_model_calls_per_minute(1)
        .per_user_model_call_burst(1)
        .per_user_tokens_per_minute(1)
        .per_user_token_burst(200);
    let model = ModelDouble::saying("a b");
    let budget = loomflow_core::BudgetConfig::new().per_user_max_tokens(1);
    let agent = agent(model.clone(), &config)
        .budget(StandardBudget::new(budget).unwrap())
        .max_output_tokens(100)
        .build()
        .unwrap();
    let alice = agent.for_user(user("alice"));
    for _ in 0..5 {
        let error = alice.run("hi").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BudgetExceeded, "{error}");
    }
    assert_eq!(model.calls(), 0);
}

/// Everybody together: a limit of all users holds back a user who took nothing, and names nobody.
#[tokio::test]
async fn the_limit_of_all_users_names_nobody() {
    let config = RateLimitConfig::new().global_rps(1.0 / 3_600.0).global_burst(2);
    let agent = agent(ModelDouble::saying("a b"), &config).build().unwrap();
    for name in ["alice", "carol"] {
        agent.for_user(user(name)).run("hi").await.unwrap();
    }
    let error = agent.for_user(user("bob")).run("hi").await.unwrap_err();
    must_be_limited(&error, "global_rps");
    assert_eq!(error.limited().unwrap().entity, Entity::Global);
    let said = format!("{error} {error:?}");
    assert!(!said.contains("alice") && !said.contains("carol"));
}

/// A limiter's line is in the receipt of an erasure, and an erasure is no way to a fresh burst.
#[tokio::test]
async fn an_erasure_makes_no_limit_fresh() {
    let limits = limiter(&slow_runs(1));
    let agent =
        Agent::builder("x").model(ModelDouble::saying("a b")).rate_limit(limits.clone()).build().unwrap();
    let alice = agent.for_user(user("alice"));
    alice.run("hi").await.unwrap();
    let receipt = alice.forget(Erase::everything()).await.unwrap();
    let stores: BTreeMap<_, _> = receipt.stores.iter().map(|line| (line.store.as_str(), line)).collect();
    assert_eq!(stores["rate_limit:inmemory"].retained.len(), 1);
    must_be_limited(&alice.run("hi").await.unwrap_err(), "per_user_rps");
    assert_eq!(limits.rules().limits.get(Entity::User, Resource::Runs).unwrap().burst(), 1);
}

/// A run whose caller goes away while it waits leaves the line, and nothing of it is left.
#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_away_in_line_takes_nothing() {
    let config = RateLimitConfig::new().per_user_rps(1.0).burst(1).on_limit(OnLimit::Wait);
    let model = ModelDouble::new(|_, _| Ok(say("a b")));
    let agent = agent(model.clone(), &config.max_wait(Duration::from_secs(60))).build().unwrap();
    let alice = agent.for_user(user("alice"));
    alice.run("hi").await.unwrap();
    let began = Instant::now();
    for _ in 0..5 {
        let waiting = alice.clone();
        let waiting = tokio::spawn(async move { waiting.run("hi").await });
        tokio::task::yield_now().await;
        waiting.abort();
        assert!(waiting.await.is_err());
    }
    alice.run("hi").await.unwrap();
    assert!(began.elapsed() <= Duration::from_millis(1_002), "{:?}", began.elapsed());
    assert_eq!(model.calls(), 2);
}
