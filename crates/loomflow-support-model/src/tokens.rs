//! How many tokens a prompt has, before anybody has counted it.

use std::fmt;

use loomflow_core::{ModelRequest, estimate_tokens};

/// Counts tokens the way a provider bills them. The count decides what is reserved before a call, and what is charged
/// for a call whose end, or whose usage, never came.
pub trait CountTokens: fmt::Debug + Send + Sync + 'static {
    /// A request's prompt. Never fewer than the provider will bill.
    fn prompt(&self, request: &ModelRequest) -> u64;

    /// A piece of a reply.
    fn output(&self, text: &str) -> u64;
}

/// Counts without a vocabulary, leaning high: three bytes of ASCII a token, all but one byte of any other character, and
/// a few for each message, call and tool.
///
/// What a call is charged is the provider's own report wherever there is one; this is for the hold before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EstimateTokens {
    /// What one image is counted as.
    pub image_tokens: u64,
}

impl EstimateTokens {
    /// Counts each image as `image_tokens`.
    #[must_use]
    pub fn new(image_tokens: u64) -> Self {
        Self { image_tokens }
    }

    /// A text alone, leaning high.
    #[must_use]
    pub fn text(text: &str) -> u64 {
        leaning_high(text)
    }
}

/// What a provider wraps around each message, call and tool.
const AROUND: u64 = 8;

impl CountTokens for EstimateTokens {
    fn prompt(&self, request: &ModelRequest) -> u64 {
        let mut tokens = AROUND;
        for message in request.messages.iter() {
            tokens += AROUND + leaning_high(&message.text);
            tokens += self.image_tokens.saturating_mul(message.images().len() as u64);
            tokens += message.provider_state.as_deref().map_or(0, leaning_high);
            for call in message.calls() {
                tokens += AROUND + leaning_high(&call.name) + leaning_high(&call.arguments);
            }
        }
        for tool in request.tools.iter() {
            let schema = leaning_high(&tool.parameters.to_string());
            tokens += AROUND + leaning_high(&tool.name) + leaning_high(&tool.description) + schema;
        }
        let schema =
            request.output_schema.as_ref().map_or(0, |schema| AROUND + leaning_high(&schema.to_string()));
        tokens.saturating_add(schema)
    }

    fn output(&self, text: &str) -> u64 {
        estimate_tokens(text)
    }
}

fn leaning_high(text: &str) -> u64 {
    let (mut ascii, mut others) = (0_u64, 0_u64);
    for character in text.chars() {
        match character.len_utf8() {
            1 => ascii += 1,
            bytes => others += bytes as u64 - 1,
        }
    }
    ascii.div_ceil(3) + others
}

#[cfg(test)]
mod tests {
    use super::*;
    use loomflow_core::Message;

    #[test]
    fn every_part_of_a_prompt_counts() {
        let count =
            |text: &str| EstimateTokens::new(1_000).prompt(&ModelRequest::new(vec![Message::user(text)], 1));
        assert_eq!(count("") + 1, count("abc"));
        assert_eq!(leaning_high("日本"), 4);
        let image = loomflow_core::Image::from_bytes(&b"GIF89a"[..]).unwrap();
        let shown = ModelRequest::new(vec![Message::user("abc").with_images([image])], 1);
        assert_eq!(EstimateTokens::new(1_000).prompt(&shown), count("abc") + 1_000);
    }
}
