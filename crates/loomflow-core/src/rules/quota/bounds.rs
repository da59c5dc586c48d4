//! What caps leave of what is asked for.

use super::amounts::{Amounts, micros};
use super::cell::Cell;
use crate::ledger::{Cap, Caps, Entity, Hold};
use crate::message::Digest;
use crate::usage::Price;

/// The order in which caps are checked and reported.
pub const CAPS: [Cap; 5] = [Cap::Tokens, Cap::InputTokens, Cap::OutputTokens, Cap::Cost, Cap::WallClock];

/// The caps of one kind of entity, ready to judge.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub(super) entity: Entity,
    limits: [Option<u64>; 5],
    /// Where the warning of each cap is given.
    pub(super) lines: [u64; 5],
}

impl Bounds {
    /// The caps of `entity`, warned about when their use reaches the fraction `warn_at`.
    #[must_use]
    pub fn new(entity: Entity, caps: &Caps, warn_at: f64) -> Self {
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

    /// Whether nothing is capped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.limits.iter().all(Option::is_none)
    }

    /// Each cap that is set, in the order of [`CAPS`]: its limit, and where its warning is given.
    pub fn caps(&self) -> impl Iterator<Item = (Cap, u64, u64)> {
        self.each().map(|(i, cap, limit)| (cap, limit, self.lines[i]))
    }

    pub(super) fn each(&self) -> impl Iterator<Item = (usize, Cap, u64)> {
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
#[non_exhaustive]
pub struct Ask {
    /// Prompt tokens.
    pub input: u64,
    /// Generated tokens that are wanted.
    pub output: u64,
    /// Microseconds of wall clock that are wanted.
    pub wall: u64,
    /// Whether it costs money and nobody knows how much.
    pub needs_price: bool,
    /// The fewest generated tokens that will do.
    pub min_output: u64,
    /// The least wall clock that will do, in microseconds.
    pub min_wall: u64,
    /// The model's price.
    pub price: Option<Price>,
}

impl Ask {
    /// More tokens than any model has: keeps products with a price within 128 bits.
    pub const MAX_TOKENS: u64 = u64::MAX >> 2;

    /// What `hold` asks for.
    #[must_use]
    pub fn new(hold: &Hold) -> Self {
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

    /// What is asked for, as a digest: the same key again must ask for the same.
    #[must_use]
    pub fn terms(&self) -> Digest {
        let mut numbers = vec![self.input, self.output, self.wall, self.min_output, self.min_wall];
        if let Some(price) = self.price {
            numbers.extend([price.input, price.cached_input, price.cache_write, price.output]);
            if let Some(tier) = price.long_prompt {
                numbers.extend([tier.above, tier.input, tier.cached_input, tier.cache_write, tier.output]);
            }
        }
        let bytes: Vec<u8> = numbers.into_iter().flat_map(u64::to_be_bytes).collect();
        Digest::of(&[&bytes])
    }

    /// What is set aside for that much output and wall clock.
    #[must_use]
    pub fn amounts(&self, output: u64, wall: u64) -> Amounts {
        let cost = self.price.map_or(0, |price| price.ceiling(self.input, output).0);
        Amounts { input: self.input, output, cost, wall }
    }

    /// The most output whose [ceiling](Price::ceiling) is within `room` nano-dollars.
    #[must_use]
    pub fn affordable(&self, room: u64) -> u64 {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use crate::ids::RunId;
    use crate::ledger::{BudgetConfig, HoldKey};
    use crate::usage::LongPrompt;
    use proptest::prelude::*;

    #[test]
    fn the_warning_line_is_exact() {
        for (limit, fraction, line) in [(100, 0.8, 80), (30, 0.1, 3), (10, 0.7, 7), (3, 0.5, 2), (0, 0.8, 1)]
        {
            let caps = BudgetConfig::new().max_tokens(limit).global;
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
