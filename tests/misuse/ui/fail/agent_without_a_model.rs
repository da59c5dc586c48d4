//! Building an agent that has no model.

use loomflow_core::{Agent, Model, Result};

pub fn build(_model: impl Model) -> Result<Agent> {
    Agent::builder("Answer.").build()
}

fn main() {}
