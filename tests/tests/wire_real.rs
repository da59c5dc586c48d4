//! The adapters against a server that somebody else wrote: the service `models`, which answers from `fixtures/models`.
//!
//! Each conversation is held four times, by each provider's wire, streamed and not, through a whole agent with ledger and
//! audit log. What the run ends with must not tell which wire it was.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::danger::{admit_embed, assume_scope, detached_context};
use loomflow_core::{
    Action, Agent, BudgetConfig, Effect, EmbedPurpose, Embedder, Epoch, Error, ErrorKind, EventKind,
    Identity, Image, Model, Namespace, RetryPolicy, RunResult, RunStatus, Secret, ToolOutcome, Usage,
    UserAgent,
};
use loomflow_local::{InMemoryAuditLog, InMemoryMemory, JsonSchema, StandardBudget};
use loomflow_model_anthropic::AnthropicModel;
use loomflow_model_cohere::CohereEmbedder;
use loomflow_model_openai::{OpenAiEmbedder, OpenAiEmbedderConfig, OpenAiModel};
use loomflow_support_model::{ApiKey, ClientConfig, Timeouts};
use loomflow_tests::fixture::{FnTool, assert_one_terminal_record_per_run, entries, user};
use loomflow_tests::services;
use serde_json::{Value, json};

const KEY: &str = "sk-test-of-the-wire";
const TEXT: &str = "Oslo is the capital of Norway: blåbær, 日本, done.";
/// What the fixtures say each answer used.
const ONE_CALL: (u64, u64) = (40, 9);

fn key() -> ApiKey {
    Secret::new(KEY.to_owned()).into()
}

/// One provider's wire, streamed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wire {
    anthropic: bool,
    streamed: bool,
}

const WIRES: [Wire; 4] = [
    Wire { anthropic: false, streamed: false },
    Wire { anthropic: false, streamed: true },
    Wire { anthropic: true, streamed: false },
    Wire { anthropic: true, streamed: true },
];

impl Wire {
    /// The model, with limits short enough for a test that waits for them to end. The header makes the server count this
    /// model's calls by themselves.
    fn model(self, timeouts: Timeouts) -> Arc<dyn Model> {
        let (url, mine) =
            (services::url("models"), format!("{:x}", RandomState::new().build_hasher().finish()));
        if self.anthropic {
            let model = AnthropicModel::builder("claude-sonnet-4-5", key()).with_base_url(url);
            let model = model.with_timeouts(timeouts).with_header("x-test-id", mine);
            Arc::new(model.with_streaming(self.streamed).build().unwrap())
        } else {
            let client =
                ClientConfig::new(format!("{url}/v1")).with_timeouts(timeouts).with_header("x-test-id", mine);
            let model = OpenAiModel::builder("gpt-4.1-mini", key()).with_client(client);
            Arc::new(model.with_streaming(self.streamed).build().unwrap())
        }
    }

    /// A user of an agent with a ledger, an audit log and a tool, whose calls are not repeated.
    fn tenant(self) -> UserAgent {
        self.tenant_with(Timeouts::default(), RetryPolicy::none())
    }

    fn tenant_with(self, timeouts: Timeouts, retry: RetryPolicy) -> UserAgent {
        let schema = json!({
            "type": "object",
            "properties": {"city": {"type": "string"}, "note": {"type": "string"}},
            "required": ["city"],
        });
        let weather = FnTool::taking(schema, "get_weather", Effect::Read, |_ctx, arguments| async move {
            ToolOutcome::ok(format!("4 degrees in {}", arguments["city"].as_str().unwrap_or("nowhere")))
        });
        let budget = BudgetConfig::new().per_user_max_tokens(1_000_000);
        let agent = Agent::builder("Answer briefly.")
            .model(self.model(timeouts))
            .memory(InMemoryMemory::new())
            .budget(StandardBudget::new(budget).unwrap())
            .audit_log(InMemoryAuditLog::new())
            .retry(retry)
            .max_output_tokens(500)
            .tool(weather)
            .build()
            .unwrap();
        agent.for_user(user("alice"))
    }
}

/// What must be the same whichever wire it was.
fn essence(result: &RunResult) -> Value {
    json!({
        "status": result.status.as_str(),
        "reason": result.reason,
        "output": result.output,
        "parsed": result.parsed,
        "turns": result.turns,
        "usage": serde_json::to_value(result.usage).unwrap(),
        "tools": result.tool_calls.iter().map(|call| json!([call.id, call.name, format!("{:?}", call.status)])).collect::<Vec<_>>(),
        "degraded": result.degraded,
    })
}

/// The ledger has what the run used, nothing is held, and the audit log has its one end.
async fn assert_settled(tenant: &UserAgent, used: Usage, estimated: bool) {
    let usage = tenant.usage().await.unwrap();
    assert_eq!((usage.used, usage.open_holds, usage.held_tokens), (used, 0, 0));
    assert_eq!(usage.estimated_tokens, if estimated { used.total_tokens() } else { 0 });
    assert_one_terminal_record_per_run(tenant).await;
    let entries = entries(tenant).await;
    for call in entries.iter().filter(|entry| entry.event.action == Action::ModelCall) {
        let payload = call.event.payload.get();
        assert_eq!(payload.contains("\"estimated\":true"), estimated, "{payload}");
        assert!(!payload.contains(KEY), "{payload}");
    }
}

/// Holds a conversation on every wire and returns what all of them ended with.
async fn on_every_wire(input: &str, change: impl Fn(loomflow_core::Run) -> loomflow_core::Run) -> Value {
    let mut first: Option<Value> = None;
    for wire in WIRES {
        let tenant = wire.tenant();
        let result = change(tenant.run(input)).await.unwrap_or_else(|error| panic!("{wire:?}: {error:?}"));
        assert_settled(&tenant, result.usage, false).await;
        let essence = essence(&result);
        let expected = first.get_or_insert_with(|| essence.clone());
        assert_eq!(essence, *expected, "{wire:?} differs from {:?}", WIRES[0]);
    }
    first.unwrap()
}

fn usage_of(calls: u64) -> Value {
    serde_json::to_value(Usage::new(calls * ONE_CALL.0, calls * ONE_CALL.1)).unwrap()
}

#[tokio::test]
async fn text() {
    let result = on_every_wire("wire: the capital", |run| run).await;
    assert_eq!(result["output"], TEXT);
    assert_eq!((&result["status"], &result["usage"]), (&json!("completed"), &usage_of(1)));
}

#[tokio::test]
async fn text_arrives_in_pieces() {
    for wire in WIRES.into_iter().filter(|wire| wire.streamed) {
        let mut events = wire.tenant().stream("wire: the capital").await.unwrap();
        let (mut pieces, mut text) = (0, String::new());
        while let Some(event) = events.next().await {
            if let EventKind::TextDelta { text: piece } = event.kind {
                pieces += 1;
                text.push_str(&piece);
            }
        }
        assert_eq!(text, TEXT, "{wire:?}");
        assert!(pieces > 1, "{wire:?}: {pieces} piece");
    }
}

#[tokio::test]
async fn a_tool_and_back() {
    let result = on_every_wire("wire: one tool", |run| run).await;
    assert_eq!(result["output"], "It is 4 degrees.");
    assert_eq!(result["tools"], json!([["call_oslo", "get_weather", "Ok"]]));
    assert_eq!((&result["turns"], &result["usage"]), (&json!(2), &usage_of(2)));
}

#[tokio::test]
async fn two_tools_at_once() {
    let result = on_every_wire("wire: two tools", |run| run).await;
    assert_eq!(result["output"], "4 degrees in both.");
    assert_eq!(
        result["tools"],
        json!([["call_oslo", "get_weather", "Ok"], ["call_bergen", "get_weather", "Ok"]])
    );
}

/// With an image the text is a part among others; the server finds it.
#[tokio::test]
async fn an_image_and_a_text() {
    let image = Image::from_bytes(&b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"[..]).unwrap();
    let result = on_every_wire("wire: the capital", |run| run.image(image.clone())).await;
    assert_eq!(result["output"], TEXT);
}

#[tokio::test]
async fn structured_output() {
    let schema = || {
        JsonSchema::new(json!({
            "type": "object",
            "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
            "required": ["city", "degrees"],
            "additionalProperties": false,
        }))
        .unwrap()
    };
    let result = on_every_wire("wire: as JSON", |run| run.output_schema(schema())).await;
    assert_eq!(result["parsed"], json!({"city": "Oslo", "degrees": 4}));
    assert_eq!(result["turns"], 1);
}

#[tokio::test]
async fn an_answer_that_the_limit_cut_short_is_one() {
    let result = on_every_wire("wire: cut short by the limit", |run| run).await;
    assert_eq!(result["output"], "Oslo is");
    assert_eq!(result["usage"], usage_of(1));
}

/// This server counts nothing on Anthropic's wire unless a fixture does. An answer that was free must not be believed.
#[tokio::test]
async fn an_answer_that_claims_to_have_used_nothing_is_estimated() {
    for wire in WIRES.into_iter().filter(|wire| wire.anthropic) {
        let tenant = wire.tenant();
        let result = tenant.run("wire: without usage").await.unwrap();
        assert_eq!(&*result.output, TEXT);
        assert!(
            result.usage.input_tokens > 0 && result.usage.output_tokens > 0,
            "{wire:?}: {:?}",
            result.usage
        );
        assert_settled(&tenant, result.usage, true).await;
    }
}

/// Runs into a fault on every wire. A call is charged, by estimate, exactly when it may have been worked on.
async fn fails(input: &str, timeouts: Timeouts, charged: bool, check: impl Fn(Wire, &Error)) {
    for wire in WIRES {
        let tenant = wire.tenant_with(timeouts, RetryPolicy::none());
        let error = tenant.run(input).await.unwrap_err();
        check(wire, &error);
        assert!(!format!("{error:?}").contains(KEY), "{wire:?}: {error:?}");
        let used = tenant.usage().await.unwrap().used;
        assert_eq!(used.total_tokens() > 0, charged, "{wire:?} ends with {error:?} and is charged {used:?}");
        assert_settled(&tenant, used, charged).await;
    }
}

fn quick() -> Timeouts {
    let limit = Duration::from_millis(400);
    Timeouts::default().with_connect(limit).with_headers(limit).with_idle(limit)
}

#[tokio::test]
async fn a_refusal_for_the_rate_says_when_to_come_back() {
    fails("wire: too many requests", Timeouts::default(), false, |wire, error| {
        let told = (error.kind(), error.retry_after(), error.is_retryable());
        assert_eq!(told, (ErrorKind::RateLimited, Some(Duration::from_secs(7)), true), "{wire:?}");
    })
    .await;
}

#[tokio::test]
async fn a_call_that_was_refused_once_is_made_again() {
    for wire in WIRES {
        let retry = RetryPolicy::new(2, Duration::from_millis(1), Duration::from_secs(30));
        let tenant = wire.tenant_with(Timeouts::default(), retry);
        let result =
            tenant.run("wire: busy once").await.unwrap_or_else(|error| panic!("{wire:?}: {error:?}"));
        assert_eq!((&*result.output, result.status), ("Now.", RunStatus::Completed), "{wire:?}");
        assert_settled(&tenant, Usage::new(ONE_CALL.0, ONE_CALL.1), false).await;
    }
}

#[tokio::test]
async fn a_key_that_is_not_accepted() {
    fails("wire: bad key", Timeouts::default(), false, |wire, error| {
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Auth, false), "{wire:?}");
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_is_cut_off_is_an_error_and_is_charged() {
    for wire in WIRES.into_iter().filter(|wire| wire.streamed) {
        let tenant = wire.tenant();
        let error = tenant.run("wire: cut off").await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Truncated | ErrorKind::Transport), "{wire:?}: {error:?}");
        let used = tenant.usage().await.unwrap().used;
        assert!(used.input_tokens > 0, "{wire:?}: {used:?}");
        assert_settled(&tenant, used, true).await;
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_without_an_answer() {
    fails("wire: hangs up", Timeouts::default(), true, |wire, error| {
        assert_eq!(error.kind(), ErrorKind::Transport, "{wire:?}: {error:?}");
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_not_json() {
    fails("wire: not JSON", Timeouts::default(), true, |wire, error| {
        assert_eq!(
            (error.kind(), error.is_retryable()),
            (ErrorKind::Transport, false),
            "{wire:?}: {error:?}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_silent_is_given_up() {
    fails("wire: silent", quick(), true, |wire, error| {
        assert_eq!(error.kind(), ErrorKind::Timeout, "{wire:?}: {error:?}");
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_stalls_is_given_up() {
    for wire in WIRES.into_iter().filter(|wire| wire.streamed) {
        let tenant = wire.tenant_with(quick(), RetryPolicy::none());
        let error = tenant.run("wire: stalls").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{wire:?}: {error:?}");
        let used = tenant.usage().await.unwrap().used;
        assert!(used.input_tokens > 0, "{wire:?}: {used:?}");
        assert_settled(&tenant, used, true).await;
    }
}

/// What the fixtures do not know is an error of the server's, and not an empty answer.
#[tokio::test]
async fn an_unknown_request_fails() {
    fails("something else", Timeouts::default(), false, |wire, error| {
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{wire:?}: {error:?}");
    })
    .await;
}

/// Makes the server compute a vector from each text instead of looking for a fixture.
fn computing(base: &str) -> ClientConfig {
    ClientConfig::new(services::url("models") + base).with_header("x-aimock-strict", "false")
}

fn openai_embedder(dimensions: usize) -> OpenAiEmbedder {
    let config = OpenAiEmbedderConfig::new("text-embedding-3-small", dimensions, key());
    config.with_client(computing("/v1")).with_shortening(true).with_batch(2).build().unwrap()
}

#[tokio::test]
async fn vectors_come_back_in_the_order_of_their_texts() {
    let embedder = openai_embedder(48);
    let ctx = detached_context(assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO));
    let texts = ["one", "two", "three", "four", "five"].map(Arc::<str>::from);
    let embed = async |texts: &[Arc<str>]| {
        embedder.embed(&ctx, admit_embed(texts.to_vec(), EmbedPurpose::Document)).await.unwrap()
    };
    let all = embed(&texts).await;
    assert_eq!(all.vectors.len(), texts.len());
    for (text, vector) in texts.iter().zip(&all.vectors) {
        assert_eq!(vector.len(), 48);
        assert_eq!(embed(std::slice::from_ref(text)).await.vectors[0], *vector, "{text}");
    }
    assert_ne!(all.vectors[0], all.vectors[1]);
    assert_eq!(all.usage, None, "a server that counts nothing is not believed");
}

#[tokio::test]
async fn coheres_vectors() {
    let embedder = CohereEmbedder::builder("embed-v4.0", key())
        .with_base_url(services::url("models"))
        .with_output_dimension(4)
        .build()
        .unwrap();
    let ctx = detached_context(assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO));
    let texts = ["wire: vector", "wire: vector of another text"].map(Arc::<str>::from);
    let done = embedder.embed(&ctx, admit_embed(texts.to_vec(), EmbedPurpose::Query)).await.unwrap();
    assert_eq!(done.vectors.len(), 2);
    assert_eq!(*done.vectors[0], [0.5, -0.5, 0.25, 1.0]);
}

#[tokio::test]
async fn an_agent_that_remembers_by_vectors() {
    let wire = WIRES[0];
    let agent = Agent::builder("Answer briefly.")
        .model(wire.model(Timeouts::default()))
        .embedder(openai_embedder(48))
        .memory(InMemoryMemory::new())
        .budget(StandardBudget::new(BudgetConfig::new().per_user_max_tokens(1_000_000)).unwrap())
        .audit_log(InMemoryAuditLog::new())
        .retry(RetryPolicy::none())
        .build()
        .unwrap();
    let tenant = agent.for_user(user("alice"));
    let result = tenant.run("wire: the capital").await.unwrap();
    assert_eq!((&*result.output, result.degraded.len()), (TEXT, 0));
    let usage = tenant.usage().await.unwrap();
    assert!(usage.used.input_tokens > ONE_CALL.0, "the vectors are charged as well: {usage:?}");
    assert_eq!((usage.open_holds, usage.used), (0, result.usage));
}
