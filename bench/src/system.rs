//! Assembles the system under test. The only room of the driver that knows concrete backends: what a profile runs on is
//! decided here and nowhere else.

use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{
    Agent, BudgetConfig, Effect, IntoShared, Model, PermittedCall, Result, RunContext, Tool, ToolOutcome,
    ToolSpec,
};
use loomflow_local::{
    InMemoryAuditLog, InMemoryMemory, MemoryConfig, PermissionMode, StandardBudget, StandardPermissions,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::{Config, Profile};
use crate::meter::AuditBytes;

/// The most tokens a tenant of the comparison may use: the peers' driver sets the same.
const PER_USER_TOKENS: u64 = 10_000_000;
/// Every message of a session is replayed in the comparison, as the peers do.
const MESSAGES_PER_TURN: usize = 4;
/// Audit entries of one run at most: the log must hold all of them, so that they can be counted.
const ENTRIES_PER_RUN: usize = 64;

/// The names of the stores under test, as the report has them.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Stores {
    /// The memory.
    pub memory: &'static str,
    /// The ledger.
    pub ledger: &'static str,
    /// The audit log.
    pub audit: &'static str,
    /// The runtime.
    pub runtime: &'static str,
}

/// What the comparison runs on.
#[derive(Debug)]
#[non_exhaustive]
pub struct FixedSystem {
    /// The agent that all tenants share.
    pub agent: Agent,
    /// Its audit log.
    pub audit: Option<Arc<InMemoryAuditLog>>,
    /// The names of its stores.
    pub stores: Stores,
}

/// The agent of the profiles `bare`, `text` and `tool`.
///
/// # Errors
///
/// When the parts do not fit together, which is a defect of the driver.
pub fn fixed(config: &Config, model: impl IntoShared<dyn Model>) -> Result<FixedSystem> {
    let users = config.users.saturating_mul(2).max(16);
    let memory = InMemoryMemory::with_config(&MemoryConfig::new().with_max_users(users).with_max_bytes(None));
    let mut builder = Agent::builder("you are an assistant")
        .model(model)
        .memory(memory)
        .session_history(config.turns.saturating_mul(MESSAGES_PER_TURN).max(20));
    if config.profile == Profile::Bare {
        let stores = Stores { memory: "inmemory", ledger: "none", audit: "none", runtime: "none" };
        let agent = builder.recall_episodes(0).recall_facts(0).build()?;
        return Ok(FixedSystem { agent, audit: None, stores });
    }
    let budget = BudgetConfig::new().per_user_max_tokens(PER_USER_TOKENS).max_users(users);
    let audit = Arc::new(InMemoryAuditLog::new().with_capacity(capacity(config)));
    builder = builder.budget(StandardBudget::new(budget)?).audit_log(audit.clone());
    if config.profile == Profile::Tool {
        let policy = StandardPermissions::new(PermissionMode::Default).allowed_tools(["add"])?;
        builder = builder.permissions(policy).tool(Add::new()?);
    }
    let stores = Stores { memory: "inmemory", ledger: "inmemory", audit: "inmemory", runtime: "none" };
    Ok(FixedSystem { agent: builder.build()?, audit: Some(audit), stores })
}

fn capacity(config: &Config) -> usize {
    config.users.saturating_mul(config.turns).saturating_mul(ENTRIES_PER_RUN)
}

/// How many bytes an audit log takes, by its own account.
#[must_use]
pub fn audit_bytes(audit: Option<&Arc<InMemoryAuditLog>>) -> AuditBytes {
    match audit.cloned() {
        Some(log) => Arc::new(move || log.approx_bytes() as u64),
        None => Arc::new(|| 0),
    }
}

/// The peers' tool: adds two numbers.
#[derive(Debug)]
pub struct Add(ToolSpec);

impl Add {
    /// The tool.
    ///
    /// # Errors
    ///
    /// When its own description is refused, which is a defect.
    pub fn new() -> Result<Self> {
        let parameters = json!({
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        });
        ToolSpec::new("add", "Add two numbers.", Effect::Read, parameters).map(Self)
    }
}

#[derive(Deserialize)]
struct Numbers {
    a: i64,
    b: i64,
}

#[async_trait]
impl Tool for Add {
    fn spec(&self) -> &ToolSpec {
        &self.0
    }

    async fn call(&self, _ctx: &RunContext, call: PermittedCall) -> ToolOutcome {
        match call.parse::<Numbers>() {
            Ok(Numbers { a, b }) => ToolOutcome::json(&(a + b)),
            Err(error) => error.into(),
        }
    }
}
