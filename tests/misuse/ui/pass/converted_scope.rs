//! Converting a user's name into a scope.

use loomflow_core::Scope;

pub fn convert(name: &str, _scope: &Scope) -> bool {
    loomflow_core::UserId::new(name).is_ok()
}

fn main() {}
