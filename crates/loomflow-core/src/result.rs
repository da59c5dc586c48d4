//! What a run ends with.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::identity::{SessionId, UserId};
use crate::ids::RunId;
use crate::ledger::Refusal;
use crate::usage::Usage;

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunStatus {
    /// It is going on.
    Running,
    /// It waits for a person; its clock is stopped.
    WaitingApproval,
    /// It cannot go on by itself: a step was begun and nobody knows how it ended.
    OutcomeUnknown,
    /// It ended with an answer.
    Completed,
    /// A limit or a guard stopped it; what there was of an answer is in the result.
    Interrupted,
    /// It failed.
    Failed,
    /// Its caller went away.
    Cancelled,
    /// Its deadline passed.
    TimedOut,
}

impl RunStatus {
    /// Whether the run is over.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Running | Self::WaitingApproval | Self::OutcomeUnknown)
    }

    /// Refuses every status but those that an open run can have: running, and waiting for a person.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput).
    pub fn check_open(self) -> Result<()> {
        match self {
            Self::Running | Self::WaitingApproval => Ok(()),
            other => {
                Err(Error::invalid_input(format!("an open run is not {}; close it instead", other.as_str())))
            }
        }
    }

    /// The status's stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::WaitingApproval => "waiting_approval",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Completed => "completed",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
        }
    }
}

/// How a tool call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolStatus {
    /// It worked.
    Ok,
    /// It did not work.
    Error,
    /// It was not allowed to run.
    Denied,
    /// It was begun and nobody knows how it ended.
    Unknown,
}

impl ToolStatus {
    /// The status's stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Denied => "denied",
            Self::Unknown => "unknown",
        }
    }
}

/// A tool call of a run, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ToolCallReport {
    /// The call's id.
    pub id: Arc<str>,
    /// The tool.
    pub name: Arc<str>,
    /// How it ended.
    pub status: ToolStatus,
}

/// What a run ends with.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunResult {
    /// The run.
    pub run_id: RunId,
    /// Its conversation.
    pub session_id: SessionId,
    /// The tenant; `None` for the anonymous bucket.
    pub user_id: Option<UserId>,
    /// How it ended.
    pub status: RunStatus,
    /// Why it did not complete: `max_turns`, `budget:<cap>`, `guardrail:<name>`, an error kind, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The answer; empty, or the last text, when the run was interrupted.
    pub output: Arc<str>,
    /// The answer as JSON, when an output schema was asked for and met.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parsed: Option<Value>,
    /// Model calls that were answered.
    pub turns: u32,
    /// What the run used.
    pub usage: Usage,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Its tool calls, in order.
    pub tool_calls: Vec<ToolCallReport>,
    /// The cap that stopped it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Box<Refusal>>,
    /// Comforts that failed on the way, such as `memory_write`: the answer stands, and this says what is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<&'static str>,
}
