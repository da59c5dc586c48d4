//! Prices as people and price lists write them: US dollars per million tokens.

use std::fmt;

use loomflow_core::{Error, Price, Result};
use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::decimal::{NotUnits, units};

/// A dollar per million tokens is a million pico-dollars per token: six places.
const SCALE: i32 = 6;

/// A price in US dollars per million tokens: `{ input = 0.40, cached_input = 0.10, output = 1.60 }`.
///
/// Rates are decimal numbers, or text of one, and exact: up to six places after the point. `cached_input` and `cache_write`
/// cost what `input` does when they are left out. In a file that is read with `serde`, `input` and `output` must be there,
/// and a misspelt member is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsdPerMillion {
    input: Rate,
    cached_input: Option<Rate>,
    cache_write: Option<Rate>,
    output: Rate,
}

/// Pico-dollars per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate(u64);

impl UsdPerMillion {
    /// A price of prompt and generated tokens, each the text of a decimal number.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](loomflow_core::ErrorKind::InvalidInput) naming the text, when it is no decimal number, is
    /// negative, has more than six places after the point, or is too large.
    pub fn new(input: &str, output: &str) -> Result<Self> {
        Ok(Self {
            input: Rate::parse(input)?,
            cached_input: None,
            cache_write: None,
            output: Rate::parse(output)?,
        })
    }

    /// Sets the rate of prompt tokens that are read from the provider's cache.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_cached_input(mut self, rate: &str) -> Result<Self> {
        self.cached_input = Some(Rate::parse(rate)?);
        Ok(self)
    }

    /// Sets the rate of prompt tokens that are written to the provider's cache.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_cache_write(mut self, rate: &str) -> Result<Self> {
        self.cache_write = Some(Rate::parse(rate)?);
        Ok(self)
    }

    /// The same price per token.
    #[must_use]
    pub fn price(&self) -> Price {
        let read = self.cached_input.unwrap_or(self.input);
        let write = self.cache_write.unwrap_or(self.input);
        Price::per_token(self.input.0, self.output.0).with_cache(read.0, write.0)
    }
}

impl From<UsdPerMillion> for Price {
    fn from(price: UsdPerMillion) -> Self {
        price.price()
    }
}

impl Rate {
    fn parse(text: &str) -> Result<Self> {
        let wrong = match units(text, SCALE) {
            Ok(rate) if rate.exact => return Ok(Self(rate.rounded_up)),
            Ok(_) => "has more than six places after the point",
            Err(NotUnits::NotANumber) => "is not a decimal number",
            Err(NotUnits::Negative) => "is negative",
            Err(NotUnits::TooLong) => "has too many digits",
            Err(NotUnits::TooLarge) => "is too large",
        };
        let shown: String = text.chars().take(64).collect();
        Err(Error::invalid_input(format!(
            "the price {shown:?} {wrong}: write US dollars per million tokens, such as 0.40"
        )))
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RateText)
    }
}

/// Takes text, or a number. A floating-point number is taken as the shortest text that means it, which is what was written
/// in the file; the rate itself never passes through floating point.
struct RateText;

impl Visitor<'_> for RateText {
    type Value = Rate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("US dollars per million tokens, such as 0.40")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
        Rate::parse(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Rate, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Rate, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Rate, E> {
        self.visit_str(&number.to_string())
    }
}
