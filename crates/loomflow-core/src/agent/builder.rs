//! Puts an agent together. Without a model it does not compile; with parts that do not fit together it does not build.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::agent::{Agent, AgentInner, Approvals, Deciding, IntoShared, UnlimitedLedger};
use crate::approval::{ApprovalHandler, ApprovalStore};
use crate::audit::{AuditLog, NoAudit};
use crate::cache::{NoCache, ToolCache};
use crate::clock::{Clock, SystemClock};
use crate::closer::Closer;
use crate::context::Services;
use crate::door::{RateGate, RetryPolicy, ToolSet};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Namespace, UserId};
use crate::ledger::Ledger;
use crate::memory::{MemoryStore, NoMemory};
use crate::model::{Embedder, Model};
use crate::permissions::{Permissions, PostToolHook, PreToolHook, ReadOnlyRuns};
use crate::rate_limit::RateLimiter;
use crate::redact::{KeepAll, Redactor, Scrub};
use crate::run::Settings;
use crate::runtime::Runtime;
use crate::secret::{NoSecrets, Secrets};
use crate::telemetry::{NoTelemetry, Telemetry};
use crate::tool::Tool;

/// An agent without a model: it cannot be built yet.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct NoModel;

/// An agent with a model: it can be built.
#[derive(Clone, Debug)]
pub struct HasModel(Arc<dyn Model>);

/// Puts an [`Agent`] together. Parts are given by value, or as an `Arc` that is shared with somebody else.
#[must_use = "an agent is made by .build()"]
pub struct AgentBuilder<M> {
    model: M,
    name: Arc<str>,
    namespace: Namespace,
    instructions: Arc<str>,
    embedder: Option<Arc<dyn Embedder>>,
    memory: Option<Arc<dyn MemoryStore>>,
    ledger: Arc<dyn Ledger>,
    rate: Vec<Arc<RateGate>>,
    permissions: Arc<dyn Permissions>,
    pre_hooks: Vec<Arc<dyn PreToolHook>>,
    post_hooks: Vec<Arc<dyn PostToolHook>>,
    approvals: Approvals,
    audit: Arc<dyn AuditLog>,
    runtime: Option<Arc<dyn Runtime>>,
    secrets: Arc<dyn Secrets>,
    scrub: Arc<dyn Scrub>,
    cache: Arc<dyn ToolCache>,
    telemetry: Arc<dyn Telemetry>,
    clock: Arc<dyn Clock>,
    tools: Vec<Arc<dyn Tool>>,
    settings: Settings,
    context_window: u64,
    cleanup: (f64, f64),
}

impl AgentBuilder<NoModel> {
    pub(crate) fn new(instructions: Arc<str>) -> Self {
        Self {
            model: NoModel,
            name: Arc::from("agent"),
            namespace: Namespace::default(),
            instructions,
            embedder: None,
            memory: None,
            ledger: Arc::new(UnlimitedLedger),
            rate: Vec::new(),
            permissions: Arc::new(ReadOnlyRuns),
            pre_hooks: Vec::new(),
            post_hooks: Vec::new(),
            approvals: Approvals {
                store: None,
                handler: None,
                approvers: Arc::from([]),
                self_approval: false,
                expires_after: Duration::from_secs(15 * 60),
                handler_timeout: Duration::from_secs(30),
                nobody_else: false,
            },
            audit: Arc::new(NoAudit),
            runtime: None,
            secrets: Arc::new(NoSecrets),
            scrub: Arc::new(KeepAll),
            cache: Arc::new(NoCache),
            telemetry: Arc::new(NoTelemetry),
            clock: Arc::new(SystemClock),
            tools: Vec::new(),
            settings: default_settings(),
            context_window: 100_000,
            cleanup: (0.90, 0.60),
        }
    }

    /// Sets the model. Only then can the agent be built.
    pub fn model(self, model: impl IntoShared<dyn Model>) -> AgentBuilder<HasModel> {
        let Self {
            model: NoModel, name, namespace, instructions, embedder, memory, ledger, permissions, ..
        } = self;
        AgentBuilder {
            model: HasModel(model.into_shared()),
            name,
            namespace,
            instructions,
            embedder,
            memory,
            ledger,
            rate: self.rate,
            permissions,
            pre_hooks: self.pre_hooks,
            post_hooks: self.post_hooks,
            approvals: self.approvals,
            audit: self.audit,
            runtime: self.runtime,
            secrets: self.secrets,
            scrub: self.scrub,
            cache: self.cache,
            telemetry: self.telemetry,
            clock: self.clock,
            tools: self.tools,
            settings: self.settings,
            context_window: self.context_window,
            cleanup: self.cleanup,
        }
    }
}

fn default_settings() -> Settings {
    Settings {
        max_turns: 50,
        max_input_bytes: 1 << 20,
        run_timeout: Duration::from_secs(120),
        tool_timeout: Duration::from_secs(120),
        hook_timeout: Duration::from_secs(5),
        max_parallel_tools: 16,
        max_tool_result_bytes: 50_000,
        max_output_tokens: 4_096,
        session_history: 20,
        recall_episodes: 3,
        recall_facts: 5,
        cleanup_above: 0,
        cleanup_to: 0,
        min_messages_to_keep: 5,
        retry: RetryPolicy::default(),
        audit_continues: false,
        session_lease: Duration::from_secs(30),
        max_depth: 4,
        max_children: 64,
    }
}

macro_rules! parts {
    ($($(#[$doc:meta])* $name:ident => $field:ident : $part:ident;)*) => {
        $($(#[$doc])*
        pub fn $name(mut self, part: impl IntoShared<dyn $part>) -> Self {
            self.$field = part.into_shared();
            self
        })*
    };
}

macro_rules! bounds {
    ($($(#[$doc:meta])* $name:ident => $field:ident : $ty:ty;)*) => {
        $($(#[$doc])*
        pub fn $name(mut self, bound: $ty) -> Self {
            self.settings.$field = bound;
            self
        })*
    };
}

impl<M> AgentBuilder<M> {
    parts! {
        /// Sets the budget; without one, nothing is capped or counted.
        budget => ledger: Ledger;
        /// Sets the policy; without one, tools that only read run and everything else asks.
        permissions => permissions: Permissions;
        /// Sets the audit log; without one, nothing is recorded.
        audit_log => audit: AuditLog;
        /// Sets where secrets are resolved.
        secrets => secrets: Secrets;
        /// Sets what takes secrets out of everything that reaches a sink.
        redaction => scrub: Scrub;
        /// Sets the cache behind [`RunContext::cached`](crate::RunContext::cached).
        tool_cache => cache: ToolCache;
        /// Sets where metrics and spans go.
        telemetry => telemetry: Telemetry;
        /// Sets the clock. For tests.
        clock => clock: Clock;
    }

    bounds! {
        /// The most model calls of a run, retries of structured output included (50).
        max_turns => max_turns: u32;
        /// The most bytes of a run's input (1 MiB).
        max_input_bytes => max_input_bytes: usize;
        /// How long a run may take, waiting for people left out (120 s). Its answer is still remembered afterwards.
        run_timeout => run_timeout: Duration;
        /// How long a tool call may take, unless the tool says otherwise (120 s).
        tool_timeout => tool_timeout: Duration;
        /// How long a hook or the policy may take to decide (5 s). Longer is a deny.
        hook_timeout => hook_timeout: Duration;
        /// The most tool calls of one run at a time (16).
        max_parallel_tools => max_parallel_tools: usize;
        /// The most bytes of a tool's result that the model is shown (50,000).
        max_tool_result_bytes => max_tool_result_bytes: usize;
        /// The most tokens of one reply (4,096); the budget may lower it.
        max_output_tokens => max_output_tokens: u64;
        /// The most messages of the session that are replayed (20).
        session_history => session_history: usize;
        /// How many episodes are recalled into the prompt (3).
        recall_episodes => recall_episodes: usize;
        /// How many facts are recalled into the prompt (5).
        recall_facts => recall_facts: usize;
        /// The latest messages that are never left out of the prompt (5).
        min_messages_to_keep => min_messages_to_keep: usize;
        /// How deep a run may delegate: to children, to theirs, and so on (4). 0 lets no tool delegate.
        max_delegation_depth => max_depth: u32;
        /// How many runs a run may lead to by delegation, its children's children included (64).
        max_delegations => max_children: u32;
        /// When and how often a failed model call is made again.
        retry => retry: RetryPolicy;
    }

    /// Names the agent, for reports and telemetry.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the application's share of its stores (`default`).
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// Sets the memory; without one, every run stands alone.
    pub fn memory(mut self, memory: impl IntoShared<dyn MemoryStore>) -> Self {
        self.memory = Some(memory.into_shared());
        self
    }

    /// Limits the rate of runs, model calls and tokens, of each user and of all together; without it nothing is limited.
    ///
    /// Who waits stands in this agent's own line: of two agents that share a limiter, neither keeps the other's order.
    pub fn rate_limit(mut self, limiter: impl IntoShared<dyn RateLimiter>) -> Self {
        self.rate = vec![Arc::new(RateGate::new(limiter.into_shared()))];
        self
    }

    /// Sets what makes vectors for recall; without one, recall ranks by words.
    pub fn embedder(mut self, embedder: impl IntoShared<dyn Embedder>) -> Self {
        self.embedder = Some(embedder.into_shared());
        self
    }

    /// Offers a tool.
    pub fn tool(mut self, tool: impl IntoShared<dyn Tool>) -> Self {
        self.tools.push(tool.into_shared());
        self
    }

    /// Adds a gate before every tool call.
    pub fn before_tool(mut self, hook: impl IntoShared<dyn PreToolHook>) -> Self {
        self.pre_hooks.push(hook.into_shared());
        self
    }

    /// Adds an observer after every tool call.
    pub fn after_tool(mut self, hook: impl IntoShared<dyn PostToolHook>) -> Self {
        self.post_hooks.push(hook.into_shared());
        self
    }

    /// Sets where requests for approval are kept. Needed together with [`AgentBuilder::approval_handler`].
    pub fn approval_store(mut self, store: impl IntoShared<dyn ApprovalStore>) -> Self {
        self.approvals.store = Some(store.into_shared());
        self
    }

    /// Sets who takes a request to the people who may decide; without one, an ask is a denial.
    pub fn approval_handler(mut self, handler: impl IntoShared<dyn ApprovalHandler>) -> Self {
        self.approvals.handler = Some(handler.into_shared());
        self
    }

    /// Names the users who may decide requests of others (none).
    pub fn approvers(mut self, approvers: impl IntoIterator<Item = UserId>) -> Self {
        self.approvals.approvers = approvers.into_iter().collect();
        self
    }

    /// Lets users decide their own requests (off).
    pub fn self_approval(mut self, yes: bool) -> Self {
        self.approvals.self_approval = yes;
        self
    }

    /// How long a request for approval can be decided and used (15 minutes).
    pub fn approvals_expire_after(mut self, time: Duration) -> Self {
        self.approvals.expires_after = time;
        self
    }

    /// Sets what journals runs and keeps two of one session apart.
    pub fn runtime(mut self, runtime: impl IntoShared<dyn Runtime>) -> Self {
        self.runtime = Some(runtime.into_shared());
        self
    }

    /// Goes on when the audit log cannot be written, counting what was lost. By default the run stops.
    pub fn audit_failures_continue(mut self) -> Self {
        self.settings.audit_continues = true;
        self
    }

    /// Sets the context window in tokens (100,000); a smaller one that the model declares holds instead. A prompt above
    /// `above` of it is cut down to `to` of it.
    pub fn context_window(mut self, tokens: u64, above: f64, to: f64) -> Self {
        self.context_window = tokens;
        self.cleanup = (above, to);
        self
    }
}

impl AgentBuilder<HasModel> {
    /// Builds the agent.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming what does not fit together: two tools of one name, a handler without a store, bounds
    /// that contradict each other.
    pub fn build(mut self) -> Result<Agent> {
        self.check()?;
        let mut tools = ToolSet::default();
        for tool in self.tools {
            tools.add(tool)?;
        }
        let HasModel(model) = self.model;
        let window =
            model.capabilities().context_window.map_or(self.context_window, |w| w.min(self.context_window));
        let share = |part: f64| (window as f64 * part) as u64;
        (self.settings.cleanup_above, self.settings.cleanup_to) =
            (share(self.cleanup.0), share(self.cleanup.1));
        let remembers = self.memory.is_some();
        let services = Services {
            memory: self.memory.unwrap_or_else(|| Arc::new(NoMemory)),
            audit: self.audit,
            secrets: self.secrets,
            cache: self.cache,
            telemetry: self.telemetry,
            redactor: Redactor::new(self.scrub),
            clock: self.clock,
        };
        Ok(Agent(Arc::new(AgentInner {
            name: self.name,
            namespace: self.namespace,
            instructions: self.instructions,
            model,
            embedder: self.embedder,
            services: Arc::new(services),
            ledger: self.ledger,
            rate: self.rate,
            permissions: self.permissions,
            pre_hooks: self.pre_hooks,
            post_hooks: self.post_hooks,
            approvals: self.approvals,
            runtime: self.runtime,
            tool_specs: tools.specs(),
            tools,
            settings: self.settings,
            remembers,
            closer: Arc::new(Closer::new()),
            closed: AtomicBool::new(false),
            deciding: Deciding::default(),
        })))
    }

    fn check(&self) -> Result<()> {
        let bad = |why: &str| Err(Error::new(ErrorKind::Config, why.to_owned()));
        let settings = &self.settings;
        if self.approvals.handler.is_some() && self.approvals.store.is_none() {
            return bad(
                "an approval handler needs a store to keep its requests in; set one with .approval_store(..)",
            );
        }
        if settings.max_turns == 0 || settings.max_parallel_tools == 0 || settings.max_output_tokens == 0 {
            return bad("max_turns, max_parallel_tools and max_output_tokens must be at least 1");
        }
        if settings.run_timeout.is_zero() || settings.run_timeout > Duration::from_secs(86_400) {
            return bad("run_timeout must be above zero and at most 24 hours");
        }
        let (above, to) = self.cleanup;
        if !(to > 0.0 && to < above && above <= 1.0) {
            return bad("the context cleanup needs 0 < to < above <= 1");
        }
        Ok(())
    }
}

impl<M> fmt::Debug for AgentBuilder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentBuilder({:?})", self.name)
    }
}
