//! Everything about an [`AnthropicModel`] that can be set.

use std::sync::Arc;

use loomflow_core::{Error, ErrorKind, Price, Result};
use loomflow_support_model::prices::ModelPrice;
use loomflow_support_model::{ApiKey, ClientConfig, CountTokens, HttpClient, Timeouts};
use serde_json::Value;

use crate::model::{AnthropicModel, Parts, Unusable};
use crate::price::{listed, price_for};
use crate::settings::{CacheTtl, Effort, ServiceTier, Settings, Thinking};
use crate::tokens::ClaudeTokens;

/// The provider's name in errors.
pub(crate) const PROVIDER: &str = "anthropic";
/// Where the API is unless it is said to be elsewhere.
const BASE_URL: &str = "https://api.anthropic.com";

/// How the key travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuthStyle {
    /// In the header `x-api-key`, as Anthropic has it.
    #[default]
    XApiKey,
    /// As `authorization: Bearer`, as many gateways have it.
    Bearer,
}

/// Sets up an [`AnthropicModel`]. Made by [`AnthropicModel::builder`].
#[derive(Clone, Debug)]
#[must_use = "nothing is made before `build`"]
pub struct AnthropicConfig {
    settings: Settings,
    client: ClientConfig,
    api_key: ApiKey,
    auth: AuthStyle,
    betas: Vec<String>,
    price: Option<Price>,
    vendor: Option<String>,
    counter: Option<Arc<dyn CountTokens>>,
    context_window: Option<u64>,
}

impl AnthropicConfig {
    loomflow_support_model::client_settings!();

    /// The model `name`, with the key its calls are made with, or where that comes from.
    pub fn new(name: impl Into<String>, api_key: impl Into<ApiKey>) -> Self {
        Self {
            settings: Settings::new(name),
            client: ClientConfig::new(BASE_URL),
            api_key: api_key.into(),
            auth: AuthStyle::default(),
            betas: Vec::new(),
            price: None,
            vendor: None,
            counter: None,
            context_window: None,
        }
    }

    /// Sets how the key travels.
    pub fn with_auth_style(mut self, style: AuthStyle) -> Self {
        self.auth = style;
        self
    }

    /// Asks for a feature in beta, by its name in the header `anthropic-beta`.
    pub fn with_beta(mut self, name: impl Into<String>) -> Self {
        self.betas.push(name.into());
        self
    }

    /// Streams replies, the default, or asks for them whole.
    pub fn with_streaming(mut self, yes: bool) -> Self {
        self.settings = self.settings.with_stream(yes);
        self
    }

    /// Sets whether the model reasons before it answers.
    pub fn with_thinking(mut self, thinking: Thinking) -> Self {
        self.settings = self.settings.with_thinking(thinking);
        self
    }

    /// Sets how much the model spends on an answer.
    pub fn with_effort(mut self, effort: Effort) -> Self {
        self.settings = self.settings.with_effort(effort);
        self
    }

    /// Caches the prompt's beginning at the provider: tools, instructions and the conversation so far.
    pub fn with_prompt_caching(mut self, ttl: CacheTtl) -> Self {
        self.settings = self.settings.with_cache(Some(ttl));
        self
    }

    /// Sets which capacity serves the calls.
    pub fn with_service_tier(mut self, tier: ServiceTier) -> Self {
        self.settings = self.settings.with_service_tier(tier);
        self
    }

    /// Sets the temperature, 0.0 to 1.0. It is left out of calls that ask for reasoning, and the latest models take none.
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.settings = self.settings.with_temperature(temperature);
        self
    }

    /// Says whether schemas of answers go into the API's own member for them. Without this the model's name decides. A
    /// schema that does not go there goes into the instructions.
    pub fn with_native_structured_output(mut self, yes: bool) -> Self {
        self.settings = self.settings.with_native_schema(yes);
        self
    }

    /// Adds a member to every request's body.
    pub fn with_extra(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.settings = self.settings.with_extra(name, value.into());
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

    /// Counts tokens with `counter`. Without this they are estimated, leaning high.
    pub fn with_token_counter(mut self, counter: Arc<dyn CountTokens>) -> Self {
        self.counter = Some(counter);
        self
    }

    /// Sets how many tokens prompt and answer may have together. Without this it is what the price table says, if anything.
    pub fn with_context_window(mut self, tokens: u64) -> Self {
        self.context_window = Some(tokens);
        self
    }

    /// The model.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming what cannot be used and what to do instead.
    pub fn build(self) -> Result<AnthropicModel> {
        let client = self.client()?;
        Ok(self.on(Ok(client)))
    }

    /// The model; one whose every call fails with the reason, where [`AnthropicConfig::build`] would have failed.
    pub(crate) fn build_anyway(self) -> AnthropicModel {
        let client = self.client().map_err(|error| Unusable::because(&error));
        self.on(client)
    }

    fn client(&self) -> Result<HttpClient> {
        self.settings.check()?;
        if self.client.base_url.trim().trim_end_matches('/').ends_with("/v1") {
            return Err(Error::new(
                ErrorKind::Config,
                "the base URL ends with /v1: give the server's root alone, such as https://api.anthropic.com",
            ));
        }
        let mut config = self.client.clone();
        if !self.settings.stream {
            config.timeouts.get_or_insert_with(Timeouts::for_whole_replies);
        }
        config = config.with_header("anthropic-version", "2023-06-01");
        if !self.betas.is_empty() {
            config = config.with_header("anthropic-beta", self.betas.join(","));
        }
        HttpClient::new(PROVIDER, &config)
    }

    fn on(self, client: Result<HttpClient, Unusable>) -> AnthropicModel {
        let counter = self.counter.unwrap_or_else(|| Arc::new(ClaudeTokens::of(&self.settings.model)));
        let at_home = client.as_ref().ok().and_then(HttpClient::list_vendor);
        let listed = listed(self.vendor.as_deref().or(at_home), &self.settings.model);
        AnthropicModel::from_parts(Parts {
            price: self.price.or_else(|| price_for(listed, self.settings.cache)),
            context_window: self.context_window.or_else(|| listed.and_then(ModelPrice::context_window)),
            settings: self.settings,
            client,
            api_key: self.api_key,
            auth: self.auth,
            counter,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_plain_reply_has_the_time_to_be_generated() {
        let headers = |config: AnthropicConfig| config.client().unwrap().timeouts().headers;
        let config = || AnthropicConfig::new("m", ApiKey::none());
        assert_eq!(headers(config()), Timeouts::default().headers);
        assert_eq!(headers(config().with_streaming(false)), Duration::from_mins(10));
        let set = Timeouts::default().with_headers(Duration::from_secs(7));
        assert_eq!(headers(config().with_timeouts(set).with_streaming(false)), Duration::from_secs(7));
    }
}
