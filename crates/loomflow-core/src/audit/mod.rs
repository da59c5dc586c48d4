//! The audit log: what is recorded, and what a log backend implements.

mod chain;
mod line;
mod scan;
mod verify;

#[cfg(test)]
mod tests;

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::error::Result;
use crate::identity::SessionId;
use crate::ids::RunId;
use crate::redact::Redacted;
use crate::scope::{Owned, Scope};
use crate::tenant_data::TenantData;

pub use chain::{AuditChain, AuditKey, SealedLine};
pub use line::{AuditLine, parse_line};
pub use verify::AuditVerifier;

/// Who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Actor {
    /// The tenant.
    User,
    /// The model.
    Model,
    /// The framework.
    System,
    /// Somebody who decided an approval.
    Approver,
}

impl Actor {
    /// The actor's stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Model => "model",
            Self::System => "system",
            Self::Approver => "approver",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::User, Self::Model, Self::System, Self::Approver].into_iter().find(|a| a.as_str() == name)
    }
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// What was done.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Action { $($(#[$doc])* $name,)* }

        impl Action {
            /// The action's stable name.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The action with that stable name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$name),)* _ => None }
            }

            /// Every action, for a table or a filter.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

actions! {
    /// A run began.
    RunStarted => "run_started",
    /// A run ended with an answer.
    RunCompleted => "run_completed",
    /// A run was stopped by a limit or a guard.
    RunInterrupted => "run_interrupted",
    /// A run failed.
    RunFailed => "run_failed",
    /// A run's caller went away.
    RunCancelled => "run_cancelled",
    /// A run's deadline passed.
    RunTimedOut => "run_timed_out",
    /// A model was called.
    ModelCall => "model_call",
    /// A tool is about to be called.
    ToolIntent => "tool_intent",
    /// What became of a tool call.
    ToolResult => "tool_result",
    /// What policy and hooks decided about a tool call.
    PermissionDecision => "permission_decision",
    /// Somebody was asked.
    ApprovalRequested => "approval_requested",
    /// Somebody approved.
    ApprovalGranted => "approval_granted",
    /// Somebody, or the lack of anybody, denied.
    ApprovalDenied => "approval_denied",
    /// Nobody decided in time.
    ApprovalExpired => "approval_expired",
    /// Somebody approved other arguments.
    ApprovalEdited => "approval_edited",
    /// A cap refused a call.
    BudgetRefused => "budget_refused",
    /// A cap reached its warning line.
    BudgetWarning => "budget_warning",
    /// A guard blocked something.
    GuardrailBlocked => "guardrail_blocked",
    /// A tenant's data was erased.
    MemoryForget => "memory_forget",
    /// A tenant's data was exported.
    MemoryExport => "memory_export",
    /// A secret was resolved; the name only.
    SecretResolved => "secret_resolved",
    /// A store handed out another tenant's record; it was withheld.
    IsolationViolation => "isolation_violation",
    /// The log's key changed.
    KeyRotated => "key_rotated",
    /// Old entries were removed.
    RetentionCheckpoint => "retention_checkpoint",
}

impl Action {
    /// Whether this is one of the five records that end a run.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::RunCompleted
                | Self::RunInterrupted
                | Self::RunFailed
                | Self::RunCancelled
                | Self::RunTimedOut
        )
    }
}

/// Something to record. The payload is redacted: there is no way to hand a log anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditEvent {
    /// When.
    pub at: Timestamp,
    /// The conversation.
    pub session: Option<SessionId>,
    /// The run.
    pub run: Option<RunId>,
    /// Who.
    pub actor: Actor,
    /// What.
    pub action: Action,
    /// Details: a JSON object.
    pub payload: Redacted<String>,
}

impl AuditEvent {
    /// An event outside a run.
    #[must_use]
    pub fn new(at: Timestamp, actor: Actor, action: Action, payload: Redacted<String>) -> Self {
        Self { at, session: None, run: None, actor, action, payload }
    }

    /// Says which run of which conversation it belongs to.
    #[must_use]
    pub fn in_run(mut self, session: SessionId, run: RunId) -> Self {
        self.session = Some(session);
        self.run = Some(run);
        self
    }
}

/// That an event was recorded, as durably as the log is configured to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditReceipt {
    /// Its place in the log, from 1.
    pub seq: u64,
}

impl AuditReceipt {
    /// The receipt for the entry number `seq`.
    #[must_use]
    pub fn new(seq: u64) -> Self {
        Self { seq }
    }
}

/// A recorded event, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditEntry {
    /// Its place in the log.
    pub seq: u64,
    /// The event.
    pub event: AuditEvent,
}

impl AuditEntry {
    /// An entry as a log read it back.
    #[must_use]
    pub fn new(seq: u64, event: AuditEvent) -> Self {
        Self { seq, event }
    }
}

/// Which of a tenant's own entries to read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditQuery {
    /// Only this action.
    pub action: Option<Action>,
    /// Only this run.
    pub run: Option<RunId>,
    /// Only entries after this place.
    pub after: u64,
    /// The most entries, oldest first.
    pub limit: usize,
}

impl AuditQuery {
    /// The first `limit` entries.
    #[must_use]
    pub fn first(limit: usize) -> Self {
        Self { action: None, run: None, after: 0, limit }
    }

    /// Only entries of `action`.
    #[must_use]
    pub fn action(mut self, action: Action) -> Self {
        self.action = Some(action);
        self
    }

    /// Only entries of `run`.
    #[must_use]
    pub fn run(mut self, run: RunId) -> Self {
        self.run = Some(run);
        self
    }

    /// Only entries after the place `seq`.
    #[must_use]
    pub fn after(mut self, seq: u64) -> Self {
        self.after = seq;
        self
    }
}

/// Whether a log is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditVerification {
    /// Entries that were read.
    pub entries: u64,
    /// The first entry's place; 0 in an empty log.
    pub first_seq: u64,
    /// The last entry's place; 0 in an empty log.
    pub last_seq: u64,
    /// The last entry's MAC in hex; 64 zeros in an empty log.
    pub head: String,
    /// Everything that is wrong; nothing in a log that is whole.
    pub problems: Vec<AuditProblem>,
}

impl AuditVerification {
    /// The outcome of reading `entries` entries up to `head`.
    #[must_use]
    pub fn new(
        entries: u64,
        first_seq: u64,
        last_seq: u64,
        head: String,
        problems: Vec<AuditProblem>,
    ) -> Self {
        Self { entries, first_seq, last_seq, head, problems }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Something wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditProblem {
    /// The place it concerns.
    pub seq: u64,
    /// `bad_mac`, `broken_chain`, `gap`, `duplicate`, `torn`, `truncated`, `unknown_key`, `foreign` or `malformed`.
    pub kind: &'static str,
}

impl AuditProblem {
    /// A problem of `kind` at the place `seq`.
    #[must_use]
    pub fn new(seq: u64, kind: &'static str) -> Self {
        Self { seq, kind }
    }
}

/// A tamper-evident log. Appending is all-or-nothing, also when the future is dropped.
#[async_trait]
pub trait AuditLog: TenantData {
    /// Records an event of this scope.
    ///
    /// - Events of one caller are recorded in the order they were appended.
    /// - An error means it was not recorded.
    async fn append(&self, scope: &Scope, event: AuditEvent) -> Result<AuditReceipt>;

    /// The scope's own entries that match, oldest first. Never another tenant's, whatever the query says.
    async fn query(&self, scope: &Scope, query: &AuditQuery) -> Result<Vec<Owned<AuditEntry>>>;

    /// Checks the whole log. Says nothing about what it contains.
    async fn verify(&self) -> Result<AuditVerification>;
}

/// Records nothing: for an agent that needs no audit.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit that is what its name says")]
pub struct NoAudit;

#[async_trait]
impl TenantData for NoAudit {
    fn store_name(&self) -> &str {
        "audit:none"
    }

    async fn export(&self, _scope: &Scope) -> Result<crate::ExportStream> {
        Ok(crate::export_from(Vec::new()))
    }

    async fn forget(&self, _scope: &Scope, _what: &crate::Erase) -> Result<crate::Erased> {
        Ok(crate::Erased::new(self.store_name()))
    }
}

#[async_trait]
impl AuditLog for NoAudit {
    async fn append(&self, _scope: &Scope, _event: AuditEvent) -> Result<AuditReceipt> {
        Ok(AuditReceipt::new(0))
    }

    async fn query(&self, _scope: &Scope, _query: &AuditQuery) -> Result<Vec<Owned<AuditEntry>>> {
        Ok(Vec::new())
    }

    async fn verify(&self) -> Result<AuditVerification> {
        Ok(AuditVerification::new(0, 0, 0, "0".repeat(64), Vec::new()))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
