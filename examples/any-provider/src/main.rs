//! One agent with one tool on any OpenAI- or Anthropic-compatible endpoint, given by environment variables.
//!
//! `cargo run -p any-provider -- "What is the weather in Oslo?"` says what to set.

#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example that shows something has to print it"
)]
#![allow(clippy::disallowed_methods, reason = "an application reads its environment")]

mod endpoint;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use loomflow::Model;
use loomflow::prelude::*;

/// Tells the weather of a city.
#[tool(effect = read)]
async fn get_weather(
    /// The city's name.
    city: String,
) -> String {
    format!("It is 11 degrees and raining in {city}.")
}

#[tokio::main]
async fn main() -> ExitCode {
    let model = match endpoint::model() {
        Ok(Some(model)) => model,
        Ok(None) => {
            eprintln!("{}", endpoint::HELP);
            return ExitCode::from(2);
        }
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let words: Vec<String> = std::env::args().skip(1).collect();
    let prompt = if words.is_empty() { "What is the weather in Oslo?".to_owned() } else { words.join(" ") };
    match converse(model, &prompt).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn converse(model: Arc<dyn Model>, prompt: &str) -> Result<()> {
    let is_priced = model.price().is_some();
    let agent = Agent::builder("You are a helpful assistant. Answer in one sentence.")
        .model(model)
        .memory(InMemoryMemory::new())
        .budget(StandardBudget::new(BudgetConfig::new().per_user_max_tokens(100_000).window(Window::Day))?)
        .secrets(EnvSecrets::new())
        .redaction(PatternScrub::new())
        .tool(get_weather)
        .build()?;
    let you = agent.for_user(UserId::new("you")?);
    println!("you: {prompt}");
    print!("it:  ");
    drop(std::io::stdout().flush());
    let mut events = you.stream(prompt).session("example").await?;
    while let Some(event) = events.next().await {
        match event.kind {
            EventKind::TextDelta { text } => {
                print!("{text}");
                drop(std::io::stdout().flush());
            }
            EventKind::ToolCall { name, .. } => print!("[calls {name}] "),
            _ => {}
        }
    }
    let result = events.result().await?;
    let why = result.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    println!("\n\n{:?}{why}; model calls: {}.", result.status, result.turns);
    let usage = result.usage;
    let cost = if is_priced { format!("{} USD", usage.cost_usd) } else { "price not known".to_owned() };
    println!(
        "{} tokens in ({} from the provider's cache), {} out, {cost}.",
        usage.input_tokens, usage.cached_input_tokens, usage.output_tokens
    );
    Ok(())
}
