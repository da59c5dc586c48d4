//! The model against a server of bytes: what is sent, and what comes of each answer.

#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use futures_util::StreamExt as _;
use loomflow_core::danger::{admit, assume_scope, detached_context};
use loomflow_core::{
    Delta, Done, Epoch, Error, ErrorKind, Identity, Message, Model, ModelRequest, Namespace, Price, Result,
    Secret, StopReason, Usage,
};
use loomflow_model_anthropic::{AnthropicConfig, AnthropicModel, AuthStyle, CacheTtl, Effort, Thinking};
use loomflow_support_model::{ApiKey, Timeouts};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const KEY: &str = "sk-ant-test-key";
const TEXT: &str = include_str!("recorded/text.sse");

/// Answers one request with `answer`, and tells what the request was.
async fn serve(answer: String) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !is_whole(&request) {
            assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0);
        }
        socket.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap()
    });
    (url, served)
}

fn is_whole(request: &[u8]) -> bool {
    let Some((head, body)) = std::str::from_utf8(request).unwrap().split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    body.len() == length.parse::<usize>().unwrap()
}

fn answer(status: u16, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}

fn key() -> ApiKey {
    Secret::new(KEY.to_owned()).into()
}

fn builder(url: &str) -> AnthropicConfig {
    AnthropicModel::builder("claude-sonnet-4-5", key()).with_base_url(url)
}

async fn ask(model: &AnthropicModel) -> Result<Vec<Result<Delta>>> {
    let ctx = detached_context(assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO));
    let request = ModelRequest::new(vec![Message::user("hi")], 100);
    Ok(model.stream(&ctx, admit(request)).await?.collect().await)
}

fn done(deltas: &[Result<Delta>]) -> &Done {
    let Some(Ok(Delta::Done(done))) = deltas.last() else { panic!("no end: {deltas:?}") };
    done
}

async fn refused(status: u16, headers: &str, body: &str) -> Error {
    let (url, _served) = serve(answer(status, headers, body)).await;
    ask(&builder(&url).build().unwrap()).await.map(drop).unwrap_err()
}

#[tokio::test]
async fn a_streamed_call() {
    let headers = "content-type: text/event-stream; charset=utf-8\r\nrequest-id: req_01\r\n";
    let (url, served) = serve(answer(200, headers, TEXT)).await;
    let model =
        builder(&url).with_beta("one").with_beta("two").with_header("x-team", "blue").build().unwrap();
    let deltas = ask(&model).await.unwrap();
    assert_eq!(*done(&deltas), Done::new(Usage::new(25, 12), StopReason::End).with_request_id("req_01"));
    let request = served.await.unwrap();
    assert!(request.starts_with("POST /v1/messages HTTP/1.1\r\n"), "{request}");
    for line in [
        "anthropic-version: 2023-06-01",
        "anthropic-beta: one,two",
        "x-api-key: sk-ant-test-key",
        "x-team: blue",
        "content-type: application/json",
    ] {
        assert!(request.lines().any(|sent| sent == line), "{line} in {request}");
    }
    assert!(!request.contains("authorization"));
    let body: Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((&body["model"], &body["stream"]), (&"claude-sonnet-4-5".into(), &true.into()));
}

#[tokio::test]
async fn a_plain_call_with_a_bearer_token() {
    let body = r#"{"content":[{"type":"text","text":"hi"}],"stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":2}}"#;
    let (url, served) = serve(answer(200, "content-type: application/json\r\n", body)).await;
    let model = builder(&url).with_streaming(false).with_auth_style(AuthStyle::Bearer).build().unwrap();
    assert_eq!(done(&ask(&model).await.unwrap()).usage, Some(Usage::new(3, 2)));
    let request = served.await.unwrap();
    assert!(request.contains("authorization: Bearer sk-ant-test-key\r\n") && !request.contains("x-api-key"));
    assert!(request.contains("\"stream\":false"));
}

#[tokio::test]
async fn a_server_that_does_not_stream_when_asked_to_is_understood() {
    let body = r#"{"content":[{"type":"text","text":"hi"}],"stop_reason":"end_turn"}"#;
    let (url, _served) = serve(answer(200, "content-type: application/json\r\n", body)).await;
    let deltas = ask(&builder(&url).build().unwrap()).await.unwrap();
    assert_eq!(*done(&deltas), Done::without_usage(StopReason::End));
}

#[tokio::test]
async fn a_success_that_is_an_error_is_one() {
    let body =
        format!(r#"{{"type":"error","error":{{"type":"overloaded_error","message":"{KEY} is busy"}}}}"#);
    let (url, _served) = serve(answer(200, "content-type: application/json\r\n", &body)).await;
    let deltas = ask(&builder(&url).build().unwrap()).await.unwrap();
    let [Err(error)] = &deltas[..] else { panic!("{deltas:?}") };
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(!format!("{error:?}").contains(KEY), "{error:?}");
}

#[tokio::test]
async fn a_stream_that_is_cut_off_is_an_error() {
    let half = &TEXT[..TEXT.len() / 2];
    let (url, _served) = serve(answer(200, "content-type: text/event-stream\r\n", half)).await;
    let deltas = ask(&builder(&url).build().unwrap()).await.unwrap();
    assert_eq!(deltas.last().unwrap().as_ref().unwrap_err().kind(), ErrorKind::Truncated);
}

#[tokio::test]
async fn refusals_are_typed_and_say_when_to_come_back() {
    let body = |kind: &str, message: &str| {
        format!(
            r#"{{"type":"error","error":{{"type":"{kind}","message":"{message}"}},"request_id":"req_b"}}"#
        )
    };
    for (status, kind, message, expected, retryable) in [
        (400, "invalid_request_error", "prompt is too long: 9 > 8", ErrorKind::ContextTooLong, false),
        (
            400,
            "invalid_request_error",
            "input length and max_tokens exceed context limit",
            ErrorKind::ContextTooLong,
            false,
        ),
        (400, "invalid_request_error", "no", ErrorKind::BadRequest, false),
        (401, "authentication_error", "invalid x-api-key", ErrorKind::Auth, false),
        (403, "permission_error", "no", ErrorKind::Auth, false),
        (404, "not_found_error", "model: x", ErrorKind::BadRequest, false),
        (413, "request_too_large", "no", ErrorKind::ContextTooLong, false),
        (500, "api_error", "no", ErrorKind::Overloaded, true),
        (529, "overloaded_error", "Overloaded", ErrorKind::Overloaded, true),
    ] {
        let error = refused(status, "request-id: req_h\r\n", &body(kind, message)).await;
        assert_eq!((error.kind(), error.is_retryable()), (expected, retryable), "{status}: {error}");
        assert!(error.context().contains(&("request_id", "req_h".to_owned())), "{error}");
        assert_eq!(error.operation(), "anthropic.messages");
    }
    let limited = refused(429, "retry-after: 7\r\n", &body("rate_limit_error", "slow down")).await;
    assert_eq!(
        (limited.kind(), limited.retry_after()),
        (ErrorKind::RateLimited, Some(Duration::from_secs(7)))
    );
    let page = refused(502, "content-type: text/html\r\n", "<html><h1>Bad Gateway</h1></html>").await;
    assert_eq!(page.kind(), ErrorKind::Overloaded);
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let short =
        Timeouts::default().with_connect(Duration::from_millis(100)).with_headers(Duration::from_millis(100));
    let error = ask(&builder(&url).with_timeouts(short).build().unwrap()).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
}

#[tokio::test]
async fn what_cannot_be_used_is_told() {
    for (builder, names) in [
        (builder("https://api.anthropic.com/v1/"), "/v1"),
        (builder("api.anthropic.com"), "base URL"),
        (builder("http://localhost").with_effort(Effort::Low).with_temperature(7.0), "temperature"),
        (builder("http://localhost").with_header("x team", "x"), "header"),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().contains(names), "{error}");
    }
    let error = ask(&AnthropicModel::new("", key())).await.map(drop).unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Config, false));
    assert!(error.message().contains("name"), "{error}");
}

#[tokio::test]
async fn a_model_says_what_it_is() {
    let model = AnthropicModel::new("claude-sonnet-4-5", key());
    assert_eq!(model.name(), "claude-sonnet-4-5");
    assert!(model.capabilities().structured_output);
    assert!(!model.capabilities().hidden_reasoning, "this one reasons when it is asked to");
    let thinking = builder("http://localhost").with_thinking(Thinking::Budget(2_048)).build().unwrap();
    assert!(thinking.capabilities().hidden_reasoning);
    assert_eq!(model.capabilities().context_window, Some(200_000), "as the price table says");
    let listed = Price::per_token(3_000_000, 15_000_000);
    assert_eq!(model.price(), Some(listed.with_cache(300_000, 3_750_000)));
    let hour = AnthropicModel::builder("claude-sonnet-4-5", key())
        .with_prompt_caching(CacheTtl::OneHour)
        .build()
        .unwrap();
    assert_eq!(hour.price(), Some(listed.with_cache(300_000, 6_000_000)), "an hour in the cache costs more");
    let elsewhere = builder("http://localhost").build().unwrap();
    assert_eq!(elsewhere.price(), None, "another server's prices are not known");
    assert!(builder("http://localhost").with_vendor("anthropic").build().unwrap().price().is_some());
    assert_eq!(AnthropicModel::new("claude-sonnet-4-5-of-tomorrow", key()).price(), None);
    assert!(!format!("{model:?}").contains(KEY), "{model:?}");
    let price = Price::per_token(3_000_000, 15_000_000);
    let model = AnthropicModel::builder("x", key())
        .with_price(price)
        .with_context_window(200_000)
        .with_prompt_caching(CacheTtl::OneHour)
        .build()
        .unwrap();
    assert_eq!((model.price(), model.capabilities().context_window), (Some(price), Some(200_000)));
}
