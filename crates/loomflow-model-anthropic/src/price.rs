//! What the price table says about a model.

use loomflow_core::Price;
use loomflow_support_model::prices::{CacheTtl as ListTtl, ModelPrice, PriceTable, ServiceTier};

use crate::settings::CacheTtl;

/// The table's entry of a vendor's model.
pub(crate) fn listed(vendor: Option<&str>, model: &str) -> Option<&'static ModelPrice> {
    PriceTable::embedded().lookup(vendor?, model)
}

/// The list price; `None` when it is not known, which a cost cap refuses. What is written to the cache is charged by how long
/// it is kept.
///
/// Priority capacity is bought ahead, and costs nothing more by the token.
pub(crate) fn price_for(listed: Option<&ModelPrice>, ttl: Option<CacheTtl>) -> Option<Price> {
    let ttl = match ttl {
        Some(CacheTtl::OneHour) => ListTtl::OneHour,
        Some(CacheTtl::FiveMinutes) | None => ListTtl::FiveMinutes,
    };
    listed?.price(ServiceTier::Default, ttl)
}
