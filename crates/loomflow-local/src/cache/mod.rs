//! Tool results, cached per tenant.

mod index;
mod moka;

pub use moka::{MokaToolCache, ToolCacheConfig};
