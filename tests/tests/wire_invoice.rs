//! Ledger = invoice, to the token and the nano-dollar, over random conversations on real connections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use loomflow::anthropic::AnthropicModel;
use loomflow::openai::OpenAiModel;
use loomflow::provider::{ApiKey, CountTokens};
use loomflow_conformance::doubles::TenantSecrets;
use loomflow_core::{
    Agent, BudgetConfig, Effect, EventKind, Identity, Model, ModelRequest, Namespace, NanoUsd, Owner, Price,
    RetryPolicy, SecretRef, ToolOutcome, UserAgent, Window,
};
use loomflow_local::{InMemoryAuditLog, InMemoryMemory, StandardBudget, StandardPermissions};
use loomflow_tests::fixture::{FnTool, assert_one_terminal_record_per_run, user};
use loomflow_tests::provider::{ProviderDouble, RATES, Whims, Wire};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Conversations on each wire, streamed and plain.
const CONVERSATIONS: usize = 250;
const AT_ONCE: usize = 16;
const KEY: &str = "PROVIDER_KEY";

/// The provider's tokenizer, as an operator would plug it in. It is not the double's: that one reads request bytes.
#[derive(Debug)]
struct CountWords;

impl CountTokens for CountWords {
    fn prompt(&self, request: &ModelRequest) -> u64 {
        let spaced = |text: &str| text.split_ascii_whitespace().count() as u64;
        let mut total = 0;
        for message in request.messages.iter() {
            total += spaced(&message.text);
            for call in message.calls() {
                // The double's arguments have one member, whose text follows the first colon.
                total += call.arguments.split_once(':').map_or(0, |(_, text)| spaced(text));
            }
        }
        total
    }

    fn output(&self, text: &str) -> u64 {
        text.split_ascii_whitespace().count() as u64
    }
}

fn price() -> Price {
    let [full, cached, generated] = RATES;
    Price::per_token(full, generated).with_cache(cached, full)
}

fn key() -> ApiKey {
    ApiKey::from(SecretRef::new(KEY).unwrap())
}

fn model(wire: Wire, url: &str, streaming: bool) -> Arc<dyn Model> {
    match wire {
        Wire::OpenAi => Arc::new(
            OpenAiModel::builder("double", key())
                .with_base_url(format!("{url}/v1"))
                .with_streaming(streaming)
                .with_price(price())
                .with_token_counter(Arc::new(CountWords))
                .build()
                .unwrap(),
        ),
        Wire::Anthropic => Arc::new(
            AnthropicModel::builder("double", key())
                .with_base_url(url)
                .with_streaming(streaming)
                .with_price(price())
                .with_token_counter(Arc::new(CountWords))
                .build()
                .unwrap(),
        ),
    }
}

struct World {
    agent: Agent,
    provider: Arc<ProviderDouble>,
    streaming: bool,
}

async fn conversations(wire: Wire, streaming: bool, seed: u64) {
    let whims = Whims { refuses: 10, cuts: 15, silent: 25, asks: 45 };
    let provider = Arc::new(ProviderDouble::new(wire, whims, seed));
    let server = provider.serve().await;
    let secrets = Arc::new(TenantSecrets::new());
    for n in 0..CONVERSATIONS {
        let owner = Owner::new(Namespace::default(), Identity::User(user(&format!("user {n}"))));
        secrets.set(&owner, &SecretRef::new(KEY).unwrap(), format!("key-of-user-{n}-{seed}"));
    }
    let tool = |name: &str| {
        FnTool::new(name, Effect::Read, |_, arguments| async move {
            ToolOutcome::ok(format!("found {}", arguments["q"].as_str().unwrap_or_default()))
        })
    };
    let budget = BudgetConfig::new().per_user_max_cost(NanoUsd::from_dollars(1)).window(Window::Day);
    let agent = Agent::builder("Five words of plain instruction")
        .model(model(wire, &server.url(), streaming))
        .memory(InMemoryMemory::new())
        .budget(Arc::new(StandardBudget::new(budget).unwrap()))
        .permissions(StandardPermissions::bypass())
        .audit_log(InMemoryAuditLog::new())
        .secrets(secrets)
        .retry(RetryPolicy::new(3, Duration::from_millis(1), Duration::from_millis(5)))
        .tool(tool("look.up"))
        .tool(tool("ask"))
        .max_turns(6)
        .max_output_tokens(64)
        .build()
        .unwrap();
    let world = World { agent, provider, streaming };
    let luck = StdRng::seed_from_u64(seed ^ 0xfeed);
    let seeds: Vec<u64> = {
        let mut luck = luck;
        (0..CONVERSATIONS).map(|_| luck.random()).collect()
    };
    let talks = seeds.into_iter().enumerate().map(|(n, seed)| talk(&world, n, seed));
    stream::iter(talks).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    world.agent.shutdown().await.unwrap();
    let mut billed = 0;
    for n in 0..CONVERSATIONS {
        let tenant = world.agent.for_user(user(&format!("user {n}")));
        let (usage, bill) = (
            tenant.usage().await.unwrap(),
            world.provider.books().account(&format!("key-of-user-{n}-{seed}")),
        );
        let ledger = (usage.used.input_tokens, usage.used.output_tokens, usage.used.cost_usd.0);
        assert_eq!(
            ledger,
            (bill.input, bill.output, bill.nano),
            "user {n} on {wire:?}, streaming {streaming}"
        );
        assert_eq!(usage.open_holds, 0);
        assert_one_terminal_record_per_run(&tenant).await;
        billed += bill.calls;
    }
    assert_eq!(world.provider.books().customers(), CONVERSATIONS, "every tenant sent a key of its own");
    assert!(billed > 2 * CONVERSATIONS as u64, "{billed} calls were billed");
}

/// One to three questions; some callers go away in the middle of an answer.
async fn talk(world: &World, n: usize, seed: u64) {
    let tenant = world.agent.for_user(user(&format!("user {n}")));
    let mut luck = StdRng::seed_from_u64(seed);
    for question in 0..luck.random_range(1..=3) {
        if world.streaming && luck.random_range(0..100) < 15 {
            leave_after(&tenant, luck.random_range(1..=5)).await;
        } else {
            // However it ends: what was used is compared when all are through.
            drop(tenant.run(format!("question {question} é of user {n}")).session("talk").await);
        }
    }
}

/// Reads so many words of an answer that never ends, and goes away.
async fn leave_after(tenant: &UserAgent, words: usize) {
    let mut events = tenant.stream(format!("hang:{words} please")).session("talk").await.unwrap();
    let mut heard = 0;
    while heard < words {
        match events.next().await.expect("it goes on").kind {
            EventKind::TextDelta { text } => heard += text.split_whitespace().count(),
            kind => assert!(!kind.name().ends_with("failed"), "{kind:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_is_the_invoice_on_openais_wire_streamed() {
    conversations(Wire::OpenAi, true, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_is_the_invoice_on_openais_wire_plain() {
    conversations(Wire::OpenAi, false, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_is_the_invoice_on_anthropics_wire_streamed() {
    conversations(Wire::Anthropic, true, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_is_the_invoice_on_anthropics_wire_plain() {
    conversations(Wire::Anthropic, false, 4).await;
}
