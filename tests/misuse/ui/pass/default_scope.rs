//! Asking for some scope or other.

use loomflow_core::{Namespace, Scope};

pub fn anyone(_scope: Option<&Scope>) -> Namespace {
    Namespace::default()
}

fn main() {}
