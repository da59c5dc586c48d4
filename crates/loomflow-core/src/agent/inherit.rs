//! What a delegated run is made of: the agent's own, under everything that governs the run it is delegated from.
//!
//! The doors, the closer and the loop ask the run's agent for its ledger, its policy, its log. A child runs as an agent put
//! together here, in which all of these are the parent's or stricter; so no door has to know that there are children.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;

use crate::agent::{AgentInner, Approvals, Deciding};
use crate::context::{RunContext, Services};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Digest, ToolCall};
use crate::permissions::{Decision, Judged, Permissions};
use crate::run::Settings;
use crate::tool::Effect;

impl AgentInner {
    /// This agent as it runs when a run of `parent` delegates to it: nothing that governs the parent is lifted, and of what
    /// this agent was built with only what makes things stricter is added.
    ///
    /// Instructions, model, embedder, tools, memory and tool cache are its own.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] when it lives in another namespace: its memory would be another application's.
    pub(crate) fn beneath(&self, parent: &Self, time_left: Duration) -> Result<Arc<Self>> {
        if self.namespace != parent.namespace {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "agent {:?} lives in namespace {:?} and {:?} in {:?}; build both with one namespace",
                    self.name, self.namespace, parent.name, parent.namespace
                ),
            ));
        }
        let (own, above) = (&self.services, &parent.services);
        let services = Services {
            memory: own.memory.clone(),
            cache: own.cache.clone(),
            audit: above.audit.clone(),
            secrets: above.secrets.clone(),
            telemetry: above.telemetry.clone(),
            redactor: above.redactor.and(&own.redactor),
            clock: above.clock.clone(),
        };
        Ok(Arc::new(Self {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            instructions: self.instructions.clone(),
            model: self.model.clone(),
            embedder: self.embedder.clone(),
            services: Arc::new(services),
            ledger: parent.ledger.clone(),
            rate: joined(&parent.rate, &self.rate),
            permissions: both(&parent.permissions, &self.permissions),
            pre_hooks: joined(&parent.pre_hooks, &self.pre_hooks),
            post_hooks: joined(&parent.post_hooks, &self.post_hooks),
            approvals: parent.approvals.narrowed(&self.approvals),
            // A child is one step of its parent's journal and has none of its own.
            runtime: None,
            tools: self.tools.clone(),
            tool_specs: self.tool_specs.clone(),
            settings: self.settings.narrowed(&parent.settings, time_left),
            remembers: self.remembers,
            closer: parent.closer.clone(),
            closed: AtomicBool::new(false),
            deciding: Deciding::default(),
        }))
    }
}

impl Settings {
    fn narrowed(&self, parent: &Self, time_left: Duration) -> Self {
        Self {
            run_timeout: self.run_timeout.min(time_left),
            hook_timeout: self.hook_timeout.min(parent.hook_timeout),
            max_parallel_tools: self.max_parallel_tools.min(parent.max_parallel_tools),
            max_output_tokens: self.max_output_tokens.min(parent.max_output_tokens),
            audit_continues: self.audit_continues && parent.audit_continues,
            ..self.clone()
        }
    }
}

impl Approvals {
    /// The parent's way of asking. Where the child names approvers of its own, only who may decide for both may, and where that
    /// is nobody, nobody is asked.
    fn narrowed(&self, own: &Self) -> Self {
        let mut asked = self.clone();
        if !own.approvers.is_empty() {
            asked.self_approval &= own.self_approval;
            asked.approvers =
                self.approvers.iter().filter(|id| own.approvers.contains(id)).cloned().collect();
            asked.nobody_else |= asked.approvers.is_empty();
        }
        if asked.nobody_else && !asked.self_approval {
            asked.handler = None;
        }
        asked
    }
}

/// The parent's, then those of the child that the parent does not have already.
fn joined<T: ?Sized>(above: &[Arc<T>], own: &[Arc<T>]) -> Vec<Arc<T>> {
    let known = |part: &&Arc<T>| !above.iter().any(|other| Arc::ptr_eq(other, part));
    above.iter().chain(own.iter().filter(known)).cloned().collect()
}

fn both(above: &Arc<dyn Permissions>, own: &Arc<dyn Permissions>) -> Arc<dyn Permissions> {
    if Arc::ptr_eq(above, own) {
        return own.clone();
    }
    Arc::new(Narrowed { above: above.clone(), own: own.clone() })
}

/// The policy of a delegated run: its own, and that of every run around it.
#[derive(Debug)]
struct Narrowed {
    above: Arc<dyn Permissions>,
    own: Arc<dyn Permissions>,
}

#[async_trait]
impl Permissions for Narrowed {
    async fn check(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Decision> {
        self.judge(ctx, call, effect).await.map(|judged| judged.decision)
    }

    async fn judge(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Judged> {
        let above = self.above.judge(ctx, call, effect).await?;
        let own = self.own.judge(ctx, call, effect).await?;
        Ok(Judged {
            decision: above.decision.and(own.decision),
            // An allow that rests on two bypasses is told by the one that governs more.
            grounds: above.grounds.or(own.grounds),
        })
    }

    /// Another number whenever either has another.
    fn version(&self) -> u64 {
        let parts = [self.above.version(), self.own.version()].map(u64::to_be_bytes);
        let digest = Digest::of(&[&parts[0], &parts[1]]);
        u64::from_be_bytes(*digest.as_bytes().first_chunk().expect("a digest has 32 bytes"))
    }
}
