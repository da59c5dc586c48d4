//! Converting a user's name into a scope.

use loomflow_core::Scope;

pub fn convert(name: &str, _scope: &Scope) -> bool {
    Into::<Scope>::into(name).user_id().is_some()
}

fn main() {}
