//! How many tokens a prompt has for a Claude model, before the provider has counted it.

use loomflow_core::ModelRequest;
use loomflow_support_model::{CountTokens, EstimateTokens};

use crate::families::Family;

/// The most that one image costs: 2,576 by 1,456 pixels, in patches of 28, for models of high resolution.
const IMAGE_TOKENS: u64 = 4_784;
/// What the provider itself says to a model that is offered tools.
const TOOLS_PREAMBLE: u64 = 600;
/// What is said about a schema besides the schema, by the provider or by this adapter.
const SCHEMA_PREAMBLE: u64 = 300;

/// Estimates tokens as [`EstimateTokens`] does, and adds what the provider adds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClaudeTokens {
    estimate: EstimateTokens,
    /// The models after Claude 4.6 make up to 35 % more tokens of a text.
    dense: bool,
}

impl ClaudeTokens {
    pub(crate) fn of(model: &str) -> Self {
        Self { estimate: EstimateTokens::new(IMAGE_TOKENS), dense: Family::of(model).is_dense() }
    }

    fn scaled(self, tokens: u64) -> u64 {
        if self.dense { tokens.saturating_add(tokens.saturating_mul(35).div_ceil(100)) } else { tokens }
    }
}

impl CountTokens for ClaudeTokens {
    fn prompt(&self, request: &ModelRequest) -> u64 {
        let tools = if request.tools.is_empty() { 0 } else { TOOLS_PREAMBLE };
        let schema = if request.output_schema.is_none() { 0 } else { SCHEMA_PREAMBLE };
        self.scaled(self.estimate.prompt(request)).saturating_add(tools + schema)
    }

    fn output(&self, text: &str) -> u64 {
        self.scaled(self.estimate.output(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loomflow_core::{Image, Message};

    #[test]
    fn whatever_is_billed_is_counted() {
        let request = ModelRequest::new(vec![Message::user("a".repeat(3_000))], 1);
        let old = ClaudeTokens::of("claude-sonnet-4-5");
        let plain = old.prompt(&request);
        assert!(plain >= 1_000);
        assert!(ClaudeTokens::of("claude-opus-4-7").prompt(&request) >= plain * 135 / 100);
        assert_eq!(ClaudeTokens::of("claude-opus-4-7").output("abcdefgh"), 3);
        let schema = request.clone().with_output_schema(Some(std::sync::Arc::new(true.into())));
        assert!(old.prompt(&schema) >= plain + SCHEMA_PREAMBLE);
        let image = Image::from_bytes(&b"GIF89a"[..]).unwrap();
        let shown = ModelRequest::new(vec![Message::user("a".repeat(3_000)).with_images([image])], 1);
        assert_eq!(old.prompt(&shown), plain + IMAGE_TOKENS);
    }
}
