//! The price table at the model door: a known price is charged to the pico-dollar, an unknown one is refused before
//! anything is sent.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use loomflow_core::{Agent, BudgetConfig, ErrorKind, NanoUsd, RefusalReason, Usage};
use loomflow_local::{InMemoryAuditLog, ScriptStep, ScriptedModel, StandardBudget};
use loomflow_support_model::prices::{CacheTtl, PriceTable, ServiceTier};
use loomflow_tests::fixture::{assert_one_terminal_record_per_run, user};

fn agent(model: Arc<ScriptedModel>, config: BudgetConfig) -> Agent {
    Agent::builder("x")
        .model(model)
        .budget(Arc::new(StandardBudget::new(config).unwrap()))
        .audit_log(InMemoryAuditLog::new())
        .build()
        .unwrap()
}

fn capped() -> BudgetConfig {
    BudgetConfig::new().per_user_max_cost(NanoUsd::from_dollars(100))
}

/// Rates in dollars per million tokens times a million, written down here and not taken from the table.
struct Listed {
    input: i128,
    cached: i128,
    write: i128,
    output: i128,
}

/// Nano-dollars of one call, rounded up once.
fn by_hand(listed: &Listed, usage: &Usage) -> u64 {
    let [input, cached, written, output] =
        [usage.input_tokens, usage.cached_input_tokens, usage.cache_write_tokens, usage.output_tokens]
            .map(i128::from);
    let pico = (input - cached - written) * listed.input
        + cached * listed.cached
        + written * listed.write
        + output * listed.output;
    u64::try_from(pico / 1_000 + i128::from(pico % 1_000 > 0)).unwrap()
}

#[tokio::test]
async fn a_known_price_is_charged_exactly() {
    let mini = || Listed { input: 400_000, cached: 100_000, write: 400_000, output: 1_600_000 };
    let sonnet = |write| Listed { input: 3_000_000, cached: 300_000, write, output: 15_000_000 };
    let (five, hour) = (CacheTtl::FiveMinutes, CacheTtl::OneHour);
    let (default, flex) = (ServiceTier::Default, ServiceTier::Flex);
    for (vendor, model, tier, ttl, listed, usage) in [
        ("openai", "gpt-4.1-mini", default, five, mini(), Usage::new(1_237, 89).with_cache(1_024, 0)),
        ("openai", "openai/gpt-4.1-mini", default, hour, mini(), Usage::new(7, 1)),
        (
            "anthropic",
            "claude-sonnet-4-5",
            default,
            five,
            sonnet(3_750_000),
            Usage::new(9_001, 333).with_cache(4_000, 3_001),
        ),
        (
            "anthropic",
            "claude-sonnet-4-5",
            default,
            hour,
            sonnet(6_000_000),
            Usage::new(9_001, 333).with_cache(4_000, 3_001),
        ),
        (
            "openai",
            "gpt-5",
            flex,
            five,
            Listed { input: 625_000, cached: 62_500, write: 625_000, output: 5_000_000 },
            Usage::new(3, 1).with_cache(1, 0),
        ),
        (
            "gemini",
            "gemini-2.5-pro",
            default,
            five,
            Listed { input: 1_250_000, cached: 125_000, write: 1_250_000, output: 10_000_000 },
            Usage::new(200_000, 11).with_cache(199_000, 0),
        ),
        (
            "gemini",
            "gemini-2.5-pro",
            default,
            five,
            Listed { input: 2_500_000, cached: 250_000, write: 2_500_000, output: 15_000_000 },
            Usage::new(200_001, 11).with_cache(199_000, 0),
        ),
    ] {
        let price = PriceTable::embedded().price(vendor, model, tier, ttl);
        assert!(price.is_some(), "{vendor}/{model}");
        let reply = |text: &'static str| ScriptStep::reply(text).usage(usage);
        let double = ScriptedModel::new().step(reply("one")).step(reply("two")).with_price(price);
        let tenant = agent(Arc::new(double), capped()).for_user(user("payer"));
        let expected = by_hand(&listed, &usage);
        let first = tenant.run("hello").await.unwrap();
        assert_eq!(first.usage.cost_usd, NanoUsd(expected), "{vendor}/{model}: {usage:?}");
        tenant.run("again").await.unwrap();
        let books = tenant.usage().await.unwrap();
        assert_eq!(books.used.cost_usd, NanoUsd(2 * expected), "the ledger adds up what each call cost");
        assert_one_terminal_record_per_run(&tenant).await;
    }
}

#[tokio::test]
async fn a_price_nobody_published_is_refused_before_anything_is_sent() {
    let table = PriceTable::embedded();
    for (model, tier, ttl) in [
        ("claude-of-tomorrow", ServiceTier::Default, CacheTtl::FiveMinutes),
        ("claude-sonnet-4-5-20990101", ServiceTier::Default, CacheTtl::FiveMinutes),
        ("claude-sonnet-4-5", ServiceTier::Flex, CacheTtl::FiveMinutes),
    ] {
        let price = table.price("anthropic", model, tier, ttl);
        let double = Arc::new(ScriptedModel::new().reply("free of charge").with_price(price));
        let tenant = agent(double.clone(), capped()).for_user(user("payer"));
        let error = tenant.run("hello").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BudgetExceeded, "{model}");
        let refusal = error.refusal().unwrap();
        assert_eq!((refusal.reason, refusal.cap), (RefusalReason::UnknownPrice, "per_user_max_cost_usd"));
        assert!(error.to_string().contains("set a price for it"), "{error}");
        assert!(double.requests().is_empty(), "{model} was called");
        let books = tenant.usage().await.unwrap();
        assert_eq!((books.used.total_tokens(), books.open_holds), (0, 0));
    }
}

#[tokio::test]
async fn without_a_cost_cap_an_unknown_price_stops_nobody() {
    let double = ScriptedModel::new().reply("here").with_price(None);
    let tenant =
        agent(Arc::new(double), BudgetConfig::new().per_user_max_tokens(1_000)).for_user(user("payer"));
    let done = tenant.run("hello").await.unwrap();
    assert_eq!(done.usage.cost_usd, NanoUsd::ZERO);
    assert!(done.usage.total_tokens() > 0, "tokens are counted all the same");
}
