//! Admitting a model call oneself.

use loomflow_core::{AdmittedCall, ModelRequest};

pub fn admit(request: ModelRequest) -> AdmittedCall {
    loomflow_core::danger::admit(request)
}

fn main() {}
