//! Calling the mint from outside the agent.

use loomflow_core::{Epoch, Owner, Scope};

pub fn mint(owner: Owner) -> Scope {
    Scope::mint(owner, Epoch::ZERO)
}

fn main() {}
