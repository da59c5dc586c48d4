//! Admitting a model call oneself.

use loomflow_core::{AdmittedCall, HoldKey, ModelRequest};

pub fn admit(request: ModelRequest, key: HoldKey) -> AdmittedCall {
    AdmittedCall::seal(request, 1, key)
}

fn main() {}
