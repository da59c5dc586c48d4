//! Embedded, in-process implementations of every LoomFlow trait: no key, no server, nothing to start.

#![forbid(unsafe_code)]

mod approvals;
mod audit;
mod cache;
mod embed;
mod epochs;
mod ledger;
mod memory;
mod model;
mod permissions;
mod rate_limit;
mod redact;
mod runtime;
mod schema;
mod secrets;

pub use approvals::{CallbackApprovals, DenyAll, InMemoryApprovalStore};
pub use audit::InMemoryAuditLog;
pub use cache::{MokaToolCache, ToolCacheConfig};
pub use embed::{FakeEmbedder, HashEmbedder};
pub use ledger::StandardBudget;
#[doc(hidden)]
pub use memory::PlantedRecord;
pub use memory::{InMemoryFactStore, InMemoryMemory, MemoryConfig, MemoryStats};
pub use model::{EchoModel, ScriptStep, ScriptedModel};
pub use permissions::{Argument, PerUserPermissions, PermissionMode, Rule, StandardPermissions};
pub use rate_limit::{StandInRateLimiter, StandardRateLimiter};
pub use redact::PatternScrub;
pub use runtime::{InMemoryJournalStore, InProcRuntime};
pub use schema::JsonSchema;
pub use secrets::{DictSecrets, EnvSecrets};
