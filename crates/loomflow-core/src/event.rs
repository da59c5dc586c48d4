//! What a run says while it goes on.

use std::sync::Arc;

use serde::Serialize;

use crate::clock::Timestamp;
use crate::identity::SessionId;
use crate::ids::{ApprovalId, EpisodeId, RunId};
use crate::ledger::{Refusal, Warning};
use crate::result::{RunResult, RunStatus, ToolStatus};

/// One event of a run's stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// The run.
    pub run_id: RunId,
    /// Its place in the stream, from 1, without gaps.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// The run this is about, where that is not the stream's own but one that a tool of it delegated to, however deep below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child_run_id: Option<RunId>,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened. Exactly one terminal event ends a stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum EventKind {
    /// The run began.
    Started {
        /// Its conversation.
        session_id: SessionId,
    },
    /// A piece of the answer.
    TextDelta {
        /// The piece.
        text: Arc<str>,
    },
    /// A model call is made again; the text since the turn began is void.
    TextReset {},
    /// The model asks for a tool.
    ToolCall {
        /// The call.
        id: Arc<str>,
        /// The tool.
        name: Arc<str>,
    },
    /// Somebody is asked.
    ApprovalRequested {
        /// The request.
        approval_id: ApprovalId,
        /// The call it is about.
        id: Arc<str>,
        /// The tool.
        name: Arc<str>,
        /// Why.
        why: Arc<str>,
        /// Until when it can be decided.
        expires_at: Timestamp,
    },
    /// Somebody decided, or nobody did in time.
    ApprovalResolved {
        /// The request.
        approval_id: ApprovalId,
        /// `approve`, `deny`, `edit` or `expired`.
        decision: &'static str,
    },
    /// What became of a tool call.
    ToolResult {
        /// The call.
        id: Arc<str>,
        /// The tool.
        name: Arc<str>,
        /// How it ended.
        status: ToolStatus,
    },
    /// A cap reached its warning line.
    BudgetWarning(Warning),
    /// A cap refused the next call.
    BudgetExceeded(Box<Refusal>),
    /// Old messages were left out of the prompt to make it fit.
    ContextCleanup {
        /// How many.
        dropped_messages: usize,
        /// The estimated prompt before, in tokens.
        tokens_before: u64,
        /// The estimated prompt after, in tokens.
        tokens_after: u64,
    },
    /// Memory was recalled into the prompt.
    MemoryRecall {
        /// Episodes recalled.
        episodes: usize,
        /// Facts recalled.
        facts: usize,
        /// Messages of the session that were replayed.
        history: usize,
    },
    /// The turn was remembered.
    MemoryWrite {
        /// The episode.
        episode: EpisodeId,
    },
    /// A guard blocked something.
    Guardrail {
        /// The guard.
        guard: Arc<str>,
    },
    /// The run ended with an answer.
    Completed(Box<RunResult>),
    /// A limit or a guard stopped the run.
    Interrupted(Box<RunResult>),
    /// The run failed.
    Failed {
        /// The kind of error.
        error: &'static str,
    },
    /// The run's caller went away.
    Cancelled {},
    /// The run's deadline passed.
    TimedOut {},
}

impl EventKind {
    /// The event's stable name: the `event:` line of a server-sent stream.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::TextDelta { .. } => "text_delta",
            Self::TextReset {} => "text_reset",
            Self::ToolCall { .. } => "tool_call",
            Self::ApprovalRequested { .. } => "approval_requested",
            Self::ApprovalResolved { .. } => "approval_resolved",
            Self::ToolResult { .. } => "tool_result",
            Self::BudgetWarning(_) => "budget_warning",
            Self::BudgetExceeded(_) => "budget_exceeded",
            Self::ContextCleanup { .. } => "context_cleanup",
            Self::MemoryRecall { .. } => "memory_recall",
            Self::MemoryWrite { .. } => "memory_write",
            Self::Guardrail { .. } => "guardrail",
            Self::Completed(_) => "completed",
            Self::Interrupted(_) => "interrupted",
            Self::Failed { .. } => "failed",
            Self::Cancelled {} => "cancelled",
            Self::TimedOut {} => "timed_out",
        }
    }

    /// Whether a delegated run says this on the stream of the run it was delegated from: whoever watches that one is asked, or
    /// pays.
    pub(crate) fn concerns_the_root(&self) -> bool {
        matches!(
            self,
            Self::ApprovalRequested { .. }
                | Self::ApprovalResolved { .. }
                | Self::BudgetWarning(_)
                | Self::BudgetExceeded(_)
        )
    }

    /// The status this event ends a run with, if it ends it.
    #[must_use]
    pub fn terminal(&self) -> Option<RunStatus> {
        Some(match self {
            Self::Completed(_) => RunStatus::Completed,
            Self::Interrupted(_) => RunStatus::Interrupted,
            Self::Failed { .. } => RunStatus::Failed,
            Self::Cancelled {} => RunStatus::Cancelled,
            Self::TimedOut {} => RunStatus::TimedOut,
            _ => return None,
        })
    }
}
