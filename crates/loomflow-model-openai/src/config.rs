//! What an [`OpenAiModel`](crate::OpenAiModel) is made of.

use std::sync::Arc;
use std::time::Duration;

use loomflow_core::{Error, ErrorKind, ModelCapabilities, Price, Result};
use loomflow_support_model::{ApiKey, ClientConfig, CountTokens, EstimateTokens, HttpClient, Timeouts};
use serde_json::{Map, Value};

use crate::encode::{EncodeOptions, MaxTokensField, ServiceTier, StructuredOutput};
use crate::model::OpenAiModel;
use crate::price::{listed, price_in};

/// Where OpenAI's own API begins.
pub const OPENAI_BASE_URL: &str = "https://api.openai.com/v1";

/// How long a model may think without a word: chat completions send nothing meanwhile, neither headers nor pieces. To give up
/// sooner would pay for the thinking, and then for that of every further attempt, and never get an answer. A connection that
/// is dead is noticed by its TCP timeouts long before.
const SILENCE: Duration = Duration::from_mins(10);

/// What an image is counted as before the provider has counted it. Above what OpenAI's models bill for a large one; an image costs
/// more only with `gpt-4o-mini`, which has a number of its own.
const IMAGE_TOKENS: u64 = 4_000;
const IMAGE_TOKENS_4O_MINI: u64 = 48_200;

/// A model's configuration. Every setting but the model's name and the key has a default.
///
/// ```
/// use loomflow_core::SecretRef;
/// use loomflow_model_openai::OpenAiConfig;
///
/// let model = OpenAiConfig::new("qwen3-32b", SecretRef::new("VLLM_KEY")?)
///     .with_base_url("http://127.0.0.1:8000/v1")
///     .with_context_window(32_768)
///     .build()?;
/// # Ok::<(), loomflow_core::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenAiConfig {
    /// Whose key the calls are made with.
    pub api_key: ApiKey,
    /// Where the server is and how long it may take.
    pub client: ClientConfig,
    /// What each call asks for.
    pub options: EncodeOptions,
    /// The name of a header that takes the key alone, such as Azure's `api-key`; `None` sends it as a bearer token.
    pub key_header: Option<&'static str>,
    /// The member that bounds a reply; `None` takes `max_completion_tokens` at OpenAI and `max_tokens` elsewhere.
    pub max_tokens_field: Option<MaxTokensField>,
    /// A label under which the provider's prompt cache finds this application's prompts; `None`, the default, sends none.
    ///
    /// What is sent is a digest of the label and the tenant, so that one tenant's prompts are never found under another's.
    pub prompt_cache_label: Option<String>,
    /// The price, instead of the table's.
    pub price: Option<Price>,
    /// The vendor in the price table; `None` takes the one whose list prices hold at the server's address, if any.
    pub vendor: Option<String>,
    /// Prompt and answer together, in tokens.
    pub context_window: Option<u64>,
    /// Counts prompts and pieces of replies; `None` estimates, leaning high.
    pub tokens: Option<Arc<dyn CountTokens>>,
    /// What one image is counted as where tokens are estimated.
    pub image_tokens: Option<u64>,
    /// Whether tokens are counted with the model's own vocabulary where no counter is given.
    #[cfg(feature = "tiktoken")]
    pub exact_tokens: bool,
    /// Whether the model reasons without showing it. `None` decides: it does when an effort is set, and when it is one of
    /// OpenAI's reasoning models by its name.
    pub hidden_reasoning: Option<bool>,
}

impl OpenAiConfig {
    loomflow_support_model::client_settings!();

    /// The model `name` at OpenAI.
    #[must_use]
    pub fn new(name: impl Into<String>, api_key: impl Into<ApiKey>) -> Self {
        Self {
            api_key: api_key.into(),
            client: ClientConfig::new(OPENAI_BASE_URL),
            options: EncodeOptions::new(name),
            key_header: None,
            max_tokens_field: None,
            prompt_cache_label: None,
            price: None,
            vendor: None,
            context_window: None,
            tokens: None,
            image_tokens: None,
            #[cfg(feature = "tiktoken")]
            exact_tokens: false,
            hidden_reasoning: None,
        }
    }

    /// Sends the key alone in a header of this name, in lower case.
    #[must_use]
    pub fn with_key_header(mut self, name: &'static str) -> Self {
        self.key_header = Some(name);
        self
    }

    /// Sets whether replies come in pieces; they do unless this says `false`.
    #[must_use]
    pub fn with_streaming(mut self, yes: bool) -> Self {
        self.options.stream = yes;
        self
    }

    /// Sets how much a reasoning model thinks, in the provider's words, such as `low`.
    #[must_use]
    pub fn with_reasoning_effort(mut self, effort: impl Into<String>) -> Self {
        self.options.reasoning_effort = Some(effort.into());
        self
    }

    /// Sets whether the model may ask for several tool calls at once.
    #[must_use]
    pub fn with_parallel_tool_calls(mut self, yes: bool) -> Self {
        self.options.parallel_tool_calls = Some(yes);
        self
    }

    /// Sets how an answer's schema is asked for.
    #[must_use]
    pub fn with_structured_output(mut self, mode: StructuredOutput) -> Self {
        self.options.structured_output = mode;
        self
    }

    /// Sets the tier calls are served, and billed, in.
    #[must_use]
    pub fn with_service_tier(mut self, tier: ServiceTier) -> Self {
        self.options.service_tier = Some(tier);
        self
    }

    /// Sets the sampling temperature.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.options.temperature = Some(temperature);
        self
    }

    /// Sets the sampling seed.
    #[must_use]
    pub fn with_seed(mut self, seed: i64) -> Self {
        self.options.seed = Some(seed);
        self
    }

    /// Adds a member to the body of every call, for what a vendor knows and this crate does not.
    #[must_use]
    pub fn with_extra(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.options.extra.insert(name.into(), value.into());
        self
    }

    /// Sets all further members of the body.
    #[must_use]
    pub fn with_extras(mut self, members: Map<String, Value>) -> Self {
        self.options.extra = members;
        self
    }

    /// Sets the member that bounds a reply.
    #[must_use]
    pub fn with_max_tokens_field(mut self, field: MaxTokensField) -> Self {
        self.max_tokens_field = Some(field);
        self
    }

    /// Sends a prompt cache key: a digest of `label` and the tenant.
    #[must_use]
    pub fn with_prompt_cache_label(mut self, label: impl Into<String>) -> Self {
        self.prompt_cache_label = Some(label.into());
        self
    }

    /// Sets the price, instead of the table's.
    #[must_use]
    pub fn with_price(mut self, price: Price) -> Self {
        self.price = Some(price);
        self
    }

    /// Sets the vendor under which the price table knows this model.
    #[must_use]
    pub fn with_vendor(mut self, vendor: impl Into<String>) -> Self {
        self.vendor = Some(vendor.into());
        self
    }

    /// Sets how many tokens prompt and answer may have together.
    #[must_use]
    pub fn with_context_window(mut self, tokens: u64) -> Self {
        self.context_window = Some(tokens);
        self
    }

    /// Counts tokens with `counter`.
    #[must_use]
    pub fn with_token_counter(mut self, counter: Arc<dyn CountTokens>) -> Self {
        self.tokens = Some(counter);
        self
    }

    /// Counts prompts and replies with the model's own vocabulary, where it is one of OpenAI's, and estimates as ever where it is not.
    ///
    /// The vocabulary is built when the model is, which takes a second or so and blocks: build models when the program starts, or
    /// on a thread that may block. See [`TiktokenTokens`](crate::TiktokenTokens).
    #[cfg(feature = "tiktoken")]
    #[must_use]
    pub fn with_exact_tokens(mut self) -> Self {
        self.exact_tokens = true;
        self
    }

    /// Counts each image as `tokens` where tokens are estimated.
    #[must_use]
    pub fn with_image_tokens(mut self, tokens: u64) -> Self {
        self.image_tokens = Some(tokens);
        self
    }

    /// Says whether the model reasons without showing it. Such a model is given ten minutes of silence, and a call of it whose
    /// usage never comes is charged all the output it could have made.
    #[must_use]
    pub fn with_hidden_reasoning(mut self, yes: bool) -> Self {
        self.hidden_reasoning = Some(yes);
        self
    }

    /// The model.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for an empty name, an unusable base URL, certificate, proxy, header or body field.
    pub fn build(self) -> Result<OpenAiModel> {
        if self.options.model.trim().is_empty() {
            return Err(Error::new(ErrorKind::Config, "the model has no name"));
        }
        self.options.check()?;
        if let Some(name) = self.key_header {
            check_header_name(name)?;
        }
        self.assemble()
    }

    pub(crate) fn assemble(mut self) -> Result<OpenAiModel> {
        let reasons = self.hidden_reasoning.unwrap_or_else(|| reasons_in_silence(&self.options));
        if reasons {
            self.client.timeouts.get_or_insert(Timeouts::default().with_headers(SILENCE).with_idle(SILENCE));
        } else if !self.options.stream {
            self.client.timeouts.get_or_insert_with(Timeouts::for_whole_replies);
        }
        let client = HttpClient::new("openai", &self.client)?;
        let is_openai = is_openai(client.base_url());
        let mut options = self.options;
        options.max_tokens = self.max_tokens_field.unwrap_or(if is_openai {
            MaxTokensField::MaxCompletionTokens
        } else {
            MaxTokensField::MaxTokens
        });
        let listed = listed(self.vendor.as_deref().or(client.list_vendor()), &options.model);
        let price = self.price.or_else(|| price_in(listed, options.service_tier));
        let image_tokens = self.image_tokens.unwrap_or(if options.model.starts_with("gpt-4o-mini") {
            IMAGE_TOKENS_4O_MINI
        } else {
            IMAGE_TOKENS
        });
        #[cfg(feature = "tiktoken")]
        let exact = self.exact_tokens.then(|| crate::tiktoken::counter(&options.model, image_tokens));
        #[cfg(not(feature = "tiktoken"))]
        let exact = None;
        let tokens = self.tokens.or(exact).unwrap_or_else(|| Arc::new(EstimateTokens::new(image_tokens)));
        let mut capabilities = ModelCapabilities::default()
            .with_structured_output(options.structured_output == StructuredOutput::JsonSchema)
            .with_hidden_reasoning(reasons);
        capabilities.context_window =
            self.context_window.or_else(|| listed.and_then(|model| model.context_window()));
        Ok(OpenAiModel {
            client,
            api_key: self.api_key,
            key_header: self.key_header,
            options,
            prompt_cache_label: self.prompt_cache_label,
            price,
            capabilities,
            tokens,
        })
    }
}

/// Whether the model generates tokens that nobody sees: when it is told how hard to think, or has a name of OpenAI's
/// reasoning models, wherever it is served. A wrong guess costs patience, and an estimate that is too high.
fn reasons_in_silence(options: &EncodeOptions) -> bool {
    let told = options.reasoning_effort.as_deref().is_some_and(|effort| effort != "none");
    let name = options.model.rsplit('/').next().unwrap_or_default();
    let digit_after = |start| name.strip_prefix(start).and_then(|rest| rest.bytes().next());
    let named = digit_after("o").is_some_and(|b| b.is_ascii_digit())
        || digit_after("gpt-").is_some_and(|b| matches!(b, b'5'..=b'9'));
    told || named && !name.contains("-chat")
}

/// Whether this is OpenAI itself, in whichever region. Its reasoning models refuse `max_tokens`.
fn is_openai(base_url: &str) -> bool {
    let host = base_url.strip_prefix("https://").and_then(|rest| rest.split(['/', ':']).next());
    host.is_some_and(|host| host == "api.openai.com" || host.ends_with(".api.openai.com"))
}

/// A header's name that can be sent.
pub(crate) fn check_header_name(name: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(Error::new(
            ErrorKind::Config,
            format!("{name:?} is not a header for the key: use a-z 0-9 -"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_plain_reply_has_the_time_to_be_generated() {
        let headers = |config: OpenAiConfig| config.build().unwrap().client.timeouts().headers;
        let config = || OpenAiConfig::new("m", ApiKey::none());
        assert_eq!(headers(config()), Timeouts::default().headers);
        assert_eq!(headers(config().with_streaming(false)), Duration::from_mins(10));
        let set = Timeouts::default().with_headers(Duration::from_secs(7));
        assert_eq!(headers(config().with_timeouts(set).with_streaming(false)), Duration::from_secs(7));
    }

    #[test]
    fn a_model_that_thinks_in_silence_is_not_paid_for_and_given_up() {
        let built = |config: OpenAiConfig| {
            let model = config.build().unwrap();
            (
                model.client.timeouts().idle >= SILENCE,
                loomflow_core::Model::capabilities(&model).hidden_reasoning,
            )
        };
        let named = |name: &str| OpenAiConfig::new(name, ApiKey::none());
        for (config, reasons) in [
            (named("o3"), true),
            (named("gpt-5.5-mini"), true),
            (named("openai/gpt-5"), true),
            (named("qwen3").with_reasoning_effort("low"), true),
            (named("qwen3").with_hidden_reasoning(true), true),
            (named("o3").with_hidden_reasoning(false), false),
            (named("gpt-4.1-mini"), false),
            (named("gpt-5-chat-latest"), false),
            (named("gpt-5").with_reasoning_effort("none").with_hidden_reasoning(false), false),
            (named("olmo-3"), false),
        ] {
            assert_eq!(built(config.clone()), (reasons, reasons), "{config:?}");
        }
        let own = Timeouts::default().with_idle(Duration::from_secs(3));
        assert!(!built(named("o3").with_timeouts(own)).0, "what is set is kept");
    }

    #[test]
    fn regions_of_openai_are_openai_and_nobody_else_is() {
        for (url, yes) in [
            (OPENAI_BASE_URL, true),
            ("https://eu.api.openai.com/v1", true),
            ("http://api.openai.com/v1", false),
            ("https://api.openai.com.evil.example/v1", false),
            ("https://evilapi.openai.com.x/v1", false),
            ("https://notapi.openai.com/v1", false),
            ("https://api.groq.com/openai/v1", false),
        ] {
            assert_eq!(is_openai(url), yes, "{url}");
        }
    }
}
