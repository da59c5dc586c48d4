//! Delegating on behalf of somebody else.

use loomflow_core::{Agent, Delegation, RunContext, UserId};

pub fn delegate(ctx: &RunContext, agent: &Agent, _user: UserId) -> Delegation {
    ctx.delegate(&agent.for_user(_user), "look it up")
}

fn main() {}
