//! What shapes a request besides the request itself.

use std::collections::BTreeMap;

use loomflow_core::{Error, ErrorKind, Result};
use serde_json::Value;

use crate::families::Family;

/// The smallest thinking budget the API takes, in tokens.
pub(crate) const MIN_BUDGET: u64 = 1_024;

/// Members of the body that this adapter writes itself.
const OWN_MEMBERS: [&str; 11] = [
    "max_tokens",
    "messages",
    "model",
    "output_config",
    "service_tier",
    "stream",
    "system",
    "temperature",
    "thinking",
    "tool_choice",
    "tools",
];

/// Whether the model reasons before it answers.
///
/// Reasoning is counted in the output tokens of a call, so it shares `max_output_tokens` with the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Thinking {
    /// Says nothing: some models then reason, and some do not.
    #[default]
    ModelDefault,
    /// Switches it off. A model that always reasons refuses this.
    Off,
    /// At most this many tokens (1,024 or more); the models up to Claude 4.6 take it. It is left out of a call whose
    /// output is not larger than the budget, and of one that goes on after a turn without reasoning, which the API refuses.
    Budget(u64),
    /// As the model sees fit, guided by [`Effort`]; Claude 4.6 and later take it.
    Adaptive,
}

/// How much the model spends on an answer: text, calls and reasoning together.
///
/// Claude Opus 4.5 and every model from Claude 4.6 on take it as it is. For an older model that reasons within a budget it
/// stands for one, as long as [`Thinking`] is not set: 2,048, 8,192 or 16,384 tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effort {
    /// The least.
    Low,
    /// In between.
    Medium,
    /// What the provider does when nothing is said.
    High,
}

impl Effort {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    fn budget(self) -> u64 {
        match self {
            Self::Low => 2_048,
            Self::Medium => 8_192,
            Self::High => 16_384,
        }
    }
}

/// How long the provider keeps a prompt's beginning in its cache. Each use renews it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheTtl {
    /// Five minutes; writing costs a quarter more than an uncached token.
    FiveMinutes,
    /// One hour; writing costs twice an uncached token.
    OneHour,
}

impl CacheTtl {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::FiveMinutes => "5m",
            Self::OneHour => "1h",
        }
    }
}

/// Which capacity serves a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceTier {
    /// Priority capacity where the account has it.
    Auto,
    /// Standard capacity only.
    StandardOnly,
}

impl ServiceTier {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::StandardOnly => "standard_only",
        }
    }
}

/// What shapes the body of a request besides the request itself. Plain data, checked by [`Settings::check`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// The model's name on the wire.
    pub model: String,
    /// Whether the reply is streamed. On by default.
    pub stream: bool,
    /// Whether the model reasons.
    pub thinking: Thinking,
    /// How much it spends.
    pub effort: Option<Effort>,
    /// Whether the prompt's beginning is cached, and for how long. Off by default.
    pub cache: Option<CacheTtl>,
    /// Which capacity serves the call.
    pub service_tier: Option<ServiceTier>,
    /// 0.0 to 1.0. It is left out of a call that asks for reasoning, which the API would refuse.
    pub temperature: Option<f64>,
    /// Whether schemas of answers go into the API's own member for them; `None` decides by the model's name.
    pub native_schema: Option<bool>,
    /// Further members of the body.
    pub extra: BTreeMap<String, Value>,
}

impl Settings {
    /// The settings of `model`, everything else as the provider has it.
    #[must_use]
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            stream: true,
            thinking: Thinking::ModelDefault,
            effort: None,
            cache: None,
            service_tier: None,
            temperature: None,
            native_schema: None,
            extra: BTreeMap::new(),
        }
    }

    /// Whether the model may reason. What it streams of that is a summary; what it bills is all of it.
    #[cfg(feature = "client")]
    pub(crate) fn may_reason(&self) -> bool {
        match self.thinking {
            Thinking::Off => false,
            Thinking::Budget(_) | Thinking::Adaptive => true,
            // The latest models reason unasked.
            Thinking::ModelDefault => self.effort.is_some() || Family::of(&self.model).is_dense(),
        }
    }

    /// Streams the reply, or asks for it whole.
    #[must_use]
    pub fn with_stream(mut self, yes: bool) -> Self {
        self.stream = yes;
        self
    }

    /// Sets whether the model reasons.
    #[must_use]
    pub fn with_thinking(mut self, thinking: Thinking) -> Self {
        self.thinking = thinking;
        self
    }

    /// Sets how much the model spends.
    #[must_use]
    pub fn with_effort(mut self, effort: Effort) -> Self {
        self.effort = Some(effort);
        self
    }

    /// Caches the prompt's beginning.
    #[must_use]
    pub fn with_cache(mut self, ttl: Option<CacheTtl>) -> Self {
        self.cache = ttl;
        self
    }

    /// Sets which capacity serves the call.
    #[must_use]
    pub fn with_service_tier(mut self, tier: ServiceTier) -> Self {
        self.service_tier = Some(tier);
        self
    }

    /// Sets the temperature.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = Some(temperature);
        self
    }

    /// Says whether the API's own member for schemas is used.
    #[must_use]
    pub fn with_native_schema(mut self, yes: bool) -> Self {
        self.native_schema = Some(yes);
        self
    }

    /// Adds a member to the body.
    #[must_use]
    pub fn with_extra(mut self, name: impl Into<String>, value: Value) -> Self {
        self.extra.insert(name.into(), value);
        self
    }

    /// Refuses what the API is known to refuse, before anything is sent. A model of an unknown name may take everything.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming the setting and what to do instead.
    pub fn check(&self) -> Result<()> {
        let family = Family::of(&self.model);
        let refuse = |what: String| Err(Error::new(ErrorKind::Config, what));
        if self.model.trim().is_empty() {
            return refuse("the model's name is empty".to_owned());
        }
        if self.temperature.is_some_and(|t| !(0.0..=1.0).contains(&t)) {
            return refuse("the temperature must be within 0.0 and 1.0".to_owned());
        }
        if let Some(own) = OWN_MEMBERS.iter().find(|own| self.extra.contains_key(**own)) {
            return refuse(format!(
                "the extra member {own:?} is one that the adapter writes itself: use its own setting"
            ));
        }
        match self.thinking {
            Thinking::Budget(tokens) if tokens < MIN_BUDGET => {
                return refuse(format!("a thinking budget has at least {MIN_BUDGET} tokens, not {tokens}"));
            }
            Thinking::Budget(_) if !family.budget => {
                return refuse(format!("{} takes no thinking budget: use Thinking::Adaptive", self.model));
            }
            Thinking::Adaptive if !family.adaptive => {
                return refuse(format!(
                    "{} does not think adaptively: use Thinking::Budget if it thinks at all",
                    self.model
                ));
            }
            _ => {}
        }
        if self.effort.is_some() && !family.effort && !family.budget {
            return refuse(format!("{} takes no effort: leave it out", self.model));
        }
        Ok(())
    }

    /// The reasoning that is asked for, where effort stands for a budget.
    pub(crate) fn asked_thinking(&self) -> Thinking {
        match (self.thinking, self.effort) {
            (Thinking::ModelDefault, Some(effort)) if !Family::of(&self.model).effort => {
                Thinking::Budget(effort.budget())
            }
            (thinking, _) => thinking,
        }
    }

    /// The effort that is sent.
    pub(crate) fn sent_effort(&self) -> Option<Effort> {
        self.effort.filter(|_| Family::of(&self.model).effort)
    }

    pub(crate) fn takes_schemas(&self) -> bool {
        self.native_schema.unwrap_or_else(|| Family::of(&self.model).schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_refuses_is_refused_first() {
        let new = || Settings::new("claude-sonnet-4-5");
        for (settings, names) in [
            (Settings::new(" "), "name"),
            (new().with_temperature(1.5), "temperature"),
            (new().with_temperature(f64::NAN), "temperature"),
            (new().with_extra("stream", Value::Null), "stream"),
            (new().with_thinking(Thinking::Budget(1_023)), "1024"),
            (new().with_thinking(Thinking::Adaptive), "adaptively"),
            (Settings::new("claude-opus-4-7").with_thinking(Thinking::Budget(2_000)), "Adaptive"),
            (Settings::new("claude-3-5-haiku-latest").with_effort(Effort::Low), "effort"),
        ] {
            let error = settings.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains(names), "{error}");
        }
        for settings in [
            new().with_thinking(Thinking::Budget(1_024)).with_temperature(0.0),
            new().with_effort(Effort::High),
            Settings::new("claude-opus-4-6").with_thinking(Thinking::Adaptive).with_effort(Effort::Low),
            Settings::new("somebody-elses").with_thinking(Thinking::Budget(4_000)).with_effort(Effort::Low),
        ] {
            settings.check().unwrap();
        }
    }

    #[test]
    fn effort_stands_for_a_budget_where_only_budgets_are_known() {
        let old = Settings::new("claude-sonnet-4-5").with_effort(Effort::Medium);
        assert_eq!((old.asked_thinking(), old.sent_effort()), (Thinking::Budget(8_192), None));
        let set = old.with_thinking(Thinking::Budget(2_000));
        assert_eq!(set.asked_thinking(), Thinking::Budget(2_000));
        let new = Settings::new("claude-opus-4-7").with_effort(Effort::Medium);
        assert_eq!((new.asked_thinking(), new.sent_effort()), (Thinking::ModelDefault, Some(Effort::Medium)));
    }
}
