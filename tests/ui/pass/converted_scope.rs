//! Converting a user's name into a scope.

use loomflow_core::{Scope, UserId};

pub fn convert(name: &str, _scope: &Scope) -> bool {
    UserId::new(name).is_ok()
}

fn main() {}
