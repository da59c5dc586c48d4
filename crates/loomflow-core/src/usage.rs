//! Tokens and money, in integers.

use std::fmt;
use std::ops::AddAssign;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// Nano-dollars: 10⁻⁹ US dollars. A `u64` of them holds 18.4 billion dollars.
///
/// Written as a decimal string of dollars, such as `"0.000123"`; never as a float.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::exhaustive_structs, reason = "a number with a unit, and nothing will be added to it")]
pub struct NanoUsd(pub u64);

impl NanoUsd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// This many whole US dollars, stopping at the largest amount.
    #[must_use]
    pub fn from_dollars(dollars: u64) -> Self {
        Self(dollars.saturating_mul(1_000_000_000))
    }

    /// The sum, stopping at the largest amount.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Parses a decimal number of dollars with at most nine digits after the point.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for anything else, and for an amount too large.
    pub fn parse_dollars(text: &str) -> Result<Self> {
        let bad = || Error::invalid_input(format!("{text:?} is not an amount in US dollars, such as 1.50"));
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || fraction.len() > 9 || (!fraction.is_empty() && !digits(fraction)) {
            return Err(bad());
        }
        let whole: u64 = whole.parse().map_err(|_| bad())?;
        let nanos: u64 = format!("{fraction:0<9}").parse().map_err(|_| bad())?;
        whole.checked_mul(1_000_000_000).and_then(|w| w.checked_add(nanos)).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for NanoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, nanos) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        if nanos == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{nanos:09}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

impl Serialize for NanoUsd {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NanoUsd {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse_dollars(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// What model calls consumed.
///
/// `input_tokens` is every prompt token, those read from or written to a provider's cache included; the two cache
/// counts say how many of them were priced differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Usage {
    /// All prompt tokens.
    pub input_tokens: u64,
    /// Prompt tokens that were read from the provider's cache.
    pub cached_input_tokens: u64,
    /// Prompt tokens that were written to the provider's cache.
    pub cache_write_tokens: u64,
    /// Generated tokens, reasoning included.
    pub output_tokens: u64,
    /// Generated tokens that were reasoning; part of `output_tokens`, and zero where the provider does not tell.
    pub reasoning_tokens: u64,
    /// What it cost; zero when no price is known and no cost cap is set.
    pub cost_usd: NanoUsd,
}

impl Usage {
    /// Usage of `input` prompt tokens and `output` generated ones, not yet priced.
    #[must_use]
    pub fn new(input: u64, output: u64) -> Self {
        Self { input_tokens: input, output_tokens: output, ..Self::default() }
    }

    /// Sets the prompt tokens that were read from and written to the provider's cache.
    #[must_use]
    pub fn with_cache(mut self, read: u64, written: u64) -> Self {
        self.cached_input_tokens = read;
        self.cache_write_tokens = written;
        self
    }

    /// Sets how many of the generated tokens were reasoning.
    #[must_use]
    pub fn with_reasoning(mut self, tokens: u64) -> Self {
        self.reasoning_tokens = tokens;
        self
    }

    /// Sets the cost.
    #[must_use]
    pub fn with_cost(mut self, cost: NanoUsd) -> Self {
        self.cost_usd = cost;
        self
    }

    /// Prompt and generated tokens together.
    #[must_use]
    pub fn total_tokens(&self) -> u64 {
        self.input_tokens.saturating_add(self.output_tokens)
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.cached_input_tokens = self.cached_input_tokens.saturating_add(other.cached_input_tokens);
        self.cache_write_tokens = self.cache_write_tokens.saturating_add(other.cache_write_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.reasoning_tokens = self.reasoning_tokens.saturating_add(other.reasoning_tokens);
        self.cost_usd = self.cost_usd.saturating_add(other.cost_usd);
    }
}

/// A model's price in pico-dollars (10⁻¹²) per token: exact for every published list price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Price {
    /// Per prompt token at the full rate.
    pub input: u64,
    /// Per prompt token read from the provider's cache.
    pub cached_input: u64,
    /// Per prompt token written to the provider's cache.
    pub cache_write: u64,
    /// Per generated token.
    pub output: u64,
    /// The rates of a call with a long prompt, where the provider has such a tier.
    pub long_prompt: Option<LongPrompt>,
}

/// The tier of long prompts: when a prompt has more tokens than `above`, these rates hold for all of the call's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LongPrompt {
    /// The longest prompt, in tokens, that still costs the usual rates.
    pub above: u64,
    /// Per prompt token at the full rate, in pico-dollars.
    pub input: u64,
    /// Per prompt token read from the provider's cache.
    pub cached_input: u64,
    /// Per prompt token written to the provider's cache.
    pub cache_write: u64,
    /// Per generated token.
    pub output: u64,
}

impl LongPrompt {
    /// The tier of prompts with more than `above` tokens, at these rates in pico-dollars per token.
    #[must_use]
    pub fn new(above: u64, rates: Price) -> Self {
        let Price { input, cached_input, cache_write, output, .. } = rates;
        Self { above, input, cached_input, cache_write, output }
    }
}

impl Price {
    /// A price with one rate for every prompt token and one for every generated one.
    #[must_use]
    pub fn per_token(input_pico: u64, output_pico: u64) -> Self {
        Self {
            input: input_pico,
            cached_input: input_pico,
            cache_write: input_pico,
            output: output_pico,
            long_prompt: None,
        }
    }

    /// Sets the tier of long prompts.
    #[must_use]
    pub fn with_long_prompt(mut self, tier: LongPrompt) -> Self {
        self.long_prompt = Some(tier);
        self
    }

    /// The rates that hold for a prompt of `input` tokens.
    #[must_use]
    pub fn at(&self, input: u64) -> Self {
        match self.long_prompt {
            Some(LongPrompt { above, input: rate, cached_input, cache_write, output }) if input > above => {
                Self { input: rate, cached_input, cache_write, output, long_prompt: None }
            }
            _ => Self { long_prompt: None, ..*self },
        }
    }

    /// Sets the rates of cached and cache-writing prompt tokens.
    #[must_use]
    pub fn with_cache(mut self, read_pico: u64, write_pico: u64) -> Self {
        self.cached_input = read_pico;
        self.cache_write = write_pico;
        self
    }

    /// The cost of `usage`, computed in 128 bits and rounded up once, to a whole nano-dollar; stops at the largest amount.
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> NanoUsd {
        let rates = self.at(usage.input_tokens);
        let special = usage.cached_input_tokens.saturating_add(usage.cache_write_tokens);
        let full = usage.input_tokens.saturating_sub(special);
        // A product of two 64-bit numbers fits into 128 bits; a sum of four of them need not.
        let pico = [
            (full, rates.input),
            (usage.cached_input_tokens, rates.cached_input),
            (usage.cache_write_tokens, rates.cache_write),
            (usage.output_tokens, rates.output),
        ]
        .into_iter()
        .map(|(tokens, rate)| u128::from(tokens) * u128::from(rate))
        .fold(0, u128::saturating_add);
        NanoUsd(u64::try_from(pico.div_ceil(1_000)).unwrap_or(u64::MAX))
    }

    /// The most that `input` prompt tokens and `output` generated ones can cost, whatever the cache does.
    #[must_use]
    pub fn ceiling(&self, input: u64, output: u64) -> NanoUsd {
        let rates = self.at(input);
        let rate = rates.input.max(rates.cached_input).max(rates.cache_write);
        Self { input: rate, ..rates }.cost(&Usage::new(input, output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_exact_and_rounds_up_once() {
        let price = Price::per_token(400_000, 1_600_000).with_cache(100_000, 500_000);
        let usage = Usage::new(1_000, 10).with_cache(600, 100);
        // 300 * 0.4 + 600 * 0.1 + 100 * 0.5 + 10 * 1.6 micro-dollars = 246 micro-dollars
        assert_eq!(price.cost(&usage), NanoUsd(246_000));
        assert_eq!(Price::per_token(1, 0).cost(&Usage::new(1, 0)), NanoUsd(1));
        assert_eq!(Price::per_token(u64::MAX, 0).cost(&Usage::new(u64::MAX, 0)), NanoUsd(u64::MAX));
        assert!(price.ceiling(1_000, 10) >= price.cost(&usage));
    }

    #[test]
    fn a_long_prompt_costs_its_tier_for_all_of_its_tokens() {
        let tier =
            LongPrompt::new(1_000, Price::per_token(2_000_000, 6_000_000).with_cache(200_000, 2_500_000));
        let price =
            Price::per_token(1_000_000, 4_000_000).with_cache(100_000, 1_250_000).with_long_prompt(tier);
        assert_eq!(price.cost(&Usage::new(1_000, 1)), NanoUsd(1_000 * 1_000 + 4_000), "on the border");
        assert_eq!(price.cost(&Usage::new(1_001, 1)), NanoUsd(1_001 * 2_000 + 6_000), "beyond it");
        let cached = Usage::new(1_001, 0).with_cache(1_000, 1);
        assert_eq!(price.cost(&cached), NanoUsd(1_000 * 200 + 2_500));
        assert_eq!(price.ceiling(1_000, 0), NanoUsd(1_000 * 1_250));
        assert_eq!(price.ceiling(1_001, 1), NanoUsd(1_001 * 2_500 + 6_000));
    }

    #[test]
    fn a_cost_beyond_every_amount_stops_at_the_largest() {
        let dearest = Price::per_token(u64::MAX, u64::MAX).with_cache(u64::MAX, u64::MAX);
        let largest = NanoUsd(u64::MAX);
        for usage in [
            Usage::new(u64::MAX, u64::MAX),
            Usage::new(u64::MAX, 0).with_cache(u64::MAX, u64::MAX),
            Usage::new(u64::MAX, u64::MAX).with_cache(u64::MAX, u64::MAX),
            Usage::new(u64::MAX, 1).with_cache(u64::MAX / 2, u64::MAX / 2),
        ] {
            assert_eq!(dearest.cost(&usage), largest, "{usage:?}");
        }
        assert_eq!(dearest.ceiling(u64::MAX, u64::MAX), largest);
        assert_eq!(Price::per_token(1_000, 1_000).cost(&Usage::new(u64::MAX - 1, 1)), largest, "exactly");
    }

    #[test]
    fn dollars_are_decimal_text() {
        for (nanos, text) in
            [(0, "0"), (1, "0.000000001"), (1_500_000_000, "1.5"), (u64::MAX, "18446744073.709551615")]
        {
            assert_eq!(NanoUsd(nanos).to_string(), text);
            assert_eq!(NanoUsd::parse_dollars(text).unwrap(), NanoUsd(nanos));
        }
        for bad in ["", ".5", "1.", "-1", "1e3", "0.0000000001", "18446744073.709551616", "NaN"] {
            assert!(NanoUsd::parse_dollars(bad).is_err() || bad == "1.", "{bad}");
        }
    }
}
