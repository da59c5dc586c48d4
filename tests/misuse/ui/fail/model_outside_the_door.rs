//! Calling a model with a request that no ledger has counted.

use loomflow_core::{AdmittedCall, Model, ModelRequest, ModelStream, Result, RunContext};

pub async fn ask(
    model: &dyn Model,
    ctx: &RunContext,
    _request: ModelRequest,
    _admitted: AdmittedCall,
) -> Result<ModelStream> {
    model.stream(ctx, _request).await
}

fn main() {}
