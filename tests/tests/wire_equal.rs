//! One conversation is one conversation: over either adapter, streamed or plain, awaited or watched, it gives the same result.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use loomflow::anthropic::AnthropicModel;
use loomflow::openai::OpenAiModel;
use loomflow::provider::ApiKey;
use loomflow_core::{Agent, Effect, Model, Price, RetryPolicy, RunResult, Secret, ToolOutcome, UserAgent};
use loomflow_local::{InMemoryMemory, JsonSchema, StandardPermissions};
use loomflow_tests::fixture::{FnTool, user};
use loomflow_tests::provider::{ProviderDouble, Whims, Wire};
use serde_json::{Value, json};

/// How one conversation is carried.
#[derive(Clone, Copy, Debug)]
struct Way {
    wire: Wire,
    streaming: bool,
    watched: bool,
}

fn ways() -> impl Iterator<Item = Way> {
    [Wire::OpenAi, Wire::Anthropic].into_iter().flat_map(|wire| {
        [(false, false), (false, true), (true, false), (true, true)].map(|(streaming, watched)| Way {
            wire,
            streaming,
            watched,
        })
    })
}

fn model(way: Way, url: &str) -> Arc<dyn Model> {
    let key = ApiKey::from(Secret::new("a-fixed-key-of-a-test".to_owned()));
    let price = Price::per_token(1_000_000, 5_000_000).with_cache(100_000, 1_250_000);
    match way.wire {
        Wire::OpenAi => Arc::new(
            OpenAiModel::builder("double", key)
                .with_base_url(format!("{url}/v1"))
                .with_streaming(way.streaming)
                .with_price(price)
                .build()
                .unwrap(),
        ),
        Wire::Anthropic => Arc::new(
            AnthropicModel::builder("double", key)
                .with_base_url(url)
                .with_streaming(way.streaming)
                // The name is none that the adapter knows to constrain its answers.
                .with_native_structured_output(true)
                .with_price(price)
                .build()
                .unwrap(),
        ),
    }
}

async fn ask(tenant: &UserAgent, way: Way, input: &str, schema: Option<&Value>) -> Value {
    let schema = schema.map(|schema| JsonSchema::new(schema.clone()).unwrap());
    let ended = if way.watched {
        let mut run = tenant.stream(input).session("talk");
        if let Some(schema) = schema {
            run = run.output_schema(schema);
        }
        run.await.unwrap().result().await
    } else {
        let mut run = tenant.run(input).session("talk");
        if let Some(schema) = schema {
            run = run.output_schema(schema);
        }
        run.await
    };
    match ended {
        Ok(result) => comparable(&result),
        Err(error) => json!({"error": error.kind().as_str()}),
    }
}

/// The result without what differs between two runs of anything: ids and times.
fn comparable(result: &RunResult) -> Value {
    let mut value = serde_json::to_value(result).unwrap();
    let members = value.as_object_mut().unwrap();
    for name in ["run_id", "started_at", "finished_at"] {
        members.remove(name).expect("every result has it");
    }
    value
}

async fn conversation(way: Way, seed: u64) -> Vec<Value> {
    let provider = Arc::new(ProviderDouble::new(way.wire, Whims::KIND, seed));
    let server = provider.serve().await;
    let tool = |name: &str| {
        FnTool::new(name, Effect::Read, |_, arguments| async move { ToolOutcome::ok(arguments.to_string()) })
    };
    let agent = Agent::builder("Be brief.")
        .model(model(way, &server.url()))
        .memory(InMemoryMemory::new())
        .permissions(StandardPermissions::bypass())
        .retry(RetryPolicy::none())
        .tool(tool("look.up"))
        .tool(tool("ask"))
        .build()
        .unwrap();
    let tenant = agent.for_user(user("alice"));
    let schema = json!({
        "type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"],
        "additionalProperties": false,
    });
    let mut results = Vec::new();
    for (n, schema) in [None, None, Some(&schema), Some(&schema), None].into_iter().enumerate() {
        results.push(ask(&tenant, way, &format!("question {n}"), schema).await);
    }
    results
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_gives_the_same_results() {
    let (mut parallel, mut parsed, mut cached) = (false, false, false);
    for seed in 0..20 {
        let mut first: Option<(Way, Vec<Value>)> = None;
        for way in ways() {
            let results = conversation(way, seed).await;
            match &first {
                None => first = Some((way, results)),
                Some((other, expected)) => {
                    assert_eq!(&results, expected, "seed {seed}: {way:?} against {other:?}");
                }
            }
        }
        for result in first.unwrap().1 {
            let calls = result["tool_calls"].as_array().map_or(0, Vec::len) as u64;
            parallel |= calls > result["turns"].as_u64().unwrap_or(u64::MAX);
            parsed |= result["parsed"]["answer"] == "yes indeed";
            cached |= result["usage"]["cached_input_tokens"].as_u64() > Some(0);
        }
    }
    assert!(parallel && parsed && cached, "the seeds cover parallel tools, structured output and the cache");
}
