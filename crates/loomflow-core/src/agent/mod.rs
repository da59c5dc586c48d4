//! The agent: one shared object that serves every tenant, and the handle through which one of them uses it.

mod approvals;
mod builder;
mod data;
mod delegate;
mod execute;
mod inherit;
mod request;
mod shared;
mod tool;
mod unlimited;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) use approvals::Deciding;
pub use builder::{AgentBuilder, HasModel, NoModel};
pub use data::ForgetReceipt;
pub use delegate::Delegation;
pub use request::{EventStream, Run, StreamRun};
pub use shared::IntoShared;
pub use tool::AgentTool;
pub use unlimited::UnlimitedLedger;

use crate::approval::{ApprovalHandler, ApprovalStore};
use crate::closer::Closer;
use crate::context::Services;
use crate::door::{RateGate, ToolSet};
use crate::error::Result;
use crate::identity::{Identity, Namespace, UserId};
use crate::ledger::Ledger;
use crate::model::{Embedder, Model};
use crate::permissions::{Permissions, PostToolHook, PreToolHook};
use crate::run::Settings;
use crate::runtime::Runtime;
use crate::scope::{Epoch, Owner, Scope};
use crate::tenant_data::TenantData;
use crate::tool::ToolSpec;

/// An agent, shared by all its tenants. Cheap to clone: every clone is the same agent.
///
/// The only ways in are [`Agent::for_user`] and [`Agent::anonymous`]: there is no run without an identity.
#[derive(Clone)]
pub struct Agent(Arc<AgentInner>);

pub(crate) struct AgentInner {
    pub(crate) name: Arc<str>,
    pub(crate) namespace: Namespace,
    pub(crate) instructions: Arc<str>,
    pub(crate) model: Arc<dyn Model>,
    pub(crate) embedder: Option<Arc<dyn Embedder>>,
    pub(crate) services: Arc<Services>,
    pub(crate) ledger: Arc<dyn Ledger>,
    /// The limits on rate, and the line before each. Whoever is an agent's child stands in the same lines, and in its own.
    pub(crate) rate: Vec<Arc<RateGate>>,
    pub(crate) permissions: Arc<dyn Permissions>,
    pub(crate) pre_hooks: Vec<Arc<dyn PreToolHook>>,
    pub(crate) post_hooks: Vec<Arc<dyn PostToolHook>>,
    pub(crate) approvals: Approvals,
    pub(crate) runtime: Option<Arc<dyn Runtime>>,
    pub(crate) tools: ToolSet,
    pub(crate) tool_specs: Arc<[Arc<ToolSpec>]>,
    pub(crate) settings: Settings,
    /// Whether there is a memory to write finished turns to.
    pub(crate) remembers: bool,
    pub(crate) closer: Arc<Closer>,
    pub(crate) closed: AtomicBool,
    /// The requests that somebody is deciding through a handle just now.
    pub(crate) deciding: Deciding,
}

/// Whom to ask, and how.
#[derive(Clone, Debug)]
pub(crate) struct Approvals {
    pub(crate) store: Option<Arc<dyn ApprovalStore>>,
    pub(crate) handler: Option<Arc<dyn ApprovalHandler>>,
    pub(crate) approvers: Arc<[UserId]>,
    pub(crate) self_approval: bool,
    pub(crate) expires_after: Duration,
    pub(crate) handler_timeout: Duration,
    /// Whether parent and child name approvers of whom none may decide for both: then nobody may but, where that is on, the
    /// requester. Without it, a handler of an agent that names no approvers may know some.
    pub(crate) nobody_else: bool,
}

impl Agent {
    /// Starts an agent with the operator's instructions. It needs a model before it can be built.
    pub fn builder(instructions: impl Into<Arc<str>>) -> AgentBuilder<NoModel> {
        AgentBuilder::new(instructions.into())
    }

    /// The agent as one authenticated user sees it.
    #[must_use]
    pub fn for_user(&self, user: UserId) -> UserAgent {
        self.for_identity(Identity::User(user))
    }

    /// The agent as the anonymous bucket sees it: a partition of its own, shared by all who are not told apart.
    #[must_use]
    pub fn anonymous(&self) -> UserAgent {
        self.for_identity(Identity::Anonymous)
    }

    /// The agent's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Refuses new runs from now on and waits until everything that dropped runs left behind is settled and recorded.
    ///
    /// Runs in flight are their callers' futures: wait for them, or drop them, first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`](crate::ErrorKind::Internal) when the runtime that settles was shut down before.
    pub async fn shutdown(&self) -> Result<()> {
        self.0.closed.store(true, Ordering::Release);
        self.0.closer.drain().await
    }

    /// Waits until everything that dropped runs left behind so far is settled and recorded; the agent goes on.
    ///
    /// # Errors
    ///
    /// As [`Agent::shutdown`].
    pub async fn settled(&self) -> Result<()> {
        self.0.closer.drain().await
    }

    fn for_identity(&self, identity: Identity) -> UserAgent {
        UserAgent { agent: self.0.clone(), owner: Owner::new(self.0.namespace.clone(), identity) }
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Agent({:?})", self.0.name)
    }
}

/// The agent as one tenant sees it. Nothing on it names a user, so there is no second tenant to mix up.
#[derive(Clone)]
pub struct UserAgent {
    agent: Arc<AgentInner>,
    owner: Owner,
}

impl UserAgent {
    /// Starts a run with the tenant's words. Await it for its result.
    pub fn run(&self, input: impl Into<Arc<str>>) -> Run {
        Run::new(self.clone(), input.into())
    }

    /// Starts a run whose events are streamed. Await it for the stream; dropping the stream cancels the run.
    pub fn stream(&self, input: impl Into<Arc<str>>) -> StreamRun {
        StreamRun::new(Run::new(self.clone(), input.into()))
    }

    /// The tenant; `None` for the anonymous bucket.
    #[must_use]
    pub fn user_id(&self) -> Option<&UserId> {
        self.owner.user_id()
    }
}

impl fmt::Debug for UserAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserAgent({:?} of {:?})", self.owner, self.agent.name)
    }
}

impl AgentInner {
    /// Mints the scope of `owner` in the newest epoch that any store knows.
    pub(crate) async fn mint(&self, owner: &Owner) -> Result<Scope> {
        let probe = Scope::mint(owner.clone(), Epoch::ZERO);
        let mut epoch = self.services.memory.epoch(&probe).await?;
        if let Some(runtime) = &self.runtime {
            epoch = epoch.max(runtime.epoch(&probe).await?);
        }
        if let Some(store) = &self.approvals.store {
            epoch = epoch.max(store.epoch(&probe).await?);
        }
        Ok(Scope::mint(owner.clone(), epoch))
    }

    /// Every store that keeps tenant data.
    pub(crate) fn stores(&self) -> Vec<&dyn TenantData> {
        let mut all: Vec<&dyn TenantData> = vec![&*self.services.memory];
        if let Some(store) = &self.approvals.store {
            all.push(&**store);
        }
        if let Some(runtime) = &self.runtime {
            all.push(&**runtime);
        }
        all.push(&*self.ledger);
        all.extend(self.rate.iter().map(|rate| rate.limiter() as &dyn TenantData));
        all.push(&*self.services.audit);
        all
    }
}

impl fmt::Debug for AgentInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentInner({:?})", self.name)
    }
}
