//! Handing an audit log JSON that no redactor has seen.

use loomflow_core::{Action, Actor, AuditEvent, RunContext};
use serde_json::Value;

pub fn event(ctx: &RunContext, payload: &Value) -> AuditEvent {
    AuditEvent::new(ctx.now(), Actor::User, Action::ToolResult, payload.to_string())
}

fn main() {}
