//! What is set aside and what was used, in numbers that can be added.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ledger::{Cap, Charge};
use crate::usage::{NanoUsd, Usage};

/// What one hold keeps aside, or all holds of an entity together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Amounts {
    /// Prompt tokens.
    pub input: u64,
    /// Generated tokens.
    pub output: u64,
    /// Nano-dollars.
    pub cost: u64,
    /// Microseconds in runs.
    pub wall: u64,
}

impl Amounts {
    /// Prompt and generated tokens together.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.input.saturating_add(self.output)
    }

    pub(super) fn of(&self, cap: Cap) -> u64 {
        match cap {
            Cap::Tokens => self.tokens(),
            Cap::InputTokens => self.input,
            Cap::OutputTokens => self.output,
            Cap::Cost => self.cost,
            _ => self.wall,
        }
    }

    // Wrapping: a capped sum cannot come near 2^64, and an uncapped one must come back to zero exactly.
    pub(super) fn add(&mut self, other: &Self) {
        self.input = self.input.wrapping_add(other.input);
        self.output = self.output.wrapping_add(other.output);
        self.cost = self.cost.wrapping_add(other.cost);
        self.wall = self.wall.wrapping_add(other.wall);
    }

    pub(super) fn sub(&mut self, other: &Self) {
        self.input = self.input.wrapping_sub(other.input);
        self.output = self.output.wrapping_sub(other.output);
        self.cost = self.cost.wrapping_sub(other.cost);
        self.wall = self.wall.wrapping_sub(other.wall);
    }
}

/// What was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Totals {
    /// Tokens and cost.
    pub usage: Usage,
    /// Microseconds in runs.
    pub wall: u64,
    /// Tokens that were charged by estimate.
    pub estimated: u64,
}

impl Totals {
    /// What a store read back.
    #[must_use]
    pub fn new(usage: Usage, wall: u64, estimated: u64) -> Self {
        Self { usage, wall, estimated }
    }

    /// What a charge counts.
    #[must_use]
    pub fn charged(charge: &Charge) -> Self {
        match charge {
            Charge::Used { usage, estimated } => {
                Self { usage: *usage, wall: 0, estimated: if *estimated { usage.total_tokens() } else { 0 } }
            }
            Charge::WallClock(time) => Self { wall: micros(*time), ..Self::default() },
            _ => Self::default(),
        }
    }

    /// What an expired lease counts when the request had left: all that was held.
    #[must_use]
    pub fn estimate(held: &Amounts) -> Self {
        let usage = Usage::new(held.input, held.output).with_cost(NanoUsd(held.cost));
        Self { usage, wall: held.wall, estimated: held.tokens() }
    }

    /// Whether nothing was used.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn of(&self, cap: Cap) -> u64 {
        match cap {
            Cap::Tokens => self.usage.total_tokens(),
            Cap::InputTokens => self.usage.input_tokens,
            Cap::OutputTokens => self.usage.output_tokens,
            Cap::Cost => self.usage.cost_usd.0,
            _ => self.wall,
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.usage += other.usage;
        self.wall = self.wall.saturating_add(other.wall);
        self.estimated = self.estimated.saturating_add(other.estimated);
    }

    pub(super) fn sub(&mut self, other: &Self) {
        let (a, b) = (&mut self.usage, &other.usage);
        a.input_tokens = a.input_tokens.saturating_sub(b.input_tokens);
        a.cached_input_tokens = a.cached_input_tokens.saturating_sub(b.cached_input_tokens);
        a.cache_write_tokens = a.cache_write_tokens.saturating_sub(b.cache_write_tokens);
        a.output_tokens = a.output_tokens.saturating_sub(b.output_tokens);
        a.reasoning_tokens = a.reasoning_tokens.saturating_sub(b.reasoning_tokens);
        a.cost_usd = NanoUsd(a.cost_usd.0.saturating_sub(b.cost_usd.0));
        self.wall = self.wall.saturating_sub(other.wall);
        self.estimated = self.estimated.saturating_sub(other.estimated);
    }
}

/// A duration in whole microseconds, stopping at the largest number.
pub fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
