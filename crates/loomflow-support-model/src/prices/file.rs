//! The table's text: what it looks like, and what a rate that it leaves out means.
//!
//! `{"schema":1,"as_of":"2026-01-31","source":"..","models":[{"vendor":"..","model":"..","price":{..}}, ..]}`, where a price
//! holds whole pico-dollars per token. Every member is one of those below; a misspelt one is an error, not a price of zero.

use std::borrow::Cow;

use loomflow_core::{Error, LongPrompt, Price, Result};
use serde::Deserialize;

use super::model::{ModelPrice, ServiceTier, TierPrice};

/// The version of the format that is read.
const SCHEMA: u32 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File<'t> {
    schema: u32,
    pub(super) as_of: String,
    pub(super) source: String,
    #[serde(borrow)]
    pub(super) models: Vec<Entry<'t>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry<'t> {
    #[serde(borrow)]
    pub(super) vendor: Cow<'t, str>,
    #[serde(borrow)]
    pub(super) model: Cow<'t, str>,
    #[serde(default)]
    embedding: bool,
    context_window: Option<u64>,
    max_output_tokens: Option<u64>,
    price: Rates,
    flex: Option<Rates>,
    priority: Option<Rates>,
}

/// Pico-dollars per token.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rates {
    input: u64,
    cached_input: Option<u64>,
    cache_write: Option<u64>,
    cache_write_1h: Option<u64>,
    output: u64,
    long_prompt: Option<Long>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Long {
    above: u64,
    input: u64,
    cached_input: Option<u64>,
    cache_write: Option<u64>,
    cache_write_1h: Option<u64>,
    output: u64,
}

impl<'t> File<'t> {
    /// Reads a file's text.
    pub(super) fn read(text: &'t str) -> Result<Self> {
        let file: Self = serde_json::from_str(text)
            .map_err(|e| Error::invalid_input(format!("the price table cannot be read: {e}")))?;
        if file.schema != SCHEMA {
            let message = format!("the price table has schema {}, and only {SCHEMA} is known", file.schema);
            return Err(Error::invalid_input(message));
        }
        if !is_date(&file.as_of) {
            let message = "the price table's as_of is not a date, such as 2026-01-31";
            return Err(Error::invalid_input(message));
        }
        Ok(file)
    }
}

impl Entry<'_> {
    /// What the entry says, with what it leaves out made good.
    pub(super) fn model_price(&self) -> Result<ModelPrice> {
        let refuse = |why: &str| {
            Err(Error::invalid_input(format!("the price table's {:?}/{:?} {why}", self.vendor, self.model)))
        };
        if self.vendor.is_empty() || self.model.is_empty() {
            return refuse("has an empty name");
        }
        let mut price = ModelPrice::default();
        let tiers = [
            (ServiceTier::Default, Some(&self.price)),
            (ServiceTier::Flex, self.flex.as_ref()),
            (ServiceTier::Priority, self.priority.as_ref()),
        ];
        for (tier, rates) in tiers {
            let Some(rates) = rates else { continue };
            if rates.long_prompt.as_ref().is_some_and(|long| long.above == 0) {
                return refuse("has a tier of long prompts above 0: those are all prompts");
            }
            price.set_tier(tier, rates.prices());
        }
        if let Some(tokens) = self.context_window {
            price = price.with_context_window(tokens);
        }
        if let Some(tokens) = self.max_output_tokens {
            price = price.with_max_output_tokens(tokens);
        }
        Ok(if self.embedding { price.for_embedding() } else { price })
    }
}

impl Rates {
    fn prices(&self) -> TierPrice {
        let five_minutes = self
            .with_writes(self.cache_write(), self.long_prompt.as_ref().map(|long| long.cache_write(self)));
        TierPrice { five_minutes: Some(five_minutes), one_hour: self.one_hour() }
    }

    /// A cache rate that nobody published is that of any other prompt token: never cheaper than what is known.
    fn cache_write(&self) -> u64 {
        self.cache_write.unwrap_or(self.input)
    }

    /// Who publishes the rate of writing for five minutes, and not that for an hour, has no known price for an hour. Who
    /// publishes neither does not charge for writing at all.
    fn one_hour(&self) -> Option<Price> {
        let write = match (self.cache_write_1h, self.cache_write) {
            (Some(rate), _) => rate,
            (None, Some(_)) => return None,
            (None, None) => self.cache_write(),
        };
        let long = match self.long_prompt.as_ref() {
            None => None,
            Some(long) => Some(match (long.cache_write_1h, long.cache_write, self.cache_write_1h) {
                (Some(rate), ..) => rate,
                (None, None, None) => long.cache_write(self),
                _ => return None,
            }),
        };
        Some(self.with_writes(write, long))
    }

    fn with_writes(&self, write: u64, long_write: Option<u64>) -> Price {
        let read = self.cached_input.unwrap_or(self.input);
        let price = Price::per_token(self.input, self.output).with_cache(read, write);
        match (&self.long_prompt, long_write) {
            (Some(long), Some(long_write)) => price.with_long_prompt(long.tier(long_write)),
            _ => price,
        }
    }
}

impl Long {
    fn cache_write(&self, usual: &Rates) -> u64 {
        self.cache_write.unwrap_or_else(|| self.input.max(usual.cache_write()))
    }

    fn tier(&self, write: u64) -> LongPrompt {
        let read = self.cached_input.unwrap_or(self.input);
        LongPrompt::new(self.above, Price::per_token(self.input, self.output).with_cache(read, write))
    }
}

/// Whether `text` has the shape of `YYYY-MM-DD`, with a month and a day that can be.
fn is_date(text: &str) -> bool {
    let number = |range: std::ops::Range<usize>| -> Option<u32> {
        let part = text.get(range)?;
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?
    };
    let dash = |at: usize| text.as_bytes().get(at) == Some(&b'-');
    let (Some(_), Some(month), Some(day)) = (number(0..4), number(5..7), number(8..10)) else { return false };
    text.len() == 10 && dash(4) && dash(7) && (1..=12).contains(&month) && (1..=31).contains(&day)
}
