//! Counting with a model's own vocabulary: never lower than what is billed.

#![cfg(all(feature = "client", feature = "tiktoken"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::{Arc, LazyLock};

use loomflow_core::{Effect, Image, Message, Model as _, ModelRequest, ToolCall, ToolSpec};
use loomflow_model_openai::{ApiKey, CountTokens as _, EstimateTokens, OpenAiConfig, TiktokenTokens};
use proptest::prelude::*;
use tiktoken_rs::CoreBPE;

/// Vocabularies of the test's own, built anew.
static FRESH: LazyLock<[(&str, CoreBPE); 2]> = LazyLock::new(|| {
    [("gpt-4.1-mini", tiktoken_rs::o200k_base().unwrap()), ("gpt-4", tiktoken_rs::cl100k_base().unwrap())]
});
static COUNTERS: LazyLock<[TiktokenTokens; 2]> =
    LazyLock::new(|| ["gpt-4.1-mini", "gpt-4"].map(|name| TiktokenTokens::for_model(name).unwrap()));

fn message(role: u8, text: &str) -> Message {
    match role {
        0 => Message::system(text),
        1 => Message::user(text),
        _ => Message::assistant(text),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Plain messages are what OpenAI documents: each text, three tokens and the role around each message, three before the reply.
    #[test]
    fn plain_messages_are_counted_exactly(
        texts in prop::collection::vec((0..3_u8, prop_oneof![".{0,80}", "[ \t\n]{0,40}", "[a-z<|>]{0,60}", "\\PC{0,60}"]), 0..8),
    ) {
        let messages: Vec<_> = texts.iter().map(|(role, text)| message(*role, text)).collect();
        let request = ModelRequest::new(messages, 1);
        for ((_, fresh), counter) in FRESH.iter().zip(&*COUNTERS) {
            let real: usize = texts.iter().map(|(_, text)| fresh.encode_ordinary(text).len() + 4).sum();
            prop_assert_eq!(counter.prompt(&request), real as u64 + 3);
        }
    }
}

#[test]
fn everything_else_counts_and_text_that_looks_special_is_text() {
    let counter = &COUNTERS[0];
    assert!(counter.text("<|endoftext|>") > 1, "nobody can shorten a prompt by naming a marker");
    let count = |messages: Vec<Message>| counter.prompt(&ModelRequest::new(messages, 1));
    let plain = count(vec![Message::user("hello")]);
    let call = ToolCall::new("call_1", "pay", r#"{"cents":5,"to":"bob"}"#);
    let called = count(vec![Message::assistant_calls("hello", vec![call])]);
    assert!(called > plain + counter.text(r#"{"cents":5,"to":"bob"}"#));
    let schema = serde_json::json!({"type": "object", "properties": {"cents": {"type": "integer"}}});
    let spec = ToolSpec::new("pay", "Pays somebody.", Effect::External, schema.clone()).unwrap();
    let request = ModelRequest::new(vec![Message::user("hello")], 1);
    let offered = request.clone().with_tools(Arc::from([Arc::new(spec)]));
    assert!(counter.prompt(&offered) > plain + counter.text(&schema.to_string()));
    let asked = request.clone().with_output_schema(Some(Arc::new(schema.clone())));
    assert!(counter.prompt(&asked) > plain + counter.text(&schema.to_string()));
    let shown = Message::user("hello").with_images([Image::from_bytes(&b"GIF89a"[..]).unwrap()]);
    assert_eq!(counter.with_image_tokens(700).prompt(&ModelRequest::new(vec![shown], 1)), plain + 700);
}

/// Texts that are made to exhaust a tokenizer are counted all the same, and no lower.
#[test]
fn a_hostile_text_is_counted() {
    for text in [
        " ".repeat(100_000),
        "a".repeat(100_000),
        "\n ".repeat(50_000),
        "é".repeat(50_000),
        "'".repeat(100_000),
    ] {
        let counted = COUNTERS[0].text(&text);
        assert!(counted > 0 && counted <= text.len() as u64, "{counted} of {}", text.len());
    }
}

#[test]
fn a_model_counts_exactly_only_when_told_to_and_unknown_names_are_estimated() {
    let request = ModelRequest::new(vec![Message::user("The quick brown fox jumps over the lazy dog.")], 1);
    let config = |name: &str| OpenAiConfig::new(name, ApiKey::none());
    let estimate = EstimateTokens::new(0).prompt(&request);
    let exact = COUNTERS[0].prompt(&request);
    assert!(exact < estimate);
    for (name, known) in [
        ("gpt-4.1-mini", true),
        ("openai/gpt-4.1-mini", true),
        ("gpt-5-nano", true),
        ("ft:gpt-4o-mini:acme::x", true),
        ("llama-4", false),
        ("", false),
    ] {
        if !name.is_empty() {
            assert_eq!(config(name).build().unwrap().count_tokens(&request), estimate, "{name}");
            let expected = if known { exact } else { estimate };
            assert_eq!(
                config(name).with_exact_tokens().build().unwrap().count_tokens(&request),
                expected,
                "{name}"
            );
        }
        assert_eq!(TiktokenTokens::for_model(name).is_some(), known, "{name}");
    }
    assert_eq!(config("gpt-4.1").with_exact_tokens().build().unwrap().count_output(" lazy dog"), 2);
}
