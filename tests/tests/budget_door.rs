//! The model door under load and under attack: what is spent stays within the cap, and nobody gets an answer for free.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use loomflow_core::{
    Action, Agent, BudgetConfig, Entity, Error, ErrorKind, EventKind, ModelRequest, NanoUsd, Price,
    RetryPolicy, RunStatus, Window,
};
use loomflow_local::{InMemoryAuditLog, InMemoryMemory, JsonSchema, StandardBudget};
use loomflow_tests::double::{ModelDouble, Step, call, say};
use loomflow_tests::fixture::{FnTool, actions, assert_one_terminal_record_per_run, entries, user};
use tokio::sync::Notify;

fn budget(config: BudgetConfig) -> Arc<StandardBudget> {
    Arc::new(StandardBudget::new(config).unwrap())
}

/// Fifty runs of one capped user are in flight together: the double holds every call until each of the fifty either
/// reached it or was refused. What was granted is then spent to the last token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_runs_in_flight_on_one_capped_user_never_overspend() {
    const RUNS: u64 = 50;
    const CAP: u64 = 1_000;
    let settled = Arc::new(AtomicU64::new(0));
    let gate = Arc::new(Notify::new());
    let (at_the_double, opened) = (settled.clone(), gate.clone());
    let model = ModelDouble::new(move |request: &ModelRequest, _| {
        at_the_double.fetch_add(1, Ordering::SeqCst);
        let mut steps = vec![Step::Wait(opened.clone())];
        steps.extend((0..request.max_output_tokens).map(|_| Step::Say("word ".into())));
        Ok(steps)
    });
    let agent = Agent::builder("three word prompt")
        .model(model.clone())
        .budget(budget(BudgetConfig::new().per_user_max_tokens(CAP).window(Window::Day)))
        .audit_log(InMemoryAuditLog::new())
        .max_output_tokens(100)
        .build()
        .unwrap();
    let runs: Vec<_> = (0..RUNS)
        .map(|_| {
            let (tenant, settled) = (agent.for_user(user("capped")), settled.clone());
            tokio::spawn(async move {
                let ended = tenant.run("and two").await;
                if ended.is_err() {
                    settled.fetch_add(1, Ordering::SeqCst);
                }
                ended
            })
        })
        .collect();
    while settled.load(Ordering::SeqCst) < RUNS {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let in_flight = model.calls();
    assert!(in_flight >= 9, "{in_flight} calls were held in flight together");
    // Every call that got through is at its gate, or about to be: keep opening it until all have passed.
    let mut answered = 0;
    let mut refused = 0;
    let opener = {
        let gate = gate.clone();
        tokio::spawn(async move {
            loop {
                gate.notify_waiters();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    };
    for run in runs {
        match run.await.unwrap() {
            Ok(_) => answered += 1,
            Err(error) => {
                refused += 1;
                assert_eq!(error.kind(), ErrorKind::BudgetExceeded);
                let refusal = error.refusal().expect("a refusal says whose cap it was");
                assert_eq!(refusal.entity, Entity::User);
                assert_eq!(refusal.cap, "per_user_max_tokens");
                assert_eq!(refusal.window, "day");
                assert_eq!(refusal.limit, CAP);
                assert!(refusal.resets_at.is_some());
                assert!(error.to_string().contains("resets at"), "{error}");
            }
        }
    }
    opener.abort();
    assert_eq!(answered + refused, RUNS);
    let (input, output) = model.invoice();
    let usage = agent.for_user(user("capped")).usage().await.unwrap();
    assert_eq!(usage.used.total_tokens(), input + output, "the ledger is the invoice, to the token");
    assert!(input + output <= CAP, "{} spent of {CAP}", input + output);
    assert!(input + output > CAP - 110, "what was granted was used");
    assert_eq!((usage.held_tokens, usage.open_holds), (0, 0));
    assert_one_terminal_record_per_run(&agent.for_user(user("capped"))).await;
}

#[tokio::test]
async fn an_exhausted_user_cannot_buy_an_answer_with_structured_output() {
    let model = ModelDouble::saying("{\"ok\": true}");
    let agent = Agent::builder("x")
        .model(model.clone())
        .budget(budget(BudgetConfig::new().per_user_max_tokens(1)))
        .audit_log(InMemoryAuditLog::new())
        .build()
        .unwrap();
    let tenant = agent.for_user(user("poor"));
    let schema = JsonSchema::new(serde_json::json!({"type": "object"})).unwrap();
    let error = tenant.run("give me JSON").output_schema(schema).output_retries(5).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BudgetExceeded);
    assert_eq!(model.calls(), 0);
    assert_eq!(
        actions(&tenant).await,
        [Action::RunStarted, Action::BudgetRefused, Action::RunInterrupted],
        "it is an interruption, recorded once"
    );
}

#[tokio::test]
async fn a_retry_of_structured_output_is_charged_and_can_be_refused() {
    let model = ModelDouble::new(|_, n| Ok(say(if n == 0 { "not json at all" } else { "{\"n\":1}" })));
    let agent = |cap| {
        Agent::builder("x")
            .model(model.clone())
            .budget(budget(BudgetConfig::new().per_user_max_tokens(cap)))
            .max_output_tokens(10)
            .build()
            .unwrap()
    };
    let schema = || JsonSchema::new(serde_json::json!({"type": "object", "required": ["n"]})).unwrap();
    let rich = agent(10_000).for_user(user("rich"));
    let result = rich.run("q").output_schema(schema()).await.unwrap();
    assert_eq!(result.parsed.unwrap()["n"], 1);
    assert_eq!(model.calls(), 2);
    let (input, output) = model.invoice();
    assert_eq!(rich.usage().await.unwrap().used.total_tokens(), input + output);

    let model = ModelDouble::new(|_, _| Ok(say("not json at all")));
    let poor =
        Agent::builder("x").model(model.clone()).budget(budget(BudgetConfig::new().per_user_max_tokens(40)));
    let poor = poor.max_output_tokens(10).build().unwrap();
    let result =
        poor.for_user(user("poor")).run("q").output_schema(schema()).output_retries(9).await.unwrap();
    assert_eq!(result.status, RunStatus::Interrupted);
    assert_eq!(result.reason.as_deref(), Some("budget:per_user_max_tokens"));
    assert_eq!(result.refusal.unwrap().cap, "per_user_max_tokens");
    let used = poor.for_user(user("poor")).usage().await.unwrap().used.total_tokens();
    assert!(used <= 40, "{used}");
}

#[tokio::test]
async fn a_stream_dropped_after_six_words_is_charged_for_what_was_counted() {
    // The seventh word is a long time coming, so the reader leaves in the middle of the reply and not after it.
    let model = ModelDouble::new(|_, _| {
        let mut steps = say("one two three four five six ");
        steps.push(Step::Hang);
        Ok(steps)
    });
    let agent = Agent::builder("two words")
        .model(model.clone())
        .budget(budget(BudgetConfig::new().per_user_max_tokens(10_000)))
        .audit_log(InMemoryAuditLog::new())
        .build()
        .unwrap();
    let tenant = agent.for_user(user("impatient"));
    let mut events = tenant.stream("hello there you").await.unwrap();
    let mut words = 0;
    while let Some(event) = events.next().await {
        words += usize::from(matches!(event.kind, EventKind::TextDelta { .. }));
        if words == 6 {
            break;
        }
    }
    drop(events);
    agent.settled().await.unwrap();
    let usage = tenant.usage().await.unwrap();
    let (input, output) = model.invoice();
    assert_eq!(usage.used.input_tokens, 5);
    assert_eq!(usage.used.output_tokens, 6);
    assert_eq!((usage.used.input_tokens, usage.used.output_tokens), (input, output));
    assert_eq!((usage.held_tokens, usage.open_holds), (0, 0), "the hold is gone");
    assert_eq!(usage.estimated_tokens, input + output, "and marked as estimated");
    assert_eq!(actions(&tenant).await.last(), Some(&Action::RunCancelled));
    assert_one_terminal_record_per_run(&tenant).await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_charges_what_was_counted_and_ends_as_timed_out() {
    let model = ModelDouble::new(|_, _| Ok(vec![Step::Say("one two ".into()), Step::Hang]));
    let agent = Agent::builder("two words")
        .model(model.clone())
        .budget(budget(BudgetConfig::new().per_user_max_tokens(10_000)))
        .audit_log(InMemoryAuditLog::new())
        .run_timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    let tenant = agent.for_user(user("slow"));
    let error = tenant.run("hello").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    agent.settled().await.unwrap();
    let usage = tenant.usage().await.unwrap();
    assert_eq!((usage.used.input_tokens, usage.used.output_tokens), (3, 2));
    assert_eq!(usage.open_holds, 0);
    assert_eq!(actions(&tenant).await.last(), Some(&Action::RunTimedOut));
    assert_one_terminal_record_per_run(&tenant).await;
}

#[tokio::test]
async fn a_panic_in_a_tool_leaves_no_hold_and_one_terminal_record() {
    let model =
        ModelDouble::new(|_, n| Ok(if n == 0 { call("boom", "{}") } else { say("sorry about that") }));
    let agent = Agent::builder("x")
        .model(model.clone())
        .budget(budget(BudgetConfig::new().per_user_max_tokens(10_000)))
        .audit_log(InMemoryAuditLog::new())
        .tool(FnTool::new("boom", loomflow_core::Effect::Read, |_, _| async {
            panic!("tool panics on purpose")
        }))
        .build()
        .unwrap();
    let tenant = agent.for_user(user("unlucky"));
    let result = tenant.run("go").await.unwrap();
    assert_eq!(result.status, RunStatus::Completed);
    assert_eq!(result.tool_calls[0].status, loomflow_core::ToolStatus::Error);
    let told = model.requests()[1].messages.last().unwrap().text.clone();
    assert!(told.contains("panicked"), "{told}");
    agent.settled().await.unwrap();
    let (input, output) = model.invoice();
    let usage = tenant.usage().await.unwrap();
    assert_eq!(usage.used.total_tokens(), input + output);
    assert_eq!(usage.open_holds, 0);
    assert_one_terminal_record_per_run(&tenant).await;
}

#[tokio::test]
async fn a_panic_in_a_model_adapter_is_charged_and_recorded_as_failed() {
    let model = ModelDouble::new(|_, _| Ok(vec![Step::Say("half an ".into()), Step::Panic]));
    let agent = Agent::builder("x")
        .model(model.clone())
        .budget(budget(BudgetConfig::new().per_user_max_tokens(10_000)))
        .audit_log(InMemoryAuditLog::new())
        .build()
        .unwrap();
    let tenant = agent.for_user(user("unlucky"));
    let running = tenant.clone();
    assert!(tokio::spawn(async move { running.run("go").await }).await.unwrap_err().is_panic());
    agent.settled().await.unwrap();
    let usage = tenant.usage().await.unwrap();
    assert_eq!((usage.used.input_tokens, usage.used.output_tokens, usage.open_holds), (2, 2, 0));
    let last = entries(&tenant).await.pop().unwrap();
    assert_eq!(last.event.action, Action::RunFailed);
    assert!(last.event.payload.get().contains("panic"));
    assert_one_terminal_record_per_run(&tenant).await;
}

#[tokio::test]
async fn a_truncated_stream_is_an_error_and_is_charged() {
    let model = ModelDouble::new(|_, _| Ok(vec![Step::Say("half an ".into()), Step::Cut]));
    let agent =
        Agent::builder("x").model(model.clone()).budget(budget(BudgetConfig::new().per_user_max_tokens(99)));
    let agent = agent.max_output_tokens(10).build().unwrap();
    let tenant = agent.for_user(user("a"));
    assert_eq!(tenant.run("go").await.unwrap_err().kind(), ErrorKind::Truncated);
    assert_eq!(model.calls(), 1, "text was shown, so it is not tried again");
    assert_eq!(tenant.usage().await.unwrap().used.total_tokens(), 4);
}

#[tokio::test]
async fn missing_usage_is_estimated_and_marked() {
    let model =
        ModelDouble::new(|_, _| Ok(vec![Step::Say("three more words".into()), Step::DoneWithoutUsage]));
    let agent = Agent::builder("x")
        .model(model.clone())
        .budget(budget(BudgetConfig::new().per_user_max_tokens(9_999)))
        .audit_log(InMemoryAuditLog::new())
        .build()
        .unwrap();
    let tenant = agent.for_user(user("a"));
    tenant.run("go").await.unwrap();
    let usage = tenant.usage().await.unwrap();
    assert_eq!((usage.used.total_tokens(), usage.estimated_tokens), (5, 5));
    let recorded = entries(&tenant).await.into_iter().find(|e| e.event.action == Action::ModelCall).unwrap();
    assert!(recorded.event.payload.get().contains("\"estimated\":true"));
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_reserved_and_a_refused_order_is_not_charged() {
    let model = ModelDouble::new(|_, n| {
        if n < 2 { Err(Error::new(ErrorKind::Overloaded, "busy")) } else { Ok(say("at last")) }
    });
    let agent = Agent::builder("x")
        .model(model.clone())
        .budget(budget(BudgetConfig::new().per_user_max_tokens(9_999)))
        .audit_log(InMemoryAuditLog::new())
        .retry(RetryPolicy::new(3, Duration::from_secs(1), Duration::from_secs(30)))
        .build()
        .unwrap();
    let tenant = agent.for_user(user("a"));
    assert_eq!(&*tenant.run("go").await.unwrap().output, "at last");
    assert_eq!(model.calls(), 3);
    let (input, output) = model.invoice();
    let usage = tenant.usage().await.unwrap();
    assert_eq!(usage.used.total_tokens(), input + output);
    assert_eq!(usage.open_holds, 0);
    let calls = actions(&tenant).await.iter().filter(|a| **a == Action::ModelCall).count();
    assert_eq!(calls, 3, "each attempt is recorded");
}

#[tokio::test]
async fn a_timeout_before_the_stream_charges_the_prompt() {
    let model = ModelDouble::new(|_, _| Err(Error::new(ErrorKind::Timeout, "no headers in time")));
    let agent =
        Agent::builder("one").model(model).budget(budget(BudgetConfig::new().per_user_max_tokens(9_999)));
    let agent = agent.build().unwrap();
    let tenant = agent.for_user(user("a"));
    tenant.run("two three").await.unwrap_err();
    let usage = tenant.usage().await.unwrap();
    assert_eq!((usage.used.input_tokens, usage.estimated_tokens, usage.open_holds), (3, 3, 0));
}

#[tokio::test]
async fn an_unknown_price_under_a_cost_cap_is_refused_not_free() {
    #[derive(Debug)]
    struct Unpriced(Arc<ModelDouble>);
    #[async_trait::async_trait]
    impl loomflow_core::Model for Unpriced {
        fn name(&self) -> &str {
            "unpriced"
        }
        fn count_tokens(&self, request: &ModelRequest) -> u64 {
            self.0.count_tokens(request)
        }
        async fn stream(
            &self,
            ctx: &loomflow_core::RunContext,
            call: loomflow_core::AdmittedCall,
        ) -> loomflow_core::Result<loomflow_core::ModelStream> {
            self.0.stream(ctx, call).await
        }
    }
    let inner = ModelDouble::saying("hi");
    let capped = || budget(BudgetConfig::new().per_user_max_cost(NanoUsd::from_dollars(1)));
    let agent = Agent::builder("x").model(Unpriced(inner.clone())).budget(capped()).build().unwrap();
    let error = agent.for_user(user("a")).run("go").await.unwrap_err();
    assert!(error.to_string().contains("price"), "{error}");
    assert_eq!(inner.calls(), 0);
    let _ = Price::default();
}

/// Ten times as many throw-away users as the table holds: a capped user is still capped, and a full spill refuses a new
/// user with a clear error instead of giving somebody's quota away.
#[tokio::test]
async fn flooding_with_throw_away_users_resets_nobodys_quota() {
    const MAX: usize = 200;
    let model = ModelDouble::saying("ok");
    let config = BudgetConfig::new().per_user_max_tokens(6).window(Window::Day).max_users(MAX);
    let ledger = budget(config.max_spilled_users(20 * MAX));
    let agent = Agent::builder("x").model(model.clone()).budget(ledger).memory(InMemoryMemory::new());
    let agent = agent.max_output_tokens(2).session_history(0).build().unwrap();
    let capped = agent.for_user(user("capped"));
    while capped.run("go").await.is_ok() {}
    let spent = capped.usage().await.unwrap().used.total_tokens();
    for n in 0..10 * MAX {
        agent.for_user(user(&format!("throwaway_{n}"))).run("go").await.unwrap();
    }
    let error = capped.run("go").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BudgetExceeded);
    assert_eq!(capped.usage().await.unwrap().used.total_tokens(), spent);

    let config =
        BudgetConfig::new().per_user_max_tokens(6).window(Window::Day).max_users(64).max_spilled_users(64);
    let agent = Agent::builder("x").model(model).budget(budget(config)).max_output_tokens(2).build().unwrap();
    let mut refused = None;
    for n in 0..10_000 {
        if let Err(error) = agent.for_user(user(&format!("u{n}"))).run("go").await {
            refused = Some(error);
            break;
        }
    }
    let error = refused.expect("a table that is full refuses somebody new");
    assert_eq!(error.kind(), ErrorKind::Capacity);
    assert!(error.to_string().contains("max_spilled_users"), "{error}");
    let first = agent.for_user(user("u0"));
    assert!(first.usage().await.unwrap().used.total_tokens() > 0, "nobody's count was given away");
}
