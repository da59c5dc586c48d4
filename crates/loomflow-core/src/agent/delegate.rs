//! Delegation: the one way in which a run leads to another that is its child.

use std::collections::BTreeMap;
use std::fmt;
use std::future::IntoFuture;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::{Either, select};

use crate::agent::execute::{Asked, check, finish};
use crate::agent::{Agent, AgentInner, IntoShared};
use crate::context::{ContextParts, RunContext};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::SessionId;
use crate::ids::RunId;
use crate::result::RunResult;
use crate::run::{Finisher, Latch, Origin, RunClock, RunState};
use crate::runtime::RunLease;
use crate::schema::OutputSchema;

impl RunContext {
    /// Has `agent` do a task, as a child of the run whose tool this context was given to. Await it for its result.
    ///
    /// The child is the same tenant's, and everything that governs the run governs it: ledger, policies and hooks, approvals,
    /// audit log, deadline. What `agent` was built with can only make that stricter. What the child uses counts as the
    /// run's own. See `docs/sub-agents.md`.
    ///
    /// The child has a conversation of its own, which is new. Dropping the future cancels it; so does the end of the tool
    /// call, for a child that was left to a task.
    ///
    /// [`Agent::for_user`] inside a tool begins a run of its own, not a child: it is bound by nothing but what that agent was
    /// built with.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Unsupported`] for a context that no tool was called with: a hook's, a policy's, a model's.
    /// - [`ErrorKind::Conflict`] when the call that the context belongs to is over, or the agent is shutting down.
    /// - [`ErrorKind::Config`] for an agent of another namespace.
    /// - [`ErrorKind::Denied`] when runs are delegated too deep or too many.
    /// - [`ErrorKind::BudgetExceeded`] when a cap refused the child's first call.
    /// - Whatever the child's run fails with.
    pub fn delegate(&self, agent: &Agent, task: impl Into<Arc<str>>) -> Delegation {
        let asked = Asked {
            input: task.into(),
            images: Vec::new(),
            session: None,
            session_error: None,
            schema: None,
            output_retries: 1,
            metadata: BTreeMap::new(),
            resume: None,
        };
        Delegation { ctx: self.clone(), agent: agent.0.clone(), asked }
    }
}

/// A task that was given to another agent and not begun. Await it for the child's [`RunResult`].
#[must_use = "a child begins when it is awaited"]
pub struct Delegation {
    ctx: RunContext,
    agent: Arc<AgentInner>,
    asked: Asked,
}

/// How a child ended.
pub(crate) struct Ended {
    pub(crate) result: Result<RunResult>,
    /// Whether it may have changed anything, as far as its tools say.
    pub(crate) acted: bool,
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self { result: Err(error), acted: false }
    }
}

impl Delegation {
    /// Asks for an answer that meets a schema. An answer that does not is asked for again, once by default.
    pub fn output_schema(mut self, schema: impl IntoShared<dyn OutputSchema>) -> Self {
        self.asked.schema = Some(schema.into_shared());
        self
    }

    /// How often an answer that misses its schema is asked for again (1).
    pub fn output_retries(mut self, retries: u32) -> Self {
        self.asked.output_retries = retries;
        self
    }

    pub(crate) async fn ended(self) -> Ended {
        let Self { ctx, agent, asked } = self;
        match run(&ctx, &agent, asked).await {
            Ok(ended) => ended,
            Err(error) => error.into(),
        }
    }
}

impl IntoFuture for Delegation {
    type Output = Result<RunResult>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<RunResult>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async { self.ended().await.result })
    }
}

impl fmt::Debug for Delegation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Delegation(to {:?} from {:?})", self.agent, self.ctx)
    }
}

/// Lets the child in and runs it until it ends, or until its call does.
async fn run(ctx: &RunContext, agent: &AgentInner, asked: Asked) -> Result<Ended> {
    let Some(call) = ctx.call() else {
        let why = "only a tool can delegate, with the context it was called with";
        return Err(Error::new(ErrorKind::Unsupported, why));
    };
    // Held until the child is gone, and all its holds and records are at least handed over.
    let (mut recall, latch) = call.enter().ok_or_else(over)?;
    let parent = call.run.upgrade().ok_or_else(over)?;
    check(agent, &asked)?;
    let agent = agent.beneath(&parent.agent, call.clock.remaining())?;
    parent.descend()?;
    let child = Box::pin(child(Origin { parent, call: call.clone() }, latch, agent, asked));
    match select(child, pin!(recall.called())).await {
        Either::Left((ended, _)) => Ok(ended),
        Either::Right(((), child)) => {
            drop(child);
            Err(over())
        }
    }
}

fn over() -> Error {
    Error::new(ErrorKind::Conflict, "the tool call that this context belongs to is over")
}

async fn child(origin: Origin, outer: Arc<Latch>, agent: Arc<AgentInner>, asked: Asked) -> Ended {
    let around = &origin.parent.ctx;
    let began = around.now();
    let id = RunId::fresh(began);
    let within = RunClock::within(&origin.call.clock, agent.settings.run_timeout);
    let clock = within.clock().clone();
    let ctx = RunContext::new(ContextParts {
        services: agent.services.clone(),
        scope: around.scope().dup(),
        run: id,
        session: SessionId::fresh(),
        clock: clock.clone(),
        metadata: around.shared_metadata(),
    });
    let latch = Latch::new(Some(outer));
    // Only a root has a lease: a child is one step of its journal.
    let lease = RunLease::new(id, 0);
    let run = Arc::new(RunState::new(agent, ctx, clock, lease, None, &latch, Some(origin)));
    let finisher = Finisher::arm(run.clone(), run.slot(), latch);
    let result = finish(run.clone(), finisher, asked, began).await;
    Ended { result, acted: run.acted.load(Ordering::Acquire) }
}
