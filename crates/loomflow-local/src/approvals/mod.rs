//! In-process approvals: a bounded store of requests, and two handlers.

mod handlers;
mod store;

pub use handlers::{CallbackApprovals, DenyAll};
pub use store::InMemoryApprovalStore;
