//! The model and the embedder against a server of bytes: what is sent, and what comes of the answers.

#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use futures_util::StreamExt as _;
use loomflow_core::danger::{admit, admit_embed, assume_scope, detached_context};
use loomflow_core::{
    Delta, Done, EmbedPurpose, Embedder, Epoch, Error, ErrorKind, Identity, Message, Model, ModelRequest,
    Namespace, Price, Result, RunContext, Secret, StopReason, Usage, UserId,
};
use loomflow_model_openai::{
    ApiKey, OpenAiConfig, OpenAiEmbedder, OpenAiModel, ServiceTier, StructuredOutput,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const KEY: &str = "sk-test-1234567890";
const STREAM: &[u8] = include_bytes!("recorded/text.sse");
const PLAIN: &[u8] = include_bytes!("recorded/text.json");

fn context(user: &str) -> RunContext {
    let identity = Identity::User(UserId::new(user).unwrap());
    detached_context(assume_scope(Namespace::default(), identity, Epoch::ZERO))
}

fn key() -> ApiKey {
    ApiKey::from(Secret::new(KEY.to_owned()))
}

/// A request as the server read it: its head and its body.
struct Seen {
    head: String,
    body: Value,
}

/// Answers the requests one after the other, each on a connection of its own.
async fn serve(answers: Vec<(u16, &'static str, Vec<u8>)>) -> (String, UnboundedReceiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let (tell, seen) = unbounded_channel();
    tokio::spawn(async move {
        for (status, media, body) in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            tell.send(read(&mut stream).await).ok();
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: {media}\r\nx-request-id: req_1\r\nconnection: close\r\n\
                 content-length: {length}\r\n\r\n"
            );
            stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
        }
    });
    (url, seen)
}

async fn read(stream: &mut TcpStream) -> Seen {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).await.unwrap();
        assert!(n > 0, "the request was cut off");
        bytes.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        if let Ok(body) = serde_json::from_str(body) {
            return Seen { head: head.to_owned(), body };
        }
    }
}

async fn reply(model: &OpenAiModel, ctx: &RunContext) -> Result<Vec<Delta>> {
    let request = ModelRequest::new(vec![Message::user("hi")], 50);
    let stream = model.stream(ctx, admit(request)).await?;
    stream.collect::<Vec<_>>().await.into_iter().collect()
}

fn text_of(deltas: &[Delta]) -> String {
    deltas
        .iter()
        .filter_map(|delta| if let Delta::Text(text) = delta { Some(&**text) } else { None })
        .collect()
}

fn expected_done() -> Done {
    Done::new(Usage::new(1_234, 17).with_cache(1_024, 0), StopReason::End).with_request_id("req_1")
}

#[tokio::test]
async fn a_call_is_streamed_unless_told_otherwise_and_says_the_same() {
    for (streaming, media, answer, accept) in [
        (true, "text/event-stream", STREAM, "text/event-stream"),
        (true, "application/json", PLAIN, "text/event-stream"),
        (false, "application/json", PLAIN, "application/json"),
        (false, "text/event-stream", STREAM, "application/json"),
    ] {
        let (url, mut seen) = serve(vec![(200, media, answer.to_vec())]).await;
        let model =
            OpenAiConfig::new("m", key()).with_base_url(url).with_streaming(streaming).build().unwrap();
        let deltas = reply(&model, &context("alice")).await.unwrap();
        assert!(text_of(&deltas).starts_with("Grüße, 日本 😀!"));
        assert_eq!(deltas.last(), Some(&Delta::Done(expected_done())));
        let Seen { head, body } = seen.recv().await.unwrap();
        assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{head}");
        for line in [format!("authorization: Bearer {KEY}"), format!("accept: {accept}")] {
            assert!(head.lines().any(|sent| sent == line), "{line} in {head}");
        }
        assert_eq!(
            (&body["model"], &body["stream"], &body["max_tokens"]),
            (&json!("m"), &json!(streaming), &json!(50))
        );
        assert!(body.get("max_completion_tokens").is_none() && body.get("prompt_cache_key").is_none());
    }
}

#[tokio::test]
async fn a_key_may_go_into_a_header_of_its_own_or_nowhere() {
    let answer = || (200, "text/event-stream", STREAM.to_vec());
    let (url, mut seen) = serve(vec![answer(), answer()]).await;
    let named = OpenAiConfig::new("m", key()).with_base_url(&url).with_key_header("api-key").build().unwrap();
    reply(&named, &context("alice")).await.unwrap();
    let head = seen.recv().await.unwrap().head;
    assert!(head.contains(&format!("api-key: {KEY}")) && !head.contains("authorization"), "{head}");
    let without = OpenAiConfig::new("m", ApiKey::none()).with_base_url(&url).build().unwrap();
    reply(&without, &context("alice")).await.unwrap();
    let head = seen.recv().await.unwrap().head;
    assert!(!head.contains(KEY) && !head.contains("authorization"), "{head}");
}

#[tokio::test]
async fn a_prompt_cache_key_is_a_tenants_own() {
    let (url, mut seen) = serve(vec![(200, "text/event-stream", STREAM.to_vec()); 3]).await;
    let config = OpenAiConfig::new("m", key()).with_base_url(url).with_prompt_cache_label("support");
    let model = config.build().unwrap();
    let mut keys = Vec::new();
    for user in ["alice", "bob", "alice"] {
        reply(&model, &context(user)).await.unwrap();
        let key = seen.recv().await.unwrap().body["prompt_cache_key"].as_str().unwrap().to_owned();
        assert!(key.len() == 32 && !key.contains(user), "{key}");
        keys.push(key);
    }
    assert!(keys[0] == keys[2] && keys[0] != keys[1], "{keys:?}");
}

#[tokio::test]
async fn refusals_of_the_server_are_typed_and_keep_the_request_id() {
    let body = json!({"error": {"message": format!("no such key {KEY}"), "code": "invalid_api_key"}});
    let (url, _seen) = serve(vec![(401, "application/json", body.to_string().into_bytes())]).await;
    let model = OpenAiConfig::new("m", key()).with_base_url(url).build().unwrap();
    let error = reply(&model, &context("alice")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth);
    for (name, value) in [("provider", "openai"), ("request_id", "req_1"), ("code", "invalid_api_key")] {
        assert!(error.context().contains(&(name, value.to_owned())), "{error}");
    }
    assert!(error.message().contains("no such key [key]"), "{error}");
}

#[test]
fn a_model_is_what_its_configuration_says() {
    let model = OpenAiModel::new("gpt-4.1-mini", key());
    assert_eq!(model.name(), "gpt-4.1-mini");
    assert!(model.capabilities().structured_output);
    let shown = format!("{model:?} {:?}", OpenAiModel::builder("m", key()));
    assert!(shown.contains("https://api.openai.com/v1") && !shown.contains(KEY), "{shown}");

    let price = Price::per_token(1, 2);
    let config = OpenAiModel::builder("m", key())
        .with_structured_output(StructuredOutput::JsonObject)
        .with_context_window(8_192)
        .with_service_tier(ServiceTier::Flex)
        .with_price(price);
    let model = config.build().unwrap();
    assert_eq!(model.price(), Some(price));
    assert!(!model.capabilities().structured_output, "the prompt has to say it");
    assert_eq!(model.capabilities().context_window, Some(8_192));

    let count = |name: &str, tokens: Option<u64>| {
        let image = loomflow_core::Image::from_bytes(&b"GIF89a"[..]).unwrap();
        let request = ModelRequest::new(vec![Message::user("").with_images([image])], 1);
        let config = OpenAiModel::builder(name, key());
        let config = if let Some(tokens) = tokens { config.with_image_tokens(tokens) } else { config };
        config.build().unwrap().count_tokens(&request)
    };
    assert!(count("gpt-4.1", None) >= 4_000 && count("gpt-4o-mini", None) >= 48_000);
    assert!(count("gpt-4o-mini", Some(10)) < 100);

    for bad in [
        OpenAiModel::builder(" ", key()),
        OpenAiModel::builder("m", key()).with_base_url("nowhere"),
        OpenAiModel::builder("m", key()).with_key_header("Bad Header"),
        OpenAiModel::builder("m", key()).with_extra("n", 3),
    ] {
        assert_eq!(bad.build().unwrap_err().kind(), ErrorKind::Config);
    }
}

fn vectors(numbers: &[f32], usage: Option<u64>) -> (u16, &'static str, Vec<u8>) {
    // In the wrong order, to be put right.
    let data: Vec<Value> = numbers
        .iter()
        .enumerate()
        .rev()
        .map(|(index, number)| json!({"object": "embedding", "index": index, "embedding": [number, 0.5]}))
        .collect();
    let mut answer = json!({"object": "list", "data": data, "model": "e"});
    if let Some(tokens) = usage {
        answer["usage"] = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    }
    (200, "application/json", answer.to_string().into_bytes())
}

async fn embed(
    answers: Vec<(u16, &'static str, Vec<u8>)>,
    texts: usize,
) -> (Result<loomflow_core::Embedded, Error>, Vec<Seen>) {
    let (url, mut seen) = serve(answers).await;
    let config =
        OpenAiEmbedder::builder("e", 2, key()).with_base_url(url).with_batch(2).with_shortening(true);
    let embedder = config.build().unwrap();
    assert_eq!((embedder.name(), embedder.dimensions()), ("e@2", 2));
    let texts = (0..texts).map(|n| Arc::from(format!("text {n}"))).collect();
    let done = embedder.embed(&context("alice"), admit_embed(texts, EmbedPurpose::Document)).await;
    let mut requests = Vec::new();
    while let Ok(request) = seen.try_recv() {
        requests.push(request);
    }
    (done, requests)
}

#[tokio::test]
async fn texts_are_embedded_in_batches_and_in_order() {
    let answers =
        vec![vectors(&[0.0, 1.0], Some(4)), vectors(&[2.0, 3.0], Some(5)), vectors(&[4.0], Some(2))];
    let (done, requests) = embed(answers, 5).await;
    let done = done.unwrap();
    let firsts: Vec<f32> = done.vectors.iter().map(|vector| vector[0]).collect();
    assert_eq!(firsts, [0.0, 1.0, 2.0, 3.0, 4.0]);
    assert_eq!(done.usage, Some(Usage::new(11, 0)));
    assert_eq!(requests.len(), 3);
    assert!(requests[0].head.starts_with("POST /v1/embeddings HTTP/1.1\r\n"));
    assert_eq!(
        requests[1].body,
        json!({"model": "e", "input": ["text 2", "text 3"], "encoding_format": "base64", "dimensions": 2})
    );
    assert_eq!(requests[2].body["input"], json!(["text 4"]));
}

#[tokio::test]
async fn usage_that_one_part_lacks_is_not_known() {
    let (done, _) = embed(vec![vectors(&[0.0, 1.0], Some(4)), vectors(&[2.0], None)], 3).await;
    assert_eq!(done.unwrap().usage, None);
}

#[tokio::test]
async fn a_later_part_that_fails_does_not_make_the_earlier_ones_free() {
    let refused = || (429, "application/json", br#"{"error":{"message":"slow down"}}"#.to_vec());
    let (first, _) = embed(vec![refused()], 3).await;
    assert_eq!(first.unwrap_err().kind(), ErrorKind::RateLimited, "nothing was done");
    let (later, _) = embed(vec![vectors(&[0.0, 1.0], Some(4)), refused()], 3).await;
    let later = later.unwrap_err();
    assert_eq!((later.kind(), later.is_retryable()), (ErrorKind::Transport, true));
    assert!(
        later.message().contains("after 2 of 3 texts") && later.message().contains("slow down"),
        "{later}"
    );
    assert!(later.context().contains(&("request_id", "req_1".to_owned())), "{later}");
}

#[tokio::test]
async fn an_answer_of_the_wrong_size_is_an_error_that_charges() {
    let (few, _) = embed(vec![vectors(&[0.0], Some(4))], 2).await;
    assert_eq!(few.unwrap_err().kind(), ErrorKind::Transport);
    let large = (200, "application/json", vec![b' '; 1 << 20]);
    let (large, _) = embed(vec![large], 2).await;
    assert!(large.unwrap_err().message().contains("larger than"));
}

#[tokio::test]
async fn a_request_keeps_below_the_providers_tokens() {
    let long = "x".repeat(600_000);
    let (url, mut seen) = serve(vec![vectors(&[0.0], Some(1)), vectors(&[1.0], Some(1))]).await;
    let embedder = OpenAiEmbedder::builder("e", 2, key()).with_base_url(url).build().unwrap();
    let texts = vec![Arc::from(long.as_str()), Arc::from(long.as_str())];
    embedder.embed(&context("alice"), admit_embed(texts, EmbedPurpose::Query)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(seen.recv().await.unwrap().body["input"].as_array().unwrap().len(), 1);
    }
    for bad in [
        OpenAiEmbedder::builder("", 2, key()),
        OpenAiEmbedder::builder("e", 0, key()),
        OpenAiEmbedder::builder("e", 2, key()).with_batch(0),
    ] {
        assert_eq!(bad.build().unwrap_err().kind(), ErrorKind::Config);
    }
}
