//! Delegating to an agent without the context of the run that delegates.

use loomflow_core::{Agent, Delegation, RunContext};

pub fn delegate(_ctx: &RunContext, agent: &Agent) -> Delegation {
    _ctx.delegate(agent, "look it up")
}

fn main() {}
