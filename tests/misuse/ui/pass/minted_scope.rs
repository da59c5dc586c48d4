//! Calling the mint from outside the agent.

use loomflow_core::{Epoch, Owner, Scope};

pub fn mint(owner: Owner) -> Scope {
    loomflow_core::danger::assume_scope(owner.namespace().clone(), owner.identity().clone(), Epoch::ZERO)
}

fn main() {}
