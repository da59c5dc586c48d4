//! What the price table says about a model.

use loomflow_core::Price;
use loomflow_support_model::prices::{CacheTtl, ModelPrice, PriceTable, ServiceTier as ListTier};

use crate::encode::ServiceTier;

/// The table's entry of a vendor's model.
pub(crate) fn listed(vendor: Option<&str>, model: &str) -> Option<&'static ModelPrice> {
    PriceTable::embedded().lookup(vendor?, model)
}

/// The list price in a tier; `None` when it is not known, which a cost cap refuses.
///
/// `auto` is the project's setting, which nobody here knows: it is priced as the standard tier.
pub(crate) fn price_in(listed: Option<&ModelPrice>, tier: Option<ServiceTier>) -> Option<Price> {
    let tier = match tier {
        Some(ServiceTier::Flex) => ListTier::Flex,
        Some(ServiceTier::Priority) => ListTier::Priority,
        Some(ServiceTier::Auto | ServiceTier::Default) | None => ListTier::Default,
    };
    listed?.price(tier, CacheTtl::FiveMinutes)
}
