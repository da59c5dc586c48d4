//! Everything about a [`CohereEmbedder`] that can be set.

use loomflow_core::{Error, ErrorKind, Price, Result};
use loomflow_support_model::{ApiKey, ClientConfig, HttpClient};

use crate::embedder::{CohereEmbedder, Parts, price_for};

/// Where the API is unless it is said to be elsewhere.
const BASE_URL: &str = "https://api.cohere.com";

/// How many components the vectors of a model have, where nobody says.
const KNOWN: [(&str, usize); 5] = [
    ("embed-v4.0", 1_536),
    ("embed-english-v3.0", 1_024),
    ("embed-multilingual-v3.0", 1_024),
    ("embed-english-light-v3.0", 384),
    ("embed-multilingual-light-v3.0", 384),
];

/// Sets up a [`CohereEmbedder`]. Made by [`CohereEmbedder::builder`].
#[derive(Clone, Debug)]
#[must_use = "nothing is made before `build`"]
pub struct CohereConfig {
    name: String,
    client: ClientConfig,
    api_key: ApiKey,
    dimensions: Option<usize>,
    output_dimension: Option<usize>,
    price: Option<Price>,
    vendor: Option<String>,
}

impl CohereConfig {
    loomflow_support_model::client_settings!();

    /// The model `name`, with the key its calls are made with, or where that comes from.
    pub fn new(name: impl Into<String>, api_key: impl Into<ApiKey>) -> Self {
        Self {
            name: name.into(),
            client: ClientConfig::new(BASE_URL),
            api_key: api_key.into(),
            dimensions: None,
            output_dimension: None,
            price: None,
            vendor: None,
        }
    }

    /// Says how many components the model's vectors have, for a model that this version does not know.
    pub fn with_dimensions(mut self, components: usize) -> Self {
        self.dimensions = Some(components);
        self
    }

    /// Asks for vectors of so many components. Only the models from `embed-v4.0` on offer a choice. Vectors of another size
    /// are another embedder's: its name ends with the size.
    pub fn with_output_dimension(mut self, components: usize) -> Self {
        self.output_dimension = Some(components);
        self
    }

    /// Sets the vendor under which the price table knows the model. Without this it is the one whose list prices hold at the
    /// server's address, if any.
    pub fn with_vendor(mut self, vendor: impl Into<String>) -> Self {
        self.vendor = Some(vendor.into());
        self
    }

    /// Sets the price. Without this it is the list price where that is known.
    pub fn with_price(mut self, price: Price) -> Self {
        self.price = Some(price);
        self
    }

    /// The embedder.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming what cannot be used and what to do instead.
    pub fn build(self) -> Result<CohereEmbedder> {
        let refuse = |what: String| Err(Error::new(ErrorKind::Config, what));
        if self.name.trim().is_empty() {
            return refuse("the model's name is empty".to_owned());
        }
        let known = KNOWN.iter().find(|(name, _)| *name == self.name).map(|(_, dimensions)| *dimensions);
        if self.output_dimension.is_some() && self.name.contains("-v3.0") {
            return refuse(format!("{} has vectors of one size: leave with_output_dimension out", self.name));
        }
        let Some(dimensions) = self.output_dimension.or(self.dimensions).or(known) else {
            return refuse(format!(
                "how many components the vectors of {} have is not known: set them with with_dimensions",
                self.name
            ));
        };
        if dimensions == 0 {
            return refuse("a vector has at least one component".to_owned());
        }
        if self.client.base_url.trim().trim_end_matches('/').ends_with("/v2") {
            return refuse("the base URL ends with /v2: give the server's root alone".to_owned());
        }
        let client = HttpClient::new("cohere", &self.client)?;
        let label = match self.output_dimension {
            Some(components) => format!("{}@{components}", self.name),
            None => self.name.clone(),
        };
        Ok(CohereEmbedder::from_parts(Parts {
            price: self
                .price
                .or_else(|| price_for(self.vendor.as_deref().or(client.list_vendor()), &self.name)),
            client,
            model: self.name,
            label,
            api_key: self.api_key,
            dimensions,
            output_dimension: self.output_dimension,
        }))
    }
}
