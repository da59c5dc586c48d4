//! A stand-in for a language model: it answers from its prompt, by rules a reader can check.

use async_trait::async_trait;
use loomflow::{
    AdmittedCall, Delta, Done, Model, ModelRequest, ModelStream, Price, Result, Role, RunContext, StopReason,
    ToolCall, Usage,
};

/// Repeats the PIN it finds in its prompt, asks for a refund when the user asks for one, and is polite otherwise.
#[derive(Debug)]
pub(crate) struct StandInModel {
    price: Price,
}

impl StandInModel {
    pub(crate) fn new(price: Price) -> Self {
        Self { price }
    }
}

fn words(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}

/// What the stand-in says to a prompt: words, or a tool call.
enum Says {
    Words(String),
    Refund(u64),
}

fn answer(request: &ModelRequest) -> Says {
    let Some(last) = request.messages.last() else { return Says::Words("Hello.".into()) };
    if last.role == Role::Tool {
        return Says::Words(if last.text.starts_with("denied") {
            "I am sorry, that was not approved.".into()
        } else {
            format!("Done: {}.", last.text)
        });
    }
    let asked = last.text.to_lowercase();
    if asked.contains("refund") {
        let cents = asked.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or(0);
        return Says::Refund(cents);
    }
    if asked.contains("what is my pin") {
        let everything: String = request.messages.iter().map(|m| format!("{}\n", m.text)).collect();
        let told = everything.split("my pin is ").nth(1).unwrap_or_default();
        let pin: String = told.chars().take_while(char::is_ascii_digit).collect();
        return Says::Words(if pin.is_empty() {
            "I have never been told your pin.".into()
        } else {
            format!("Your pin is {pin}.")
        });
    }
    Says::Words("I will remember that.".into())
}

#[async_trait]
impl Model for StandInModel {
    fn name(&self) -> &str {
        "stand-in"
    }

    fn price(&self) -> Option<Price> {
        Some(self.price)
    }

    fn count_tokens(&self, request: &ModelRequest) -> u64 {
        request.messages.iter().map(|m| words(&m.text)).sum()
    }

    fn count_output(&self, text: &str) -> u64 {
        words(text)
    }

    async fn stream(&self, _ctx: &RunContext, call: AdmittedCall) -> Result<ModelStream> {
        let request = call.into_request();
        let input = self.count_tokens(&request);
        let (piece, output, stop) = match answer(&request) {
            Says::Words(text) => {
                let output = words(&text);
                (Delta::Text(text.into()), output, StopReason::End)
            }
            Says::Refund(cents) => {
                let arguments = format!("{{\"cents\":{cents}}}");
                (Delta::ToolCall(ToolCall::new("call_1", "refund", arguments)), 1, StopReason::ToolUse)
            }
        };
        let done = Delta::Done(Done::new(Usage::new(input, output), stop));
        Ok(Box::pin(futures_util::stream::iter([Ok(piece), Ok(done)])))
    }
}
