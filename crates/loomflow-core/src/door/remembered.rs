//! Calls that nobody needs to be asked about, because an approver said so before: a grant counts for the user it was given
//! for, for calls of the same tool that its arguments cover, under the same policy, and while whoever gave it may still give it.

use crate::approval::{ApprovalGrant, ApprovalStore};
use crate::context::open_all;
use crate::door::permit::Bound;
use crate::error::Result;
use crate::run::RunState;
use crate::tool::ToolSpec;

/// The grant that answers for the call, if there is one that counts under this version of the policy.
pub(super) async fn covering(
    run: &RunState,
    spec: &ToolSpec,
    bound: &Bound,
    store: &dyn ApprovalStore,
    version: u64,
) -> Result<Option<ApprovalGrant>> {
    let (scope, now) = (run.ctx.scope(), run.ctx.now());
    let found = store.remembered(scope, &spec.name, now).await?;
    let own = open_all(run.ctx.services(), scope, "approvals", found).await?;
    let counts = |grant: &ApprovalGrant| {
        is_eligible(run, grant) && grant.covers(spec, &bound.call, &bound.arguments, version, now)
    };
    Ok(own.into_iter().find(counts))
}

/// Whether who gave it may decide about this user's calls today: one who lost the right takes their grants with them.
fn is_eligible(run: &RunState, grant: &ApprovalGrant) -> bool {
    let approvals = &run.agent.approvals;
    if run.ctx.user_id() == Some(&grant.by) {
        approvals.self_approval
    } else {
        approvals.approvers.contains(&grant.by)
    }
}
