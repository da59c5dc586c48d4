//! The price of one model, in each tier of service.

use loomflow_core::Price;

/// How quickly, and how dearly, a provider serves a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServiceTier {
    /// The usual one.
    #[default]
    Default,
    /// Slower and cheaper.
    Flex,
    /// Quicker and dearer.
    Priority,
}

/// How long a prompt that was written to the provider's cache stays there. The longer, the dearer the writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CacheTtl {
    /// Five minutes, or as long as the provider keeps it where nothing can be chosen.
    #[default]
    FiveMinutes,
    /// One hour.
    OneHour,
}

/// What is known of one model's price and size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelPrice {
    default: TierPrice,
    // Few models have these, and a price is large.
    flex: Option<Box<TierPrice>>,
    priority: Option<Box<TierPrice>>,
    embedding: bool,
    context_window: Option<u64>,
    max_output_tokens: Option<u64>,
}

/// The price of one tier of service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TierPrice {
    pub(super) five_minutes: Option<Price>,
    pub(super) one_hour: Option<Price>,
}

impl ModelPrice {
    /// A model that costs `price` in the default tier, however long its cache keeps a prompt. Nothing else is known of it.
    #[must_use]
    pub fn new(price: Price) -> Self {
        Self { default: TierPrice { five_minutes: Some(price), one_hour: Some(price) }, ..Self::default() }
    }

    /// Sets the price of one tier of service with one lifetime of the cache.
    #[must_use]
    pub fn with_price(mut self, tier: ServiceTier, ttl: CacheTtl, price: Price) -> Self {
        let prices = match tier {
            ServiceTier::Default => &mut self.default,
            ServiceTier::Flex => self.flex.get_or_insert_default(),
            ServiceTier::Priority => self.priority.get_or_insert_default(),
        };
        match ttl {
            CacheTtl::FiveMinutes => prices.five_minutes = Some(price),
            CacheTtl::OneHour => prices.one_hour = Some(price),
        }
        self
    }

    /// Sets the longest prompt it takes, in tokens.
    #[must_use]
    pub fn with_context_window(mut self, tokens: u64) -> Self {
        self.context_window = Some(tokens);
        self
    }

    /// Sets the most tokens it generates in one call.
    #[must_use]
    pub fn with_max_output_tokens(mut self, tokens: u64) -> Self {
        self.max_output_tokens = Some(tokens);
        self
    }

    /// Says that it makes vectors and generates nothing.
    #[must_use]
    pub fn for_embedding(mut self) -> Self {
        self.embedding = true;
        self
    }

    /// Its price in this tier of service, with prompts cached this long; `None` where none is published.
    ///
    /// An adapter hands on exactly this as `Model::price()`: `None` is refused under a cost cap, and never becomes zero.
    #[must_use]
    pub fn price(&self, tier: ServiceTier, ttl: CacheTtl) -> Option<Price> {
        let prices = match tier {
            ServiceTier::Default => &self.default,
            ServiceTier::Flex => self.flex.as_deref()?,
            ServiceTier::Priority => self.priority.as_deref()?,
        };
        match ttl {
            CacheTtl::FiveMinutes => prices.five_minutes,
            CacheTtl::OneHour => prices.one_hour,
        }
    }

    /// Whether it makes vectors, rather than text.
    #[must_use]
    pub fn is_embedding(&self) -> bool {
        self.embedding
    }

    /// The longest prompt it takes, in tokens, where that is known.
    #[must_use]
    pub fn context_window(&self) -> Option<u64> {
        self.context_window
    }

    /// The most tokens it generates in one call, where that is known.
    #[must_use]
    pub fn max_output_tokens(&self) -> Option<u64> {
        self.max_output_tokens
    }

    pub(super) fn set_tier(&mut self, tier: ServiceTier, prices: TierPrice) {
        match tier {
            ServiceTier::Default => self.default = prices,
            ServiceTier::Flex => self.flex = Some(Box::new(prices)),
            ServiceTier::Priority => self.priority = Some(Box::new(prices)),
        }
    }
}
