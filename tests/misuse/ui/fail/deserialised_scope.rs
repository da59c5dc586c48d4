//! Reading a scope out of a request body. The name of a partition can be read; it grants nothing.

use loomflow_core::{Owner, Scope};

pub fn read(body: &str, _scope: &Scope) -> bool {
    serde_json::from_str::<Scope>(body).is_ok()
}

pub fn names(owner: &Owner, scope: &Scope) -> bool {
    scope.owns(owner)
}

fn main() {}
