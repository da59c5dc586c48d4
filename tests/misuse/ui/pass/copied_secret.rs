//! Copying a secret instead of sharing it.

use std::sync::Arc;

use loomflow_core::Secret;

pub fn copy(secret: &Arc<Secret<String>>) -> Arc<Secret<String>> {
    Arc::clone(secret)
}

fn main() {}
