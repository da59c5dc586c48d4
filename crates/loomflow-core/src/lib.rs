//! LoomFlow's vocabulary, traits and partitioned agent loop.
//!
//! One shared [`Agent`] serves many tenants, and everything it keeps, spends, decides, logs and measures is partitioned
//! by their identity. This crate holds the types that make that hard to get wrong, the traits a backend implements,
//! the two doors (to models and to tools) and the loop. It contains no driver, no HTTP, and reads neither the
//! environment nor the filesystem.
//!
//! Application authors start at the `loomflow` crate; backend authors at [`MemoryStore`], [`Ledger`], [`AuditLog`],
//! [`ApprovalStore`], [`Runtime`] and the `loomflow-conformance` crate.

#![forbid(unsafe_code)]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

mod agent;
mod approval;
mod audit;
mod cache;
mod clock;
mod closer;
mod context;
pub mod danger;
mod door;
mod error;
mod event;
mod identity;
mod ids;
mod image;
mod ledger;
pub mod r#loop;
mod memory;
mod message;
mod model;
mod outcome;
mod permissions;
mod rate_limit;
mod redact;
pub mod resilience;
mod result;
pub mod rules;
mod run;
mod runtime;
mod schema;
mod scope;
mod secret;
pub mod settings;
mod telemetry;
mod tenant_data;
mod tool;
mod usage;

pub use agent::{
    Agent, AgentBuilder, AgentTool, Delegation, EventStream, ForgetReceipt, HasModel, IntoShared, NoModel,
    Run, StreamRun, UnlimitedLedger, UserAgent,
};
pub use approval::{
    Approval, ApprovalDecision, ApprovalGrant, ApprovalHandler, ApprovalPage, ApprovalRequest, ApprovalState,
    ApprovalStore, ArgumentPattern, GrantTerms, MAX_APPROVAL_PAGE, MAX_FIXED_ARGUMENTS, Notified,
};
pub use audit::{
    Action, Actor, AuditChain, AuditEntry, AuditEvent, AuditKey, AuditLine, AuditLog, AuditProblem,
    AuditQuery, AuditReceipt, AuditVerification, AuditVerifier, NoAudit, SealedLine, parse_line,
};
pub use cache::{NoCache, ToolCache};
pub use clock::{Clock, SystemClock, Timestamp};
pub use context::RunContext;
pub use door::RetryPolicy;
pub use error::{Error, ErrorKind, Result};
pub use event::{Event, EventKind};
pub use identity::{Identity, LEGACY_ANONYMOUS_SENTINEL, Namespace, SessionId, UserId};
pub use ids::{ApprovalId, EpisodeId, FactId, GrantId, HoldId, RunId};
pub use image::{Image, ImageSource};
pub use ledger::{
    BudgetConfig, Cap, CapUsage, Caps, Charge, Entity, EstimatedCharge, Granted, Held, Hold, HoldKey, Ledger,
    Limits, Phase, Refusal, RefusalReason, Reservation, Reserve, Sent, Settled, UsageReport, Warning, Window,
};
pub use memory::{
    AssertOutcome, Asserted, Capabilities, Cardinality, Embedding, Episode, EpisodeMatch, Fact, FactQuery,
    FactStore, HistoryLimit, MemoryBlock, MemoryProfile, MemoryStore, NewEpisode, NewFact, NoMemory,
    PutBlock, RecallQuery, ScopedMemory, canonical_predicate,
};
pub use message::{Digest, Message, Role, ToolCall, canonical_json};
pub use model::{
    AdmittedCall, AdmittedEmbed, Delta, Done, EmbedPurpose, Embedded, Embedder, Model, ModelCapabilities,
    ModelRequest, ModelStream, StopReason, estimate_tokens,
};
pub use outcome::{IntoToolOutcome, Json};
pub use permissions::{Decision, Grounds, Judged, Permissions, PostToolHook, PreToolHook, ReadOnlyRuns};
pub use rate_limit::{
    Amounts, LimitReason, Limited, OnLimit, RateLimitConfig, RateLimiter, RateLimits, RateRules, Resource,
    Taken, Tats,
};
pub use redact::{KeepAll, ObjectWriter, Redacted, Redactor, Scrub};
pub use result::{RunResult, RunStatus, ToolCallReport, ToolStatus};
pub use runtime::{Recorded, RunLease, RunOpening, RunRecord, Runtime, StepKey};
pub use schema::{OutputSchema, parse_output};
pub use scope::{Epoch, Owned, Owner, Scope};
pub use secret::{NoSecrets, Secret, SecretRef, Secrets};
pub use telemetry::{Label, NoTelemetry, Telemetry};
pub use tenant_data::{Erase, Erased, ExportItem, ExportStream, TenantData, export_from};
pub use tool::{Effect, PermittedCall, Tool, ToolOutcome, ToolSpec, call_digest, wire_name};
pub use usage::{LongPrompt, NanoUsd, Price, Usage};
