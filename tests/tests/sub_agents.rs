//! Sub-agents: whatever a child was built with, it runs under everything that governs its parent, and what it spends is the
//! parent's and the user's, once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "sub_agents/ends.rs"]
mod ends;
#[path = "sub_agents/governance.rs"]
mod governance;
#[path = "sub_agents/journal.rs"]
mod journal;
#[path = "sub_agents/leaving.rs"]
mod leaving;
#[path = "sub_agents/money.rs"]
mod money;
#[path = "sub_agents/tenants.rs"]
mod tenants;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use loomflow_core::{
    Action, Agent, AgentBuilder, AgentTool, AuditEntry, Effect, HasModel, IntoShared, RunId, Tool,
    ToolOutcome, UserAgent,
};
use loomflow_local::{InMemoryAuditLog, StandardPermissions};
use loomflow_tests::double::{ModelDouble, Step, say};
use loomflow_tests::fixture::{FnTool, entries};
use serde_json::Value;

/// A model that asks for `tool` as often as `times` in its first turn, and then says how that went.
fn asks(tool: &'static str, arguments: &'static str, times: usize) -> Arc<ModelDouble> {
    ModelDouble::new(move |request, _| {
        let told = request.messages.last().filter(|m| m.tool_call_id.is_some());
        Ok(match told {
            Some(message) => say(&message.text),
            None => (0..times).map(|_| Step::Call(tool, arguments.to_owned())).collect(),
        })
    })
}

/// `child` as the tool `research`.
fn research(child: &Agent) -> AgentTool {
    child.as_tool("research", "Looks things up.").unwrap()
}

/// An agent that delegates once to `child` and may do anything. Everything about it is audited.
fn coordinator(child: &Agent) -> AgentBuilder<HasModel> {
    coordinator_with(research(child))
}

/// An agent that calls its tool `research` once.
fn coordinator_with(tool: impl IntoShared<dyn Tool>) -> AgentBuilder<HasModel> {
    conducting(asks("research", "{\"task\": \"look it up\"}", 1), tool)
}

/// An agent with this model and this tool that may do anything. Everything about it is audited.
fn conducting(model: Arc<ModelDouble>, tool: impl IntoShared<dyn Tool>) -> AgentBuilder<HasModel> {
    Agent::builder("coordinate")
        .name("coordinator")
        .model(model)
        .tool(tool)
        .permissions(StandardPermissions::bypass())
        .audit_log(InMemoryAuditLog::new())
}

/// An agent that calls its tool `work` once and may do anything; the counter counts executions.
fn worker() -> (AgentBuilder<HasModel>, Arc<AtomicU64>) {
    let executed = Arc::new(AtomicU64::new(0));
    let counter = executed.clone();
    let work = FnTool::new("work", Effect::Destructive, move |_, _| {
        counter.fetch_add(1, Ordering::SeqCst);
        async { ToolOutcome::ok("worked") }
    });
    let builder = Agent::builder("work")
        .name("worker")
        .model(asks("work", "{}", 1))
        .tool(work)
        .permissions(StandardPermissions::bypass());
    (builder, executed)
}

/// An agent that says `text` and has no tools.
fn speaker(text: &'static str) -> Agent {
    Agent::builder("speak").name("speaker").model(ModelDouble::saying(text)).build().unwrap()
}

fn payload(entry: &AuditEntry) -> Value {
    serde_json::from_str(entry.event.payload.get()).expect("a payload is JSON")
}

/// The children in a tenant's log, oldest first: each run with the run it was delegated from.
async fn children(tenant: &UserAgent) -> Vec<(RunId, RunId)> {
    let started = |entry: &AuditEntry| {
        let parent = payload(entry)["parent_run_id"].as_str()?.parse().expect("a run id");
        Some((entry.event.run.expect("a run"), parent))
    };
    let log = entries(tenant).await;
    log.iter().filter(|entry| entry.event.action == Action::RunStarted).filter_map(started).collect()
}

/// The entries of one run, oldest first.
async fn of_run(tenant: &UserAgent, run: RunId) -> Vec<AuditEntry> {
    entries(tenant).await.into_iter().filter(|entry| entry.event.run == Some(run)).collect()
}

fn actions_of(entries: &[AuditEntry]) -> Vec<Action> {
    entries.iter().map(|entry| entry.event.action).collect()
}

/// Checks that every child's records lie between the intent and the result of the call it was delegated from, and so before
/// its parent's end.
async fn assert_children_are_bracketed(tenant: &UserAgent) {
    let log = entries(tenant).await;
    let place = |run: RunId, action: Action, call: Option<&Value>| {
        log.iter().position(|entry| {
            entry.event.run == Some(run)
                && entry.event.action == action
                && call.is_none_or(|call| payload(entry)["call_id"] == *call)
        })
    };
    for (child, parent) in children(tenant).await {
        let own: Vec<usize> =
            log.iter().enumerate().filter(|(_, e)| e.event.run == Some(child)).map(|(at, _)| at).collect();
        let (first, last) = (own[0], own[own.len() - 1]);
        assert_eq!(log[first].event.action, Action::RunStarted);
        assert!(log[last].event.action.is_terminal(), "{child} ends with {:?}", log[last].event.action);
        let call = payload(&log[first])["parent_call_id"].clone();
        let intent = place(parent, Action::ToolIntent, Some(&call)).expect("the call was meant");
        let result = place(parent, Action::ToolResult, Some(&call)).expect("the call ended");
        assert!(intent < first && last < result, "{intent} < {first}..{last} < {result}");
        let end = log.iter().position(|e| e.event.run == Some(parent) && e.event.action.is_terminal());
        assert!(last < end.expect("the parent ended"));
    }
}
