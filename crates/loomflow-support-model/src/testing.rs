//! What this crate's own tests share.

use loomflow_core::danger::{assume_scope, detached_context};
use loomflow_core::{Epoch, Identity, Namespace, RunContext};

/// A context of nobody in particular.
pub(crate) fn context() -> RunContext {
    detached_context(assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO))
}
