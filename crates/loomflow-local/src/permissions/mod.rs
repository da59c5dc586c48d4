//! In-process permissions: modes with allow and deny lists, and a policy per user.

mod glob;
mod per_user;
mod standard;

pub use per_user::PerUserPermissions;
pub use standard::{PermissionMode, StandardPermissions};
