//! Limits on the rate of runs, model calls and tokens: what a limiter backend implements, and what an operator configures.

mod config;
mod limits;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

pub use config::{OnLimit, RateLimitConfig, RateRules};
pub use limits::{RateLimits, Tats};

use crate::error::{ErrorKind, Result};
use crate::ledger::Entity;
use crate::scope::Scope;
use crate::tenant_data::TenantData;

/// Says at what rate a user, and all users of a namespace together, may begin runs, call models and use tokens.
///
/// Invariant, for every limit, in every span of time and under any concurrency: what was taken, less what was given back in
/// the span, is at most the burst and what the rate brings in the span. A namespace is an application of its own.
///
/// - Waiting is not a limiter's business: it answers at once, and whoever asks stands in line. See [`OnLimit`].
/// - What a limiter keeps of a user is when each limit is whole again: no content, and nothing that outlives that moment.
///   An erasure must not give a fresh burst, so it stays until then, and the receipt says so.
/// - Nobody's limit comes back sooner than its rate says: not by eviction, not by a full table, not by a restart where the
///   state is shared.
///
/// A future may be dropped at any await: the operation then happened whole or not at all. What was taken for a caller who
/// went away comes back by itself, at the limit's rate.
#[async_trait]
pub trait RateLimiter: TenantData {
    /// Takes all that is asked for, from the user's limits and from those of all users together, or nothing of it.
    ///
    /// - More than a whole burst never fits: [`LimitReason::TooLarge`], without a time to try again.
    /// - A table that is full of users who are held back refuses a new one with [`LimitReason::Capacity`].
    /// - Of several limits that refuse, the answer names the one that takes longest.
    async fn take(&self, scope: &Scope, ask: &Amounts) -> Result<Taken>;

    /// Corrects what was taken by what was really used: gives the rest back, or notes the debt. Both arguments count the
    /// same thing; a resource in which they agree is left alone.
    ///
    /// - Never gives back more than is out: no limit becomes better than fresh.
    /// - A debt is at most one burst beyond an empty one.
    async fn settle(&self, scope: &Scope, taken: &Amounts, used: &Amounts) -> Result<()>;

    /// The limits that are in force, and what is done with who exceeds them.
    fn rules(&self) -> &RateRules;
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "a backend stores one number for each")]
pub enum Resource {
    /// Runs that begin.
    Runs,
    /// Calls of a model or an embedder, each attempt of its own.
    ModelCalls,
    /// Prompt and generated tokens together.
    Tokens,
}

impl Resource {
    /// Every resource, in the order backends store them.
    pub const ALL: [Self; 3] = [Self::Runs, Self::ModelCalls, Self::Tokens];

    /// The configuration key of this limit for `entity`, such as `per_user_rps`.
    #[must_use]
    pub fn config_key(self, entity: Entity) -> &'static str {
        match (entity, self) {
            (Entity::Global, Self::Runs) => "global_rps",
            (Entity::Global, Self::ModelCalls) => "global_model_calls_per_minute",
            (Entity::Global, Self::Tokens) => "global_tokens_per_minute",
            (_, Self::Runs) => "per_user_rps",
            (_, Self::ModelCalls) => "per_user_model_calls_per_minute",
            (_, Self::Tokens) => "per_user_tokens_per_minute",
        }
    }
}

/// How much of each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Amounts {
    /// Runs that begin.
    pub runs: u64,
    /// Calls of a model or an embedder.
    pub model_calls: u64,
    /// Prompt and generated tokens together.
    pub tokens: u64,
}

impl Amounts {
    /// One run.
    #[must_use]
    pub fn run() -> Self {
        Self { runs: 1, ..Self::default() }
    }

    /// One model call of so many tokens.
    #[must_use]
    pub fn model_call(tokens: u64) -> Self {
        Self { runs: 0, model_calls: 1, tokens }
    }

    /// The same with so many tokens.
    #[must_use]
    pub fn with_tokens(self, tokens: u64) -> Self {
        Self { tokens, ..self }
    }

    /// How much of one resource.
    #[must_use]
    pub fn of(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Runs => self.runs,
            Resource::ModelCalls => self.model_calls,
            Resource::Tokens => self.tokens,
        }
    }
}

/// A limiter's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
#[allow(clippy::exhaustive_enums, reason = "taken or not")]
pub enum Taken {
    /// All of it was taken.
    Admitted,
    /// Nothing was taken, and this is why.
    Limited(Box<Limited>),
}

/// Why a limit lets nothing through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LimitReason {
    /// Too much was taken lately.
    Rate,
    /// More is asked for at once than ever fits.
    TooLarge,
    /// As many wait already as may.
    Queue,
    /// The table of users is full of users who are held back, and none of them may be let go.
    Capacity,
}

/// Which limit lets nothing through, whose it is, and when to try again. Names nobody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Limited {
    /// Why.
    pub reason: LimitReason,
    /// Whose limit it is: the user's, or that of all users of the namespace.
    pub entity: Entity,
    /// What is limited.
    pub resource: Resource,
    /// The configuration key of the limit, such as `per_user_rps`.
    pub limit: &'static str,
    /// The most that this limit lets through at once.
    pub burst: u64,
    /// When trying again makes sense; `None` for never.
    pub retry_after: Option<Duration>,
}

impl Limited {
    /// A limit of `entity` on `resource` that lets at most `burst` through at once.
    #[must_use]
    pub fn new(reason: LimitReason, entity: Entity, resource: Resource, burst: u64) -> Self {
        let limit = resource.config_key(entity);
        Self { reason, entity, resource, limit, burst, retry_after: None }
    }

    /// Sets when trying again makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    pub(crate) fn error_kind(&self) -> ErrorKind {
        if self.reason == LimitReason::Capacity { ErrorKind::Capacity } else { ErrorKind::RateLimited }
    }
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = if self.entity == Entity::Global { "all users together" } else { "this user" };
        let what = match self.resource {
            Resource::Runs => "runs",
            Resource::ModelCalls => "model calls",
            Resource::Tokens => "tokens",
        };
        match self.reason {
            LimitReason::Rate => write!(f, "{who} used too many {what} of late ({})", self.limit)?,
            LimitReason::TooLarge => write!(
                f,
                "more {what} are asked for at once than {} ever lets through for {who}, which is {}: ask for less (a \
                 shorter prompt, a lower max_output_tokens), or raise the limit's burst",
                self.limit, self.burst
            )?,
            LimitReason::Queue => {
                write!(f, "too many already wait for {what} of {who} ({})", self.limit)?;
            }
            LimitReason::Capacity => write!(
                f,
                "the rate limiter's table is full ({} users are held back), and none of them may be let go: raise max_users, \
                 or wait",
                self.burst
            )?,
        }
        match self.retry_after {
            Some(after) => write!(f, "; try again in {after:?}"),
            None => Ok(()),
        }
    }
}
