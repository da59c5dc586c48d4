//! One counter: what an entity used in its window and holds now, and how its caps judge a new hold.

use std::collections::VecDeque;
use std::time::Duration;

use loomflow_core::{Cap, CapUsage, Caps, Charge, Entity, Hold, NanoUsd, Price, Timestamp, Usage, Warning};

use super::period::{Periods, Tick};

/// The order in which caps are checked and reported.
pub(super) const CAPS: [Cap; 5] =
    [Cap::Tokens, Cap::InputTokens, Cap::OutputTokens, Cap::Cost, Cap::WallClock];

/// What one hold keeps aside, or all holds of an entity together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amounts {
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) cost: u64,
    pub(super) wall: u64,
}

impl Amounts {
    pub(super) fn tokens(&self) -> u64 {
        self.input.saturating_add(self.output)
    }

    fn of(&self, cap: Cap) -> u64 {
        match cap {
            Cap::Tokens => self.tokens(),
            Cap::InputTokens => self.input,
            Cap::OutputTokens => self.output,
            Cap::Cost => self.cost,
            _ => self.wall,
        }
    }

    // Wrapping: a capped sum cannot come near 2^64, and an uncapped one must come back to zero exactly.
    fn add(&mut self, other: &Self) {
        self.input = self.input.wrapping_add(other.input);
        self.output = self.output.wrapping_add(other.output);
        self.cost = self.cost.wrapping_add(other.cost);
        self.wall = self.wall.wrapping_add(other.wall);
    }

    fn sub(&mut self, other: &Self) {
        self.input = self.input.wrapping_sub(other.input);
        self.output = self.output.wrapping_sub(other.output);
        self.cost = self.cost.wrapping_sub(other.cost);
        self.wall = self.wall.wrapping_sub(other.wall);
    }
}

/// What was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) usage: Usage,
    /// Microseconds in runs.
    pub(super) wall: u64,
    /// Tokens that were charged by estimate.
    pub(super) estimated: u64,
}

impl Totals {
    /// What a charge counts.
    pub(super) fn charged(charge: &Charge) -> Self {
        match charge {
            Charge::Used { usage, estimated } => {
                Self { usage: *usage, wall: 0, estimated: if *estimated { usage.total_tokens() } else { 0 } }
            }
            Charge::WallClock(time) => Self { wall: micros(*time), ..Self::default() },
            _ => Self::default(),
        }
    }

    /// What an expired lease counts when the request had left: all that was held.
    pub(super) fn estimate(held: &Amounts) -> Self {
        let usage = Usage::new(held.input, held.output).with_cost(NanoUsd(held.cost));
        Self { usage, wall: held.wall, estimated: held.tokens() }
    }

    pub(super) fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    fn of(&self, cap: Cap) -> u64 {
        match cap {
            Cap::Tokens => self.usage.total_tokens(),
            Cap::InputTokens => self.usage.input_tokens,
            Cap::OutputTokens => self.usage.output_tokens,
            Cap::Cost => self.usage.cost_usd.0,
            _ => self.wall,
        }
    }

    fn add(&mut self, other: &Self) {
        self.usage += other.usage;
        self.wall = self.wall.saturating_add(other.wall);
        self.estimated = self.estimated.saturating_add(other.estimated);
    }

    fn sub(&mut self, other: &Self) {
        let (a, b) = (&mut self.usage, &other.usage);
        a.input_tokens = a.input_tokens.saturating_sub(b.input_tokens);
        a.cached_input_tokens = a.cached_input_tokens.saturating_sub(b.cached_input_tokens);
        a.cache_write_tokens = a.cache_write_tokens.saturating_sub(b.cache_write_tokens);
        a.output_tokens = a.output_tokens.saturating_sub(b.output_tokens);
        a.cost_usd = NanoUsd(a.cost_usd.0.saturating_sub(b.cost_usd.0));
        self.wall = self.wall.saturating_sub(other.wall);
        self.estimated = self.estimated.saturating_sub(other.estimated);
    }
}

/// A duration in whole microseconds, stopping at the largest number.
pub(super) fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

/// The caps of one kind of entity, ready to judge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) entity: Entity,
    limits: [Option<u64>; 5],
    /// Where the warning of each cap is given.
    lines: [u64; 5],
}

impl Bounds {
    pub(super) fn new(entity: Entity, caps: &Caps, warn_at: f64) -> Self {
        let limits = [
            caps.tokens,
            caps.input_tokens,
            caps.output_tokens,
            caps.cost.map(|c| c.0),
            caps.wall_clock.map(micros),
        ];
        // In millionths, so that 0.8 of 100 is 80 and not what a binary fraction makes of it.
        let millionths = (warn_at * 1e6).round().clamp(1.0, 1e6) as u128;
        let lines = limits.map(|limit| {
            let line = (u128::from(limit.unwrap_or(0)) * millionths).div_ceil(1_000_000);
            u64::try_from(line).unwrap_or(u64::MAX).max(1)
        });
        Self { entity, limits, lines }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.limits.iter().all(Option::is_none)
    }

    fn each(&self) -> impl Iterator<Item = (usize, Cap, u64)> {
        CAPS.into_iter().enumerate().filter_map(|(i, cap)| Some((i, cap, self.limits[i]?)))
    }

    /// Whether there is a cost cap.
    pub(super) fn caps_cost(&self) -> Option<u64> {
        self.limits[3]
    }

    /// The first cap that leaves less than the least that is asked for, its limit, and what was needed.
    pub(super) fn shortfall(&self, cell: &Cell, ask: &Ask) -> Option<(Cap, u64, u64)> {
        let least = ask.amounts(ask.min_output, ask.min_wall);
        self.each().find_map(|(_, cap, limit)| {
            let need = least.of(cap);
            (need > cell.room(cap, limit)).then_some((cap, limit, need))
        })
    }

    /// Lowers `output` and `wall` to what every cap leaves. The least that is asked for fits already.
    pub(super) fn shrink(&self, cell: &Cell, ask: &Ask, output: &mut u64, wall: &mut u64) {
        for (_, cap, limit) in self.each() {
            let room = cell.room(cap, limit);
            match cap {
                Cap::Tokens => *output = (*output).min(room.saturating_sub(ask.input)),
                Cap::OutputTokens => *output = (*output).min(room),
                Cap::Cost => *output = (*output).min(ask.affordable(room)),
                Cap::WallClock => *wall = (*wall).min(room),
                _ => {}
            }
        }
    }
}

/// What a hold asks for, with its numbers in one form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) wall: u64,
    pub(super) needs_price: bool,
    min_output: u64,
    min_wall: u64,
    price: Option<Price>,
}

impl Ask {
    /// More tokens than any model has: keeps products with a price within 128 bits.
    pub(super) const MAX_TOKENS: u64 = u64::MAX >> 2;

    pub(super) fn new(hold: &Hold) -> Self {
        let output = hold.output_tokens.min(Self::MAX_TOKENS);
        let wall = micros(hold.wall_clock);
        let for_tokens = hold.is_for_tokens() || hold.input_tokens > 0 || hold.output_tokens > 0;
        Self {
            input: hold.input_tokens,
            output,
            wall,
            needs_price: for_tokens && hold.price.is_none(),
            min_output: hold.min_output_tokens.min(output),
            min_wall: micros(hold.min_wall_clock).min(wall),
            price: hold.price,
        }
    }

    /// What is set aside for that much output and wall clock.
    pub(super) fn amounts(&self, output: u64, wall: u64) -> Amounts {
        let cost = self.price.map_or(0, |price| price.ceiling(self.input, output).0);
        Amounts { input: self.input, output, cost, wall }
    }

    /// The most output whose ceiling is within `room` nano-dollars.
    fn affordable(&self, room: u64) -> u64 {
        let Some(price) = self.price else { return self.output };
        let price = price.at(self.input);
        if price.output == 0 {
            return self.output;
        }
        let rate = price.input.max(price.cached_input).max(price.cache_write);
        // ceil(pico / 1000) <= room holds exactly when pico <= room * 1000.
        let left = (u128::from(room) * 1_000).saturating_sub(u128::from(self.input) * u128::from(rate));
        u64::try_from(left / u128::from(price.output)).unwrap_or(u64::MAX)
    }
}

/// What one entity used in its window, and holds.
///
/// What is held has no window: an open hold counts against whichever window is running, and its charge falls into the
/// window in which it is closed. So `used + held` never leaves the cap when a window ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    pub(super) window: i64,
    /// Which caps were warned about in this window, one bit each.
    pub(super) warned: u8,
    pub(super) used: Totals,
    pub(super) held: Amounts,
    /// Rolling windows only: the slices that have usage, oldest first; `used` is their sum.
    #[allow(clippy::box_collection, reason = "a third of the size in every entry, and most have none")]
    slices: Option<Box<VecDeque<(i64, Totals)>>>,
}

impl Cell {
    /// An empty counter in `window`.
    pub(super) fn new(window: i64) -> Self {
        Self { window, ..Self::default() }
    }

    /// A counter as it was: each window (or slice) with what was used in it, oldest first.
    pub(super) fn restored(window: i64, warned: u8, parts: Vec<(i64, Totals)>, periods: &Periods) -> Self {
        let mut cell = Self { window, warned, ..Self::default() };
        for (at, used) in parts {
            cell.charge(periods, at, &used);
        }
        cell
    }

    /// What [`Cell::restored`] makes the counter from again.
    pub(super) fn parts(&self) -> Vec<(i64, Totals)> {
        match &self.slices {
            Some(slices) => slices.iter().copied().collect(),
            None if self.used.is_zero() => Vec::new(),
            None => vec![(self.window, self.used)],
        }
    }

    /// Moves on to the present window, never back. What was used in windows that ended is let go.
    ///
    /// A calendar window that begins arms the warnings again; a rolling one does when what left it brought the use of the
    /// cap below the line.
    pub(super) fn roll(&mut self, periods: &Periods, bounds: &Bounds, now: i64) {
        if now <= self.window {
            return;
        }
        self.window = now;
        if !periods.rolls() {
            if periods.window() != loomflow_core::Window::Lifetime {
                self.used = Totals::default();
                self.warned = 0;
            }
            return;
        }
        let Some(slices) = &mut self.slices else { return };
        let before = slices.len();
        while slices.front().is_some_and(|(slice, _)| periods.ended(*slice, now)) {
            slices.pop_front();
        }
        if slices.len() == before {
            return;
        }
        let mut sum = Totals::default();
        for (_, used) in slices.iter() {
            sum.add(used);
        }
        self.used = sum;
        for (i, cap, _) in bounds.each() {
            if self.level(cap) < bounds.lines[i] {
                self.warned &= !(1 << i);
            }
        }
    }

    /// Counts `used` in the window (or slice) `at`; in one that ended it counts no more.
    pub(super) fn charge(&mut self, periods: &Periods, at: i64, used: &Totals) {
        if used.is_zero() || periods.ended(at, self.window) {
            return;
        }
        self.used.add(used);
        if periods.rolls() {
            let slices = self.slices.get_or_insert_default();
            let place = slices.partition_point(|(slice, _)| *slice < at);
            match slices.get_mut(place) {
                Some((slice, sum)) if *slice == at => sum.add(used),
                _ => slices.insert(place, (at, *used)),
            }
        }
    }

    /// Takes back what [`Cell::charge`] counted with the same arguments.
    pub(super) fn uncharge(&mut self, periods: &Periods, at: i64, used: &Totals) {
        if periods.ended(at, self.window) {
            return;
        }
        self.used.sub(used);
        if let Some((_, sum)) =
            self.slices.as_mut().and_then(|s| s.iter_mut().find(|(slice, _)| *slice == at))
        {
            sum.sub(used);
        }
    }

    pub(super) fn hold(&mut self, amounts: &Amounts) {
        self.held.add(amounts);
    }

    pub(super) fn release(&mut self, amounts: &Amounts) {
        self.held.sub(amounts);
    }

    /// What of `cap` is used and what is held.
    pub(super) fn numbers(&self, cap: Cap) -> (u64, u64) {
        (self.used.of(cap), self.held.of(cap))
    }

    /// Adds a warning for every cap whose use, held included, reached its line for the first time in this window.
    pub(super) fn warn(&mut self, bounds: &Bounds, out: &mut Vec<Warning>) {
        for (i, cap, limit) in bounds.each() {
            let level = self.level(cap);
            if level >= bounds.lines[i] && self.warned & (1 << i) == 0 {
                self.warned |= 1 << i;
                out.push(Warning::new(bounds.entity, cap, limit, level));
            }
        }
    }

    /// When the window ends, or when a rolling one begins to let go.
    pub(super) fn resets_at(&self, periods: &Periods, now: &Tick) -> Option<Timestamp> {
        match &self.slices {
            Some(slices) => slices.front().map(|(slice, _)| periods.leaves_at(*slice)),
            None => periods.window().bounds(now.wall).map(|(_, end)| end),
        }
    }

    /// One line for each cap.
    pub(super) fn lines(&self, bounds: &Bounds, periods: &Periods, now: &Tick) -> Vec<CapUsage> {
        bounds
            .each()
            .map(|(_, cap, limit)| {
                let (used, held) = self.numbers(cap);
                CapUsage::new(bounds.entity, cap, periods.window(), limit).with_numbers(
                    used,
                    held,
                    self.resets_at(periods, now),
                )
            })
            .collect()
    }

    fn level(&self, cap: Cap) -> u64 {
        let (used, held) = self.numbers(cap);
        used.saturating_add(held)
    }

    fn room(&self, cap: Cap, limit: u64) -> u64 {
        limit.saturating_sub(self.level(cap))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use loomflow_core::{HoldKey, LongPrompt, RunId};
    use proptest::prelude::*;

    #[test]
    fn the_warning_line_is_exact() {
        for (limit, fraction, line) in [(100, 0.8, 80), (30, 0.1, 3), (10, 0.7, 7), (3, 0.5, 2), (0, 0.8, 1)]
        {
            let caps = loomflow_core::BudgetConfig::new().max_tokens(limit).global;
            assert_eq!(Bounds::new(Entity::Global, &caps, fraction).lines[0], line, "{limit} {fraction}");
        }
    }

    proptest! {
        /// The closed form against asking the price one token at a time.
        #[test]
        fn affordable_output_is_the_most_that_fits(
            room in 0_u64..5_000, input in 0_u64..50, rate in 0_u64..100_000, output in 0_u64..100_000, wanted in 0_u64..200,
            above in 0_u64..50,
        ) {
            let long = Price::per_token(rate * 2, output + output / 2);
            let price = Price::per_token(rate, output).with_long_prompt(LongPrompt::new(above, long));
            let key = HoldKey::new(RunId::from_u128(1), 0);
            let ask = Ask::new(&Hold::tokens(key, input, wanted).with_price(Some(price)).with_min_output(0));
            prop_assume!(price.ceiling(input, 0).0 <= room);
            let best = (0..=wanted).rev().find(|n| price.ceiling(input, *n).0 <= room).unwrap();
            prop_assert_eq!(wanted.min(ask.affordable(room)), best);
        }
    }
}
