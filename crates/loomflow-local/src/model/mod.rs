//! In-process models: one that echoes, and a test double that follows a script.

mod echo;
mod scripted;

pub use echo::EchoModel;
pub use scripted::{ScriptStep, ScriptedModel};

use loomflow_core::ModelRequest;

/// Words as tokens: text, calls and tools, as both models here count them.
fn count_words(request: &ModelRequest) -> u64 {
    let words = |text: &str| text.split_whitespace().count() as u64;
    let messages = request.messages.iter().map(|message| {
        let calls = message.calls().iter().map(|call| 1 + words(&call.arguments)).sum::<u64>();
        words(&message.text) + calls
    });
    let tools = request.tools.iter().map(|tool| 1 + words(&tool.description));
    messages.chain(tools).sum()
}
