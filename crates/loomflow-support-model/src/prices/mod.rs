//! What a model costs: a dated table of public list prices that every part of can be overridden.
//!
//! The table is data, not code: it is embedded as text, read once, and made by `cargo xtask prices`. A model it does not
//! have is unknown; there is no guessing from the beginning of a name, and an unknown price under a cost cap is refused
//! before anything is sent.
//!
//! ```
//! use loomflow_core::Price;
//! use loomflow_support_model::prices::{CacheTtl, ModelPrice, PriceTable, ServiceTier, UsdPerMillion};
//!
//! let table = PriceTable::embedded();
//! let price = table.price("openai", "gpt-4.1-mini", ServiceTier::Default, CacheTtl::FiveMinutes);
//! assert_eq!(price.map(|p| p.input), Some(400_000), "pico-dollars per token");
//! assert!(table.lookup("openai", "gpt-4.1-mini-of-tomorrow").is_none());
//!
//! // What was negotiated, or a server of one's own.
//! let own: Price = UsdPerMillion::new("0.20", "0.80")?.price();
//! let table = table.with("openai", "gpt-4.1-mini", ModelPrice::new(own));
//! assert_eq!(table.lookup("openai", "gpt-4.1-mini").map(|m| m.context_window()), Some(None));
//! # Ok::<(), loomflow_core::Error>(())
//! ```
//!
//! The rates are those of text. They hold for standing list prices: discounts by the hour, batches and surcharges for a
//! region are not in it.

mod decimal;
mod file;
mod model;
mod per_million;
mod table;
mod vendor;

#[cfg(test)]
mod tests;

pub use model::{CacheTtl, ModelPrice, ServiceTier};
pub use per_million::UsdPerMillion;
pub use table::PriceTable;
pub use vendor::vendor_of_host;
