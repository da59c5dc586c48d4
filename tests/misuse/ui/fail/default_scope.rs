//! Asking for some scope or other.

use loomflow_core::{Namespace, Scope};

pub fn anyone(_scope: Option<&Scope>) -> Namespace {
    Scope::default().namespace().clone()
}

fn main() {}
