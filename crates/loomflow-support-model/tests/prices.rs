//! The embedded price table: well-known prices, what holds for every entry, and how it is overridden.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use loomflow_core::{ErrorKind, LongPrompt, Price};
use loomflow_support_model::prices::{CacheTtl, ModelPrice, PriceTable, ServiceTier, vendor_of_host};

const TIERS: [ServiceTier; 3] = [ServiceTier::Default, ServiceTier::Flex, ServiceTier::Priority];
const TTLS: [CacheTtl; 2] = [CacheTtl::FiveMinutes, CacheTtl::OneHour];

fn usual(vendor: &str, model: &str) -> Option<Price> {
    PriceTable::embedded().price(vendor, model, ServiceTier::Default, CacheTtl::FiveMinutes)
}

/// Micro-dollars per million tokens are pico-dollars per token: 0.40 dollars per million is written 400_000.
fn rates(input: u64, cached: u64, write: u64, output: u64) -> Price {
    Price::per_token(input, output).with_cache(cached, write)
}

#[test]
fn well_known_prices_are_as_published() {
    for (vendor, model, price) in [
        ("openai", "gpt-4.1-mini", rates(400_000, 100_000, 400_000, 1_600_000)),
        ("openai", "gpt-4.1-mini-2025-04-14", rates(400_000, 100_000, 400_000, 1_600_000)),
        ("openai", "gpt-4o-mini", rates(150_000, 75_000, 150_000, 600_000)),
        ("openai", "gpt-4o", rates(2_500_000, 1_250_000, 2_500_000, 10_000_000)),
        ("openai", "gpt-5", rates(1_250_000, 125_000, 1_250_000, 10_000_000)),
        ("openai", "text-embedding-3-small", rates(20_000, 20_000, 20_000, 0)),
        ("openai", "text-embedding-3-large", rates(130_000, 130_000, 130_000, 0)),
        ("azure", "gpt-4.1-mini", rates(400_000, 100_000, 400_000, 1_600_000)),
        ("anthropic", "claude-sonnet-4-5", rates(3_000_000, 300_000, 3_750_000, 15_000_000)),
        ("anthropic", "claude-opus-4-5", rates(5_000_000, 500_000, 6_250_000, 25_000_000)),
        ("anthropic", "claude-haiku-4-5", rates(1_000_000, 100_000, 1_250_000, 5_000_000)),
        ("deepseek", "deepseek-chat", rates(280_000, 28_000, 280_000, 420_000)),
        ("cohere", "command-a-03-2025", rates(2_500_000, 2_500_000, 2_500_000, 10_000_000)),
        ("cohere", "embed-v4.0", rates(120_000, 120_000, 120_000, 0)),
        ("cohere", "embed-multilingual-v3.0", rates(100_000, 100_000, 100_000, 0)),
        ("groq", "openai/gpt-oss-120b", rates(150_000, 75_000, 150_000, 600_000)),
        ("mistral", "mistral-large-latest", rates(500_000, 50_000, 500_000, 1_500_000)),
    ] {
        assert_eq!(usual(vendor, model), Some(price), "{vendor}/{model}");
    }
}

#[test]
fn writing_for_an_hour_costs_more_than_for_five_minutes() {
    let table = PriceTable::embedded();
    let sonnet = table.lookup("anthropic", "claude-sonnet-4-5").unwrap();
    let hour = sonnet.price(ServiceTier::Default, CacheTtl::OneHour).unwrap();
    assert_eq!(hour, rates(3_000_000, 300_000, 6_000_000, 15_000_000));
    assert_eq!((sonnet.context_window(), sonnet.max_output_tokens()), (Some(200_000), Some(64_000)));
    assert_eq!(sonnet.price(ServiceTier::Flex, CacheTtl::FiveMinutes), None, "not published");
    let gpt = table.price("openai", "gpt-4.1-mini", ServiceTier::Default, CacheTtl::OneHour);
    assert_eq!(
        gpt,
        usual("openai", "gpt-4.1-mini"),
        "where writing is not charged for, time does not matter"
    );
}

#[test]
fn service_tiers_and_long_prompts_have_prices_of_their_own() {
    let table = PriceTable::embedded();
    let of = |model, tier| table.price("openai", model, tier, CacheTtl::FiveMinutes);
    assert_eq!(of("gpt-4.1-mini", ServiceTier::Priority), Some(rates(700_000, 175_000, 700_000, 2_800_000)));
    assert_eq!(of("gpt-4.1-mini", ServiceTier::Flex), None);
    assert_eq!(of("gpt-5", ServiceTier::Flex), Some(rates(625_000, 62_500, 625_000, 5_000_000)));
    let long = |above, price| Some(LongPrompt::new(above, price));
    let default = of("gpt-5.5", ServiceTier::Default).unwrap();
    assert_eq!(default.long_prompt, long(272_000, rates(10_000_000, 1_000_000, 10_000_000, 45_000_000)));
    let flex = of("gpt-5.5", ServiceTier::Flex).unwrap();
    assert_eq!(flex.long_prompt, long(272_000, rates(5_000_000, 500_000, 5_000_000, 22_500_000)));
    assert_eq!(of("gpt-5.5", ServiceTier::Priority), None, "what a long prompt costs there is not published");
    let haiku = usual("anthropic", "claude-haiku-5-5").unwrap();
    assert_eq!(haiku.long_prompt, long(100_000, rates(500_000, 50_000, 625_000, 2_500_000)));
    let gemini = usual("gemini", "gemini-2.5-pro").unwrap();
    assert_eq!(gemini.long_prompt, long(200_000, rates(2_500_000, 250_000, 2_500_000, 15_000_000)));
    let qwen = usual("dashscope", "qwen-flash").unwrap();
    assert_eq!(qwen.long_prompt, long(256_000, rates(250_000, 250_000, 250_000, 2_000_000)));
}

#[test]
fn every_entry_makes_sense() {
    let mut vendors = BTreeSet::new();
    let mut entries = 0;
    for (vendor, model, entry) in PriceTable::embedded().iter() {
        let named = format!("{vendor}/{model}");
        assert!(!vendor.is_empty() && !model.is_empty() && model.trim() == model, "{named}");
        assert!(entry.price(ServiceTier::Default, CacheTtl::FiveMinutes).is_some(), "{named} has no price");
        for price in TIERS.into_iter().flat_map(|tier| TTLS.map(|ttl| entry.price(tier, ttl))).flatten() {
            sane(&named, entry.is_embedding(), &price);
            if let Some(long) = price.long_prompt {
                assert!(long.above > 0, "{named}");
                let rates = rates(long.input, long.cached_input, long.cache_write, long.output);
                sane(&named, entry.is_embedding(), &rates);
                assert!(rates.input >= price.input && rates.output >= price.output, "{named}");
            }
        }
        for tokens in [entry.context_window(), entry.max_output_tokens()].into_iter().flatten() {
            assert!((1..=100_000_000).contains(&tokens), "{named}");
        }
        vendors.insert(vendor);
        entries += 1;
    }
    assert!(entries > 1_000, "{entries}");
    for vendor in ["anthropic", "azure", "cohere", "deepseek", "gemini", "groq", "mistral", "openai", "xai"] {
        assert!(vendors.contains(vendor), "{vendor}");
    }
}

fn sane(named: &str, embedding: bool, price: &Price) {
    // A thousand dollars per million tokens is more than anything costs; a misplaced point would be beyond it.
    let paid = |rate: u64| (1..=1_000_000_000).contains(&rate);
    assert!(paid(price.input) && paid(price.cached_input) && paid(price.cache_write), "{named}: {price:?}");
    assert!(paid(price.output) || (embedding && price.output == 0), "{named}: {price:?}");
    assert!(price.cached_input <= price.input * 10 && price.cache_write <= price.input * 10, "{named}");
}

#[test]
fn the_table_says_how_old_it_is_and_where_it_is_from() {
    let table = PriceTable::embedded();
    assert!(table.as_of() >= "2026-11-12" && table.as_of().len() == 10, "{}", table.as_of());
    assert!(table.source().starts_with("litellm "), "{}", table.source());
    let licence = include_str!("../prices.LICENSE");
    assert!(licence.contains("Berri AI") && licence.contains(table.as_of()), "the notice names this release");
    let version = table.source().split([' ', ',']).nth(1).unwrap();
    assert!(licence.contains(version), "the notice names release {version}");
}

#[test]
fn what_is_not_in_the_table_is_unknown() {
    for (vendor, model) in [
        ("openai", "gpt-4.1-mini-2099-01-01"),
        ("openai", "gpt-4.1-min"),
        ("openai", "GPT-4.1-mini"),
        ("openai", "gpt-4.1-mini "),
        ("openai", ""),
        ("openai", "gpt-5-search-api"),
        ("openai", "ft:gpt-4.1-mini-2099-01-01:us::id"),
        ("openai", "ft:"),
        ("openai", "models/gpt-4.1-mini"),
        ("openai", "anthropic/claude-sonnet-4-5"),
        ("anthropic", "gpt-4.1-mini"),
        ("OpenAI", "gpt-4.1-mini"),
        ("", "gpt-4.1-mini"),
        ("my-own-server", "gpt-4.1-mini"),
    ] {
        assert!(PriceTable::embedded().lookup(vendor, model).is_none(), "{vendor}/{model}");
    }
}

#[test]
fn the_documented_other_names_are_understood() {
    let table = PriceTable::embedded();
    for ((vendor, model), (other_vendor, other_model)) in [
        (("openai", "gpt-4.1-mini"), ("openai", "openai/gpt-4.1-mini")),
        (("groq", "openai/gpt-oss-120b"), ("groq", "groq/openai/gpt-oss-120b")),
        (("gemini", "gemini-2.5-pro"), ("google", "models/gemini-2.5-pro")),
        (("gemini", "gemini-2.5-pro"), ("google", "google/gemini-2.5-pro")),
        (("azure", "gpt-4.1-mini"), ("azure_openai", "gpt-4.1-mini")),
        (("together_ai", "zai-org/GLM-4.6"), ("together", "zai-org/GLM-4.6")),
        (("fireworks_ai", "kimi-k3"), ("fireworks", "kimi-k3")),
        (("openai", "ft:gpt-4.1-mini-2025-04-14"), ("openai", "ft:gpt-4.1-mini-2025-04-14:acme:bot:abc")),
    ] {
        let known = table.lookup(vendor, model).unwrap_or_else(|| panic!("{vendor}/{model}"));
        assert_eq!(table.lookup(other_vendor, other_model), Some(known), "{other_vendor}/{other_model}");
    }
    assert_ne!(
        usual("openai", "ft:gpt-4.1-mini-2025-04-14:a:b:c"),
        usual("openai", "gpt-4.1-mini-2025-04-14")
    );
}

#[test]
fn hosts_have_the_prices_of_their_vendor_only_where_they_are_known() {
    let vendors: BTreeSet<&str> = PriceTable::embedded().iter().map(|(vendor, ..)| vendor).collect();
    for host in ["api.openai.com", "API.Anthropic.com", "api.groq.com", "generativelanguage.googleapis.com"] {
        let vendor = vendor_of_host(host).unwrap_or_else(|| panic!("{host}"));
        assert!(vendors.contains(vendor), "{host} is {vendor}, which has no prices");
    }
    for host in [
        "",
        "localhost",
        "eu.api.openai.com",
        "api.openai.com.evil.example",
        "xapi.openai.com",
        "me.openai.azure.com",
    ] {
        assert_eq!(vendor_of_host(host), None, "{host}");
    }
}

#[test]
fn the_last_word_is_the_operators() {
    let embedded = PriceTable::embedded();
    let (file, code) = (Price::per_token(1, 2), Price::per_token(3, 4));
    let own = PriceTable::from_json(
        r#"{"schema":1,"as_of":"2026-01-31","source":"our contract","models":[
            {"vendor":"openai","model":"gpt-4.1-mini","price":{"input":1,"output":2}},
            {"vendor":"google","model":"in-house","price":{"input":0,"output":0}}]}"#,
    )
    .unwrap();
    let layered = embedded.overlay(&own);
    let of = |table: &PriceTable, vendor: &str, model: &str| {
        table.price(vendor, model, ServiceTier::Default, CacheTtl::FiveMinutes)
    };
    assert_eq!(of(&layered, "openai", "gpt-4.1-mini"), Some(file));
    let tier = layered.price("openai", "gpt-4.1-mini", ServiceTier::Priority, CacheTtl::FiveMinutes);
    assert_eq!(tier, None, "an override replaces the model as a whole, so no old tier shines through");
    assert_eq!(of(&layered, "gemini", "in-house"), Some(Price::default()), "free at the operator's word");
    assert_eq!(of(&layered, "openai", "gpt-4o"), usual("openai", "gpt-4o"), "the rest stays");
    assert_eq!(
        (layered.as_of(), layered.source().contains("our contract, over litellm")),
        ("2026-01-31", true)
    );
    let last = layered.with("openai", "gpt-4.1-mini", ModelPrice::new(code));
    assert_eq!(of(&last, "openai", "openai/gpt-4.1-mini"), Some(code), "code goes over the file");
    assert_eq!(
        of(&last.overlay(&own), "openai", "gpt-4.1-mini"),
        Some(file),
        "and what is laid over last wins"
    );
    assert_eq!(of(&own.overlay(embedded), "openai", "gpt-4.1-mini"), usual("openai", "gpt-4.1-mini"));
    assert_ne!(of(embedded, "openai", "gpt-4.1-mini"), Some(code), "the embedded table is not touched");
    let alias = embedded.with("google", "new", ModelPrice::new(code));
    assert_eq!(of(&alias, "gemini", "new"), Some(code), "put in under the name it is looked up by");
}

#[test]
fn a_price_can_be_put_together_in_code() {
    let (day, hour, flex) = (Price::per_token(5, 9), Price::per_token(6, 9), Price::per_token(2, 4));
    let model = ModelPrice::new(day)
        .with_price(ServiceTier::Default, CacheTtl::OneHour, hour)
        .with_price(ServiceTier::Flex, CacheTtl::FiveMinutes, flex)
        .with_context_window(1_000)
        .with_max_output_tokens(10);
    assert_eq!(model.price(ServiceTier::Default, CacheTtl::FiveMinutes), Some(day));
    assert_eq!(model.price(ServiceTier::Default, CacheTtl::OneHour), Some(hour));
    assert_eq!(model.price(ServiceTier::Flex, CacheTtl::FiveMinutes), Some(flex));
    assert_eq!(model.price(ServiceTier::Flex, CacheTtl::OneHour), None);
    assert_eq!(model.price(ServiceTier::Priority, CacheTtl::FiveMinutes), None);
    assert_eq!((model.context_window(), model.max_output_tokens()), (Some(1_000), Some(10)));
    assert!(!model.is_embedding() && ModelPrice::new(day).for_embedding().is_embedding());
}

/// One entry of a table, with these rates.
fn file(rates: &str) -> String {
    format!(
        r#"{{"schema":1,"as_of":"2026-01-31","source":"s","models":[{{"vendor":"v","model":"m","price":{{{rates}}}}}]}}"#
    )
}

#[test]
fn a_rate_that_is_not_published_is_never_cheaper_than_what_is() {
    let prices = |rates: &str| {
        let table = PriceTable::from_json(&file(rates)).unwrap();
        TTLS.map(|ttl| table.price("v", "m", ServiceTier::Default, ttl))
    };
    assert_eq!(prices(r#""input":5,"output":9"#), [Some(rates(5, 5, 5, 9)); 2]);
    assert_eq!(
        prices(r#""input":5,"cached_input":1,"cache_write":6,"output":9"#),
        [Some(rates(5, 1, 6, 9)), None],
        "writing for an hour costs more, and nobody says how much"
    );
    assert_eq!(
        prices(r#""input":5,"cache_write":6,"cache_write_1h":10,"output":9"#),
        [Some(rates(5, 5, 6, 9)), Some(rates(5, 5, 10, 9))]
    );
    let [usual, hour] = prices(
        r#""input":5,"cache_write":8,"cache_write_1h":10,"output":9,"long_prompt":{"above":7,"input":6,"output":11}"#,
    );
    let long = LongPrompt::new(7, rates(6, 6, 8, 11));
    assert_eq!(usual, Some(rates(5, 5, 8, 9).with_long_prompt(long)));
    assert_eq!(hour, None, "long prompts have no rate for an hour");
    let [_, hour] = prices(
        r#""input":5,"cache_write":8,"cache_write_1h":10,"output":9,"long_prompt":{"above":7,"input":6,"cache_write_1h":12,"output":11}"#,
    );
    assert_eq!(hour, Some(rates(5, 5, 10, 9).with_long_prompt(LongPrompt::new(7, rates(6, 6, 12, 11)))));
    let both = prices(r#""input":5,"output":9,"long_prompt":{"above":7,"input":6,"output":11}"#);
    assert_eq!(both, [Some(rates(5, 5, 5, 9).with_long_prompt(LongPrompt::new(7, rates(6, 6, 6, 11)))); 2]);
}

#[test]
fn a_table_that_is_none_is_refused_by_name() {
    let good = file(r#""input":5,"output":9"#);
    PriceTable::from_json(&good).unwrap();
    let entry = &good[good.find(r#"{"vendor""#).unwrap()..good.len() - 2];
    for (text, says) in [
        (String::new(), "cannot be read"),
        (file(r#""input":5.5,"output":9"#), "cannot be read"),
        (file(r#""input":-5,"output":9"#), "cannot be read"),
        (file(r#""input":5"#), "missing field `output`"),
        (file(r#""input":5,"output":9,"cache_input":1"#), "unknown field `cache_input`"),
        (file(r#""input":5,"output":9,"long_prompt":{"above":0,"input":5,"output":9}"#), "above 0"),
        (good.replace("\"schema\":1", "\"schema\":2"), "schema 2"),
        (good.replace("2026-01-31", "2026-13-31"), "as_of"),
        (good.replace("2026-01-31", "January"), "as_of"),
        (good.replace("2026-01-31", "2026-01-3é"), "as_of"),
        (good.replace(r#""model":"m""#, r#""model":"""#), "empty name"),
        (good.replace(entry, &format!("{entry},{entry}")), "twice"),
    ] {
        let error = PriceTable::from_json(&text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(says), "{error}: {text}");
    }
}
