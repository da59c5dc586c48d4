//! The plain data a ledger takes and answers with.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::clock::Timestamp;
use crate::error::ErrorKind;
use crate::ids::{HoldId, RunId};
use crate::ledger::Window;
use crate::usage::{Price, Usage};

/// Names a hold by what it is for, so that asking twice holds once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct HoldKey {
    /// The run.
    pub run: RunId,
    /// Which hold of the run, from 0.
    pub seq: u32,
}

impl HoldKey {
    /// The hold number `seq` of `run`.
    #[must_use]
    pub fn new(run: RunId, seq: u32) -> Self {
        Self { run, seq }
    }
}

/// What to set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hold {
    /// What the hold is for.
    pub key: HoldKey,
    /// Prompt tokens, counted before the call; an upper bound.
    pub input_tokens: u64,
    /// Generated tokens that are wanted.
    pub output_tokens: u64,
    /// The fewest generated tokens that make the call worth making.
    pub min_output_tokens: u64,
    /// The model's price; `None` when it is not known.
    pub price: Option<Price>,
    /// Wall clock that is wanted; zero for a model call.
    pub wall_clock: Duration,
    /// The least wall clock that makes the run worth beginning.
    pub min_wall_clock: Duration,
    /// How long the hold lives without being extended.
    pub lease: Duration,
}

impl Hold {
    /// A hold for a model call of `input` prompt tokens and up to `output` generated ones.
    #[must_use]
    pub fn tokens(key: HoldKey, input: u64, output: u64) -> Self {
        Self {
            key,
            input_tokens: input,
            output_tokens: output,
            min_output_tokens: output.min(1),
            price: None,
            wall_clock: Duration::ZERO,
            min_wall_clock: Duration::ZERO,
            lease: Duration::from_secs(300),
        }
    }

    /// A hold for up to `wanted` of wall clock.
    #[must_use]
    pub fn wall_clock(key: HoldKey, wanted: Duration) -> Self {
        Self { wall_clock: wanted, min_wall_clock: Duration::from_millis(1), ..Self::tokens(key, 0, 0) }
    }

    /// Sets the fewest generated tokens that make the call worth making.
    #[must_use]
    pub fn with_min_output(mut self, tokens: u64) -> Self {
        self.min_output_tokens = tokens;
        self
    }

    /// Sets the price.
    #[must_use]
    pub fn with_price(mut self, price: Option<Price>) -> Self {
        self.price = price;
        self
    }

    /// Sets the lease.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Whether this hold is for tokens (and so for money).
    #[must_use]
    pub fn is_for_tokens(&self) -> bool {
        self.wall_clock.is_zero()
    }
}

/// Whose cap it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Entity {
    /// All users of one namespace together.
    Global,
    /// One user.
    User,
    /// One run.
    Run,
}

impl Entity {
    /// The entity's stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::User => "user",
            Self::Run => "run",
        }
    }
}

/// What is capped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cap {
    /// Prompt and generated tokens together.
    Tokens,
    /// Prompt tokens.
    InputTokens,
    /// Generated tokens.
    OutputTokens,
    /// Cost, in nano-dollars.
    Cost,
    /// Time in runs, in microseconds.
    WallClock,
}

impl Cap {
    /// The configuration key of this cap for `entity`, such as `per_user_max_tokens`.
    #[must_use]
    pub fn config_key(self, entity: Entity) -> &'static str {
        match (entity, self) {
            (Entity::Global, Self::Tokens) => "max_tokens",
            (Entity::Global, Self::InputTokens) => "max_input_tokens",
            (Entity::Global, Self::OutputTokens) => "max_output_tokens",
            (Entity::Global, Self::Cost) => "max_cost_usd",
            (Entity::Global, Self::WallClock) => "max_wall_clock",
            (Entity::User, Self::Tokens) => "per_user_max_tokens",
            (Entity::User, Self::InputTokens) => "per_user_max_input_tokens",
            (Entity::User, Self::OutputTokens) => "per_user_max_output_tokens",
            (Entity::User, Self::Cost) => "per_user_max_cost_usd",
            (Entity::User, Self::WallClock) => "per_user_max_wall_clock",
            (Entity::Run, Self::Tokens) => "per_run_max_tokens",
            (Entity::Run, Self::InputTokens) => "per_run_max_input_tokens",
            (Entity::Run, Self::OutputTokens) => "per_run_max_output_tokens",
            (Entity::Run, Self::Cost) => "per_run_max_cost_usd",
            (Entity::Run, Self::WallClock) => "per_run_max_wall_clock",
        }
    }
}

/// Why a hold was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RefusalReason {
    /// Too little is left of the cap.
    Exhausted,
    /// A cost cap is set and the model's price is not known.
    UnknownPrice,
    /// The table of users is full, and no counter in it may be given away.
    Capacity,
}

/// A refusal, with everything an operator or a client needs to understand it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Refusal {
    /// Why.
    pub reason: RefusalReason,
    /// Whose cap.
    pub entity: Entity,
    /// The cap's configuration key, such as `per_user_max_tokens`.
    pub cap: &'static str,
    /// The cap's window, such as `day`.
    pub window: String,
    /// The cap (tokens, nano-dollars or microseconds).
    pub limit: u64,
    /// How much of it is used.
    pub used: u64,
    /// How much of it calls in flight hold.
    pub held: u64,
    /// How much more was needed at the least.
    pub needed: u64,
    /// When the window ends; `None` when it never does.
    pub resets_at: Option<Timestamp>,
}

impl Refusal {
    /// A refusal by the `cap` of `entity`.
    #[must_use]
    pub fn new(reason: RefusalReason, entity: Entity, cap: Cap, window: Window) -> Self {
        Self {
            reason,
            entity,
            cap: cap.config_key(entity),
            window: if entity == Entity::Run { "run".to_owned() } else { window.to_string() },
            limit: 0,
            used: 0,
            held: 0,
            needed: 0,
            resets_at: None,
        }
    }

    /// Sets the numbers.
    #[must_use]
    pub fn with_numbers(mut self, limit: u64, used: u64, held: u64, needed: u64) -> Self {
        (self.limit, self.used, self.held, self.needed) = (limit, used, held, needed);
        self
    }

    /// Sets when the window ends.
    #[must_use]
    pub fn with_reset(mut self, at: Option<Timestamp>) -> Self {
        self.resets_at = at;
        self
    }

    pub(crate) fn error_kind(&self) -> ErrorKind {
        if self.reason == RefusalReason::Capacity { ErrorKind::Capacity } else { ErrorKind::BudgetExceeded }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.entity {
            Entity::Global => "all users together",
            Entity::User => "this user",
            Entity::Run => "this run",
        };
        match self.reason {
            RefusalReason::Capacity => {
                return write!(
                    f,
                    "the table of users is full ({} kept), and no running quota in it may be given away: raise max_users \
                     or max_spilled_users, or wait for windows to end",
                    self.limit
                );
            }
            RefusalReason::UnknownPrice => {
                return write!(
                    f,
                    "{} is set for {who}, but the model's price is not known: set a price for it, or remove the cap",
                    self.cap
                );
            }
            RefusalReason::Exhausted => {}
        }
        write!(
            f,
            "{} of {who} is exhausted: limit {}, used {}, held by calls in flight {}, needed {} more; window {}",
            self.cap, self.limit, self.used, self.held, self.needed, self.window
        )?;
        match self.resets_at {
            Some(at) => write!(f, ", resets at {at}"),
            None => f.write_str(", does not reset"),
        }
    }
}

/// A cap whose use reached the warning line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Warning {
    /// Whose cap.
    pub entity: Entity,
    /// The cap's configuration key.
    pub cap: &'static str,
    /// The cap.
    pub limit: u64,
    /// How much of it is used or held.
    pub used: u64,
}

impl Warning {
    /// A warning about the `cap` of `entity`.
    #[must_use]
    pub fn new(entity: Entity, cap: Cap, limit: u64, used: u64) -> Self {
        Self { entity, cap: cap.config_key(entity), limit, used }
    }
}

/// A hold that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Granted {
    /// The hold.
    pub id: HoldId,
    /// Generated tokens that were set aside: what the call's output is clamped to.
    pub output_tokens: u64,
    /// Wall clock that was set aside.
    pub wall_clock: Duration,
    /// Caps that crossed their warning line by this hold; each is reported once per window.
    pub warnings: Vec<Warning>,
}

impl Granted {
    /// A hold with what was set aside.
    #[must_use]
    pub fn new(id: HoldId, output_tokens: u64, wall_clock: Duration) -> Self {
        Self { id, output_tokens, wall_clock, warnings: Vec::new() }
    }

    /// Adds caps that crossed their warning line.
    #[must_use]
    pub fn with_warnings(mut self, warnings: Vec<Warning>) -> Self {
        self.warnings = warnings;
        self
    }
}

/// The answer to a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a caller must handle both, and there is no third")]
pub enum Reserve {
    /// Set aside.
    Held(Granted),
    /// Refused; nothing was set aside.
    Refused(Box<Refusal>),
}

/// What to count when a hold ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Charge {
    /// Nothing was sent: give the hold back.
    Refund,
    /// Count this usage, cost included.
    Used {
        /// What was used; `cost_usd` is what it cost.
        usage: Usage,
        /// Whether it was estimated rather than reported by the provider.
        estimated: bool,
    },
    /// Count this much wall clock.
    WallClock(Duration),
}

/// The answer to a close.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settled {
    /// The hold was closed before; nothing was counted now.
    pub duplicate: bool,
    /// Tokens that were used beyond what was held: recorded, reported, never lost.
    pub excess_tokens: u64,
    /// Caps that crossed their warning line by this charge.
    pub warnings: Vec<Warning>,
}

/// A charge that was estimated, because the provider's own numbers never came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EstimatedCharge {
    /// The hold that was charged.
    pub hold: HoldId,
    /// What the hold was for.
    pub key: HoldKey,
    /// What was charged, cost included.
    pub charged: Usage,
    /// Whether the hold's lease ran out, as it does when its process dies; otherwise its caller estimated.
    pub expired: bool,
}

impl EstimatedCharge {
    /// A charge of `hold` that was estimated.
    #[must_use]
    pub fn new(hold: HoldId, key: HoldKey, charged: Usage, expired: bool) -> Self {
        Self { hold, key, charged, expired }
    }
}

/// One cap of a usage report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CapUsage {
    /// Whose cap.
    pub entity: Entity,
    /// The cap's configuration key.
    pub cap: &'static str,
    /// The cap's window.
    pub window: String,
    /// The cap (tokens, nano-dollars or microseconds).
    pub limit: u64,
    /// How much of it is used.
    pub used: u64,
    /// How much of it calls in flight hold.
    pub held: u64,
    /// When the window ends.
    pub resets_at: Option<Timestamp>,
}

impl CapUsage {
    /// The use of the `cap` of `entity`.
    #[must_use]
    pub fn new(entity: Entity, cap: Cap, window: Window, limit: u64) -> Self {
        let cap = cap.config_key(entity);
        Self { entity, cap, window: window.to_string(), limit, used: 0, held: 0, resets_at: None }
    }

    /// Sets the numbers.
    #[must_use]
    pub fn with_numbers(mut self, used: u64, held: u64, resets_at: Option<Timestamp>) -> Self {
        (self.used, self.held, self.resets_at) = (used, held, resets_at);
        self
    }
}

/// What a user has used in the present window, and how that stands against their caps.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct UsageReport {
    /// What was used, capped or not.
    pub used: Usage,
    /// Tokens that calls in flight hold.
    pub held_tokens: u64,
    /// Open holds.
    pub open_holds: u64,
    /// Tokens charged by estimate rather than by the provider's report.
    pub estimated_tokens: u64,
    /// Time spent in runs.
    pub wall_clock: Duration,
    /// One line per cap of this user.
    pub windows: Vec<CapUsage>,
}

/// Which kinds of caps a ledger has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Some entity has a wall-clock cap, so runs must hold wall clock.
    pub wall_clock: bool,
    /// Runs have caps, so their end must be told.
    pub per_run: bool,
}

impl Limits {
    /// The kinds of caps that are set.
    #[must_use]
    pub fn new(wall_clock: bool, per_run: bool) -> Self {
        Self { wall_clock, per_run }
    }
}
