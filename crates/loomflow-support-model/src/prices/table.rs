//! The table: the embedded one, an operator's own, and one laid over the other.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use loomflow_core::{Error, Price, Result};

use super::file::File;
use super::model::{CacheTtl, ModelPrice, ServiceTier};
use super::vendor;

/// The text of the embedded table; `prices.LICENSE` beside it says whose data it is.
const EMBEDDED: &str = include_str!("../../prices.json");

static TABLE: LazyLock<PriceTable> =
    LazyLock::new(|| PriceTable::from_json(EMBEDDED).expect("a test reads the embedded table"));

/// Prices by vendor and model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceTable {
    as_of: String,
    source: String,
    vendors: BTreeMap<String, BTreeMap<String, ModelPrice>>,
}

impl PriceTable {
    /// The table that is compiled in. Read at the first call, which takes a few milliseconds, and never again.
    #[must_use]
    pub fn embedded() -> &'static Self {
        &TABLE
    }

    /// Reads a table in the format of the embedded one.
    ///
    /// A vendor is spelt as the embedded table does, or by one of the aliases of [`lookup`](Self::lookup). A rate of zero is
    /// taken at its word: a server of one's own may be free.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](loomflow_core::ErrorKind::InvalidInput) for anything that is not such a table: members
    /// that are not known, rates that are not whole numbers, empty names, a model that is there twice, a date that is none.
    pub fn from_json(text: &str) -> Result<Self> {
        let file = File::read(text)?;
        let mut table = Self { as_of: file.as_of, source: file.source, vendors: BTreeMap::new() };
        for entry in file.models {
            let price = entry.model_price()?;
            if table.put(&entry.vendor, &entry.model, price).is_some() {
                let message =
                    format!("the price table has {:?}/{:?} twice: take one out", entry.vendor, entry.model);
                return Err(Error::invalid_input(message));
            }
        }
        Ok(table)
    }

    /// The day its prices were published, as `YYYY-MM-DD`. Of a table laid over another, the earlier of both.
    #[must_use]
    pub fn as_of(&self) -> &str {
        &self.as_of
    }

    /// Where its prices are from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What is known of a model, under its exact name.
    ///
    /// Names are compared byte by byte. Besides the name itself these are understood, and nothing else:
    ///
    /// - the vendor's own prefix, `groq/..` for `groq`;
    /// - `models/..` for `gemini`, as its endpoint lists models;
    /// - `ft:BASE:organisation:..` for `openai`, whose price is that of fine-tunes of BASE;
    /// - the vendors `google`, `together`, `fireworks` and `azure_openai`, for `gemini`, `together_ai`, `fireworks_ai` and
    ///   `azure`.
    ///
    /// A snapshot that the table does not have is unknown, even when its beginning is not: the next model of a family need
    /// not cost what the last one did.
    #[must_use]
    pub fn lookup(&self, vendor: &str, model: &str) -> Option<&ModelPrice> {
        let canonical = vendor::canonical(vendor);
        let models = self.vendors.get(canonical)?;
        let found = |name: &str| models.get(name);
        found(model).or_else(|| found(vendor::bare_model(vendor, canonical, model)?))
    }

    /// The price of a model in this tier of service, with prompts cached this long: what an adapter answers as its price.
    /// `None` where the model is unknown, or no such price is published.
    #[must_use]
    pub fn price(&self, vendor: &str, model: &str, tier: ServiceTier, ttl: CacheTtl) -> Option<Price> {
        self.lookup(vendor, model)?.price(tier, ttl)
    }

    /// This table with one model more, or one model's price replaced as a whole. For many, see [`overlay`](Self::overlay).
    #[must_use]
    pub fn with(&self, vendor: &str, model: &str, price: ModelPrice) -> Self {
        let mut table = self.clone();
        table.put(vendor, model, price);
        table
    }

    /// This table with every model of `upper` in place of its own.
    #[must_use]
    pub fn overlay(&self, upper: &Self) -> Self {
        let mut table = self.clone();
        for (vendor, model, price) in upper.iter() {
            table.put(vendor, model, price.clone());
        }
        // Dates of this shape sort as text.
        table.as_of = self.as_of.clone().min(upper.as_of.clone());
        table.source = format!("{}, over {}", upper.source, self.source);
        table
    }

    /// Every vendor, model and price, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &ModelPrice)> {
        self.vendors.iter().flat_map(|(vendor, models)| {
            models.iter().map(move |(model, price)| (vendor.as_str(), model.as_str(), price))
        })
    }

    /// Puts a model in and answers what was there.
    fn put(&mut self, vendor: &str, model: &str, price: ModelPrice) -> Option<ModelPrice> {
        let vendor = vendor::canonical(vendor);
        if !self.vendors.contains_key(vendor) {
            self.vendors.insert(vendor.to_owned(), BTreeMap::new());
        }
        self.vendors.get_mut(vendor).and_then(|models| models.insert(model.to_owned(), price))
    }
}
