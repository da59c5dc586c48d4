//! The model door under load and under attack: what is spent stays within the cap, and nobody gets an answer for free.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use loomflow_core::{Action, Agent, BudgetConfig, Error, ErrorKind, RetryPolicy, RunStatus};
use loomflow_local::{InMemoryAuditLog, StandardBudget};
use loomflow_tests::double::{ModelDouble, Step, call, say};
use loomflow_tests::fixture::{FnTool, actions, assert_one_terminal_record_per_run, entries, user};

fn budget(config: BudgetConfig) -> Arc<StandardBudget> {
    Arc::new(StandardBudget::new(config).unwrap())
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
