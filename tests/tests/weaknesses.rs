//! The weaknesses of the Python predecessor, each by its number and as the experiment that showed it. None of them may come here.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    Action, AdmittedCall, Agent, AgentBuilder, ApprovalDecision, ApprovalRequest, AuditEntry, AuditEvent,
    AuditLog, AuditQuery, AuditReceipt, AuditVerification, BudgetConfig, Capabilities, Clock, Decision,
    Delta, Done, Effect, Entity, EpisodeId, EpisodeMatch, Erase, Erased, Error, ErrorKind, EventKind,
    ExportStream, FactStore, HasModel, HistoryLimit, Identity, MemoryBlock, MemoryProfile, MemoryStore,
    Message, Model, ModelRequest, ModelStream, NanoUsd, NewEpisode, Notified, Owned, Permissions,
    PreToolHook, Price, PutBlock, RecallQuery, Result, RetryPolicy, RunContext, RunStatus, Scope, SessionId,
    StopReason, TenantData, Timestamp, ToolCall, ToolOutcome, ToolStatus, Usage, UserId, Window,
};
use loomflow_local::{
    CallbackApprovals, InMemoryApprovalStore, InMemoryAuditLog, InMemoryMemory, JsonSchema,
    PerUserPermissions, StandardBudget, StandardPermissions,
};
use loomflow_tests::double::{ModelDouble, Step, call, say};
use loomflow_tests::fixture::{
    FnTool, RuntimeClock, actions, assert_one_terminal_record_per_run, entries, quiet_on_purpose, user,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

#[path = "weaknesses/failing.rs"]
mod failing;
#[path = "weaknesses/money.rs"]
mod money;
#[path = "weaknesses/permission.rs"]
mod permission;

pub(crate) fn budget(config: BudgetConfig) -> Arc<StandardBudget> {
    Arc::new(StandardBudget::new(config).unwrap())
}

/// An agent whose model asks for `pay` once and then says goodbye; the list is what was paid.
pub(crate) fn paying() -> (AgentBuilder<HasModel>, Arc<Mutex<Vec<String>>>) {
    let paid = Arc::new(Mutex::new(Vec::new()));
    let till = paid.clone();
    let pay = FnTool::new("pay", Effect::External, move |ctx, arguments| {
        let who = ctx.user_id().map_or("nobody", UserId::as_str);
        till.lock().push(format!("{who} {}", arguments["cents"]));
        async { ToolOutcome::ok("paid") }
    });
    let model = ModelDouble::new(|request, _| {
        let answered = request.messages.last().is_some_and(|m| m.tool_call_id.is_some());
        Ok(if answered { say("bye") } else { call("pay", "{\"cents\":5}") })
    });
    (Agent::builder("x").model(model).tool(pay).audit_log(InMemoryAuditLog::new()), paid)
}

/// Decides every request at once.
pub(crate) fn deciding(
    decide: impl Fn(&ApprovalRequest) -> ApprovalDecision + Send + Sync + 'static,
) -> CallbackApprovals {
    CallbackApprovals::new(move |_, ask| {
        let decision = decide(&ask);
        async move { Ok(Notified::Decided { decision, by: Some(user("boss")) }) }
    })
}
