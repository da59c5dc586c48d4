//! In-process permissions: modes with allow and deny lists and rules, and a policy per user.

mod argument;
mod glob;
mod per_user;
mod rule;
mod standard;

pub use argument::Argument;
pub use per_user::PerUserPermissions;
pub use rule::Rule;
pub use standard::{PermissionMode, StandardPermissions};
