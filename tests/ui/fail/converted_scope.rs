//! Converting a user's name into a scope.

use loomflow_core::{Scope, UserId};

pub fn convert(name: &str, _scope: &Scope) -> bool {
    Scope::from(name).user_id().is_some()
}

fn main() {}
