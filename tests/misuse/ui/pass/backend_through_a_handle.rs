//! Reaching the agent's stores, and with them every tenant's data, through one tenant's handle.

use loomflow_core::UserAgent;

pub fn reach(alice: &UserAgent) {
    let _alice = alice.user_id();
}

fn main() {}
