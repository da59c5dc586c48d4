//! Assembles the system under test. The only room of the driver that knows concrete backends: what a profile runs on is
//! decided here and nowhere else.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    Agent, AgentBuilder, AuditLog, BudgetConfig, Effect, HasModel, IntoShared, Ledger, MemoryStore, Model,
    Namespace, Permissions, PermittedCall, Result, RetryPolicy, RunContext, Runtime, Tool, ToolOutcome,
    ToolSpec,
};
use loomflow_local::{
    HashEmbedder, InMemoryAuditLog, InProcRuntime, PerUserPermissions, PermissionMode, StandardPermissions,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::backends::{Leftovers, Opened};
use crate::config::{Config, Profile};
use crate::meter::AuditBytes;
use crate::population::Population;
use crate::provider::{Invoice, MeteredEmbedder};
use crate::watch::Watch;
use crate::witness::{CanaryTool, PolicyCounts, PolicyWitness, TelemetryWitness};

/// The most tokens a tenant of the comparison may use: the peers' driver sets the same.
const PER_USER_TOKENS: u64 = 10_000_000;
/// Every message of a session is replayed in the comparison, as the peers do.
const MESSAGES_PER_TURN: usize = 4;
/// Audit entries of one run at most: the log must hold all of them, so that they can be counted.
const ENTRIES_PER_RUN: usize = 64;

/// What `--keep` leaves of an audit log: its lines, as an operator would archive them.
#[derive(Clone, Debug)]
pub struct Dump(Option<Arc<InMemoryAuditLog>>);

impl Dump {
    /// Writes the log's lines to `path`; an empty file when there is no log.
    ///
    /// # Errors
    ///
    /// Whatever writing fails with.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        for line in self.0.iter().flat_map(|log| log.lines()) {
            writeln!(out, "{line}")?;
        }
        out.flush()
    }
}

/// The names of the stores under test, as the report has them.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Stores {
    /// The memory.
    pub memory: String,
    /// The ledger.
    pub ledger: String,
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
    pub(crate) leftovers: Leftovers,
}

/// The agent of the profiles `bare`, `text` and `tool`.
///
/// # Errors
///
/// When the memory cannot be opened, or the parts do not fit together, which is a defect of the driver.
pub async fn fixed(config: &Config, model: impl IntoShared<dyn Model> + Send) -> Result<FixedSystem> {
    let opened = Opened::open(config, BudgetConfig::new().per_user_max_tokens(PER_USER_TOKENS)).await?;
    let leftovers = opened.leftovers();
    let mut builder = Agent::builder("you are an assistant")
        .model(model)
        .memory(opened.memory)
        .namespace(opened.namespace)
        .session_history(config.turns.saturating_mul(MESSAGES_PER_TURN).max(20));
    if config.profile == Profile::Bare {
        let stores =
            Stores { memory: opened.memory_name, ledger: "none".to_owned(), audit: "none", runtime: "none" };
        let agent = builder.recall_episodes(0).recall_facts(0).build()?;
        return Ok(FixedSystem { agent, audit: None, stores, leftovers });
    }
    let audit = Arc::new(InMemoryAuditLog::new().with_capacity(capacity(config)));
    builder = builder.budget(opened.ledger).audit_log(audit.clone());
    if config.profile == Profile::Tool {
        let policy = StandardPermissions::new(PermissionMode::Default).allowed_tools(["add"])?;
        builder = builder.permissions(policy).tool(Add::new()?);
    }
    let stores =
        Stores { memory: opened.memory_name, ledger: opened.ledger_name, audit: "inmemory", runtime: "none" };
    Ok(FixedSystem { agent: builder.build()?, audit: Some(audit), stores, leftovers })
}

fn capacity(config: &Config) -> usize {
    config.users.saturating_mul(config.turns).saturating_mul(ENTRIES_PER_RUN)
}

impl FixedSystem {
    /// The log's lines.
    #[must_use]
    pub fn dump(&self) -> Dump {
        Dump(self.audit.clone())
    }
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

/// What the profile `full` runs on.
#[non_exhaustive]
pub struct FullSystem {
    /// The agent that all tenants share.
    pub agent: Agent,
    /// The same parts with a deadline that nobody can meet who waits for a provider that stalls.
    pub hurried: Agent,
    /// The audit log, as the agents see it.
    pub audit: Arc<dyn AuditLog>,
    /// How many bytes the log takes.
    pub audit_bytes: AuditBytes,
    /// The log's lines.
    pub dump: Dump,
    /// The names of the stores.
    pub stores: Stores,
    pub(crate) leftovers: Leftovers,
}

impl std::fmt::Debug for FullSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FullSystem({:?})", self.stores)
    }
}

/// The driver's own doubles, which the system is built around.
#[derive(Debug)]
#[non_exhaustive]
pub struct Doubles {
    /// The provider.
    pub model: Arc<dyn Model>,
    /// The population, for whoever must tell tenants apart.
    pub people: Arc<Population>,
    /// The watch.
    pub watch: Arc<Watch>,
    /// The invoice.
    pub invoice: Arc<Invoice>,
    /// Counts what telemetry is told.
    pub telemetry: Arc<TelemetryWitness>,
    /// Counts what the policy decides.
    pub policy: Arc<PolicyCounts>,
    /// Counts tool calls.
    pub tool_calls: Arc<AtomicU64>,
}

/// How long a run may take that is given too little time.
const HURRY: Duration = Duration::from_millis(20);
/// The most tokens of a reply in the profile `full`: every reply fits, and a nearly exhausted budget cuts it.
const REPLY_TOKENS: u64 = 32;
/// What a tenant may use per turn in the profile `full`: enough for most, too little for those who talk a lot.
const TOKENS_PER_TURN: u64 = 1_200;

/// The agents of the profile `full`, over one set of stores.
///
/// # Errors
///
/// When the memory cannot be opened, or the parts do not fit together, which is a defect of the driver.
pub async fn full(config: &Config, doubles: &Doubles) -> Result<FullSystem> {
    let cap = TOKENS_PER_TURN.saturating_mul(config.turns as u64);
    let opened = Opened::open(config, BudgetConfig::new().per_user_max_tokens(cap)).await?;
    let leftovers = opened.leftovers();
    let log = Arc::new(InMemoryAuditLog::new().with_capacity(capacity(config)));
    let parts = Parts {
        memory: opened.memory,
        namespace: opened.namespace,
        ledger: opened.ledger,
        audit: log.clone(),
        runtime: Arc::new(InProcRuntime::with_max_open_runs(config.room().saturating_mul(2))),
    };
    #[cfg(feature = "fault-injection")]
    let parts = crate::fault::inject(config.fault, parts);
    let policy: Arc<dyn Permissions> =
        Arc::new(PolicyWitness::new(policies(&doubles.people)?, doubles.policy.clone()));
    Ok(FullSystem {
        agent: agent(doubles, &parts, &policy)?.build()?,
        hurried: agent(doubles, &parts, &policy)?.run_timeout(HURRY).build()?,
        audit: parts.audit,
        audit_bytes: audit_bytes(Some(&log)),
        dump: Dump(Some(log)),
        stores: Stores {
            memory: opened.memory_name,
            ledger: opened.ledger_name,
            audit: "inmemory",
            runtime: "inproc",
        },
        leftovers,
    })
}

/// The stores that several agents share.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) memory: Arc<dyn MemoryStore>,
    pub(crate) namespace: Namespace,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) audit: Arc<dyn AuditLog>,
    pub(crate) runtime: Arc<dyn Runtime>,
}

fn agent(doubles: &Doubles, parts: &Parts, policy: &Arc<dyn Permissions>) -> Result<AgentBuilder<HasModel>> {
    let (people, watch) = (&doubles.people, &doubles.watch);
    let embedder =
        MeteredEmbedder::new(HashEmbedder::new(), people.clone(), watch.clone(), doubles.invoice.clone());
    let tool = |name, effect| {
        CanaryTool::new(name, effect, people.clone(), watch.clone(), doubles.tool_calls.clone())
    };
    let retry = RetryPolicy::new(3, Duration::from_millis(1), Duration::from_millis(5));
    Ok(Agent::builder("You keep what you are told to yourself.")
        .model(doubles.model.clone())
        .embedder(embedder)
        .memory(parts.memory.clone())
        .namespace(parts.namespace.clone())
        .budget(parts.ledger.clone())
        .audit_log(parts.audit.clone())
        .runtime(parts.runtime.clone())
        .permissions(policy.clone())
        .telemetry(doubles.telemetry.clone())
        .tool(tool("lookup", Effect::Read)?)
        .tool(tool("keep", Effect::Write)?)
        .max_output_tokens(REPLY_TOKENS)
        .retry(retry))
}

/// Most may do everything, some may not look anything up, and some would have to ask before they keep anything.
fn policies(people: &Population) -> Result<PerUserPermissions> {
    let mut all = PerUserPermissions::new(StandardPermissions::accept_edits());
    for place in 0..people.len() {
        let Some(user) = people.tenant(place).user.clone() else { continue };
        all = match place % 10 {
            3 => all.policy(user, StandardPermissions::accept_edits().denied_tools(["lookup"])?),
            7 => all.policy(user, StandardPermissions::new(PermissionMode::Default)),
            _ => all,
        };
    }
    Ok(all)
}
