//! An agent as a tool of another.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::json;

use crate::agent::Agent;
use crate::agent::delegate::Ended;
use crate::context::RunContext;
use crate::error::Result;
use crate::result::{RunResult, RunStatus};
use crate::tool::{Effect, PermittedCall, Tool, ToolOutcome, ToolSpec};

/// An agent that another can call as a tool, with one argument: the `task`, in words. Made by [`Agent::as_tool`].
#[derive(Clone, Debug)]
pub struct AgentTool {
    agent: Agent,
    spec: ToolSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    task: Arc<str>,
}

impl Agent {
    /// This agent as a tool: a call [delegates](RunContext::delegate) the task to it and answers with what it says.
    ///
    /// The model of the agent that has the tool reads `name` and `description`; it chooses the task and nothing else.
    /// Whatever it writes, the child is the same tenant's.
    ///
    /// The call's effect is [`Effect::External`] unless [`AgentTool::with_effect`] says otherwise: the strictest, because nobody
    /// knows what the agent's tools do.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a name that is not a tool's.
    pub fn as_tool(&self, name: &str, description: impl Into<Arc<str>>) -> Result<AgentTool> {
        Ok(AgentTool { agent: self.clone(), spec: spec(name, description.into(), Effect::External)? })
    }
}

fn spec(name: &str, description: Arc<str>, effect: Effect) -> Result<ToolSpec> {
    let parameters = json!({
        "type": "object",
        "properties": {
            "task": {
                "type": "string",
                "description": "The whole task, in words. Whoever does it sees nothing of this conversation but this."
            }
        },
        "required": ["task"],
        "additionalProperties": false
    });
    ToolSpec::new(name, description, effect, parameters)
}

impl AgentTool {
    /// Says what a call may do, at the worst: it decides whether delegating needs approval, and what a call that was cut off is
    /// taken for. What the agent's own tools do is decided call by call, whatever this says.
    ///
    /// An agent that only [reads](Effect::Read) is also asked again after a crash in the middle of its task; any other is left
    /// in doubt for a person.
    #[must_use]
    pub fn with_effect(self, effect: Effect) -> Self {
        let ToolSpec { name, description, timeout, .. } = self.spec;
        let mut spec = spec(&name, description, effect).expect("the name was good before");
        spec.timeout = timeout;
        Self { spec, ..self }
    }

    /// How long a call may take, waiting for people left out; without it the tool timeout of the agent that has the tool.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.spec.timeout = Some(timeout);
        self
    }
}

#[async_trait]
impl Tool for AgentTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, ctx: &RunContext, call: PermittedCall) -> ToolOutcome {
        match call.parse::<Arguments>() {
            Ok(Arguments { task }) => told(ctx.delegate(&self.agent, task).ended().await),
            Err(error) => error.into(),
        }
    }
}

/// What the model that delegated is told. A child that did not get through may have done things: then nobody should take its
/// task for undone.
fn told(Ended { result, acted }: Ended) -> ToolOutcome {
    let why = match result {
        Ok(RunResult { status: RunStatus::Completed, output, .. }) => return ToolOutcome::Ok(output),
        Ok(RunResult { status, reason, output, .. }) => {
            let reason = reason.as_deref().unwrap_or(status.as_str());
            let words = if output.is_empty() { "" } else { "; its last words: " };
            format!("the task was not finished: {reason}{words}{output}")
        }
        Err(error) => format!("the task was not finished: {}", error.message()),
    };
    if acted { ToolOutcome::Unknown(why.into()) } else { ToolOutcome::Error(why.into()) }
}
