//! The client against a server of bytes: what is sent, how failures are told apart, and what the bounds are.

use std::time::Duration;

use crate::common::{KEY, Step, UntilEnd, answer, chunk, chunked, context, post, read_error, send, serve};
use futures_util::StreamExt as _;
use loomflow_core::{Delta, Done, Error, ErrorKind, Result, StopReason};
use loomflow_support_model::{Asked, ClientConfig, HttpClient, ReadError, Timeouts, reply_stream};

const READ: ReadError = read_error;

fn short() -> Timeouts {
    let limit = Duration::from_millis(300);
    Timeouts::default().with_connect(limit).with_headers(limit).with_idle(limit)
}

fn client(url: &str) -> HttpClient {
    HttpClient::new("test", &ClientConfig::new(url).with_timeouts(short())).unwrap()
}

async fn call(script: Vec<Step>) -> Result<Vec<Result<Delta>>> {
    let (url, _requests) = serve(script).await;
    let response = client(&url).post(&context(), post()).await?.success(READ).await?;
    let (streamed, plain) = (UntilEnd::named("streamed"), UntilEnd::named("plain"));
    Ok(reply_stream(response, Asked::Streamed, streamed, plain).await?.collect().await)
}

async fn refused(status: u16, headers: &str, body: &str) -> Error {
    let error = call(vec![send(answer(status, headers, body))]).await.map(drop).unwrap_err();
    assert!(error.context().contains(&("http_status", status.to_string())), "{error}");
    assert!(error.context().contains(&("provider", "test".to_owned())), "{error}");
    error
}

fn text_of(deltas: &[Result<Delta>]) -> String {
    deltas
        .iter()
        .filter_map(|delta| if let Ok(Delta::Text(text)) = delta { Some(&**text) } else { None })
        .collect()
}

fn done_of(deltas: &[Result<Delta>]) -> &Done {
    let Some(Ok(Delta::Done(done))) = deltas.last() else { panic!("no end: {deltas:?}") };
    done
}

#[tokio::test]
async fn a_call_carries_its_key_and_headers_and_a_reply_its_id() {
    let head = chunked("content-type: text/event-stream\r\nx-request-id: req_7\r\n");
    let (url, mut requests) = serve(vec![send(head), send(chunk("hello END")), send("0\r\n\r\n")]).await;
    let config = ClientConfig::new(format!("{url}/")).with_header("x-team", "blue");
    let client = HttpClient::new("test", &config).unwrap();
    let post = post().with_header("x-call", "1");
    let response = client.post(&context(), post).await.unwrap().success(READ).await.unwrap();
    assert_eq!(response.request_id(), Some("req_7"));
    let reply =
        reply_stream(response, Asked::Streamed, UntilEnd::named("streamed"), UntilEnd::named("plain"));
    let deltas: Vec<_> = reply.await.unwrap().collect().await;
    assert_eq!(text_of(&deltas), "hello END");
    assert_eq!(done_of(&deltas).request_id.as_deref(), Some("req_7"));
    let (_, request) = requests.recv().await.unwrap();
    assert!(
        request.starts_with("POST /v1/chat HTTP/1.1\r\n") && request.ends_with("\r\n\r\n{}"),
        "{request}"
    );
    for line in [
        &*format!("authorization: Bearer {KEY}"),
        "x-team: blue",
        "x-call: 1",
        "content-type: application/json",
    ] {
        assert!(request.lines().any(|sent| sent == line), "{line} in {request}");
    }
    assert!(!request.contains("accept-encoding"), "{request}");
}

#[tokio::test]
async fn connections_are_used_again() {
    let head = chunked("content-type: text/event-stream\r\n");
    let (url, mut requests) =
        serve(vec![send(head), send([chunk("END"), b"0\r\n\r\n".to_vec()].concat())]).await;
    let client = HttpClient::new("test", &ClientConfig::new(url)).unwrap();
    for _ in 0..3 {
        let response = client.post(&context(), post()).await.unwrap();
        let reply = reply_stream(response, Asked::Streamed, UntilEnd::default(), UntilEnd::default());
        assert!(reply.await.unwrap().all(|delta| async move { delta.is_ok() }).await);
        assert_eq!(requests.recv().await.unwrap().0, 0, "on the first connection");
    }
}

#[tokio::test]
async fn nothing_sent_is_told_from_nobody_knows() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", closed.local_addr().unwrap());
    drop(closed);
    let error = client(&url).post(&context(), post()).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unreachable, true), "{error}");
    let error = client("http://name.invalid/v1").post(&context(), post()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    // It accepts and never shakes hands.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", silent.local_addr().unwrap());
    let error = client(&url).post(&context(), post()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");

    let error = call(vec![Step::Hang]).await.map(drop).unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Timeout, true), "{error}");
    for cut in ["", "HTTP/1.1 200 OK\r\ncontent-le"] {
        let error = call(vec![send(cut)]).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transport, "{error}");
    }
}

#[tokio::test]
async fn a_body_without_its_end_is_an_error_after_what_it_brought() {
    let head = || send(chunked("content-type: text/event-stream\r\nrequest-id: req_8\r\n"));
    let end = |deltas: &[Result<Delta>]| deltas.last().unwrap().as_ref().unwrap_err().kind();
    let cut = call(vec![head(), send(chunk("some"))]).await.unwrap();
    assert_eq!((text_of(&cut).as_str(), end(&cut)), ("some", ErrorKind::Transport));
    let still = call(vec![head(), send(chunk("some")), Step::Hang]).await.unwrap();
    assert_eq!((text_of(&still).as_str(), end(&still)), ("some", ErrorKind::Timeout));
    let unended = call(vec![head(), send(chunk("some")), send("0\r\n\r\n")]).await.unwrap();
    assert_eq!((text_of(&unended).as_str(), end(&unended)), ("some", ErrorKind::Truncated));
    let whole = call(vec![head(), send(chunk("END"))]).await.unwrap();
    assert_eq!(done_of(&whole).stop, StopReason::Other("streamed".to_owned()), "the cut came after the end");
    let stopped = call(vec![head(), send(chunk("STOP"))]).await.unwrap();
    assert_eq!(
        done_of(&stopped).request_id.as_deref(),
        Some("req_8"),
        "the cut came when nothing was missing"
    );
    let hanging = call(vec![head(), send(chunk("END")), Step::Hang]).await.unwrap();
    assert_eq!(done_of(&hanging).request_id.as_deref(), Some("req_8"));
}

#[tokio::test]
async fn an_error_within_a_reply_comes_after_its_pieces_and_without_the_key() {
    let head = chunked("content-type: text/event-stream\r\nx-request-id: req_9\r\n");
    let deltas = call(vec![send(head), send(chunk("BAD")), Step::Hang]).await.unwrap();
    let [Ok(Delta::Text(text)), Err(error)] = &deltas[..] else { panic!("{deltas:?}") };
    assert_eq!(&**text, "before");
    assert_eq!(error.to_string(), "it said BAD with [key] [provider=test] [request_id=req_9]");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Overloaded, true));
}

#[tokio::test]
async fn the_form_of_a_reply_is_what_the_server_says_it_is() {
    for (media, decoder) in [
        ("application/json; charset=utf-8", "plain"),
        ("application/problem+json", "plain"),
        ("TEXT/EVENT-STREAM", "streamed"),
        ("text/plain", "streamed"),
    ] {
        let answer = answer(200, &format!("content-type: {media}\r\n"), "END");
        let deltas = call(vec![send(answer)]).await.unwrap();
        assert_eq!(done_of(&deltas).stop, StopReason::Other(decoder.to_owned()), "{media}");
    }
    let zipped = answer(200, "content-encoding: gzip\r\n", "END");
    let error = call(vec![send(zipped)]).await.map(drop).unwrap_err();
    assert!(error.message().contains("gzip"), "{error}");
    let page =
        answer(200, "content-type: text/html\r\n", "<html><body>Welcome to <b>nginx</b>!</body></html>");
    let error = call(vec![send(page)]).await.map(drop).unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Transport, false));
    assert!(error.message().contains("a page instead of JSON: Welcome to nginx"), "{error}");
}

#[tokio::test]
async fn statuses_are_typed() {
    let json = r#"{"error":{"code":"x","message":"the words"}}"#;
    for (status, kind, retryable) in [
        (400, ErrorKind::BadRequest, false),
        (401, ErrorKind::Auth, false),
        (402, ErrorKind::BadRequest, false),
        (403, ErrorKind::Auth, false),
        (404, ErrorKind::BadRequest, false),
        (408, ErrorKind::Overloaded, true),
        (409, ErrorKind::Overloaded, true),
        (413, ErrorKind::ContextTooLong, false),
        (422, ErrorKind::BadRequest, false),
        (429, ErrorKind::RateLimited, true),
        (500, ErrorKind::Overloaded, true),
        (502, ErrorKind::Overloaded, true),
        (503, ErrorKind::Overloaded, true),
        (504, ErrorKind::Timeout, true),
        (524, ErrorKind::Timeout, true),
        (529, ErrorKind::Overloaded, true),
    ] {
        for body in [json, "<html>oops", ""] {
            let error = refused(status, "x-request-id: r1\r\n", body).await;
            assert_eq!((error.kind(), error.is_retryable()), (kind, retryable), "{status} {body}: {error}");
            assert!(error.context().contains(&("request_id", "r1".to_owned())), "{error}");
            assert_eq!(error.message().contains("the words"), body == json, "{error}");
            let advised = body == json && matches!(status, 401 | 403 | 404);
            assert_eq!(error.message().contains("(check "), advised, "{error}");
            assert_eq!(
                error.message().contains("a page instead of JSON: oops"),
                body.starts_with('<'),
                "{error}"
            );
        }
    }
}

#[tokio::test]
async fn a_body_can_say_more_than_its_status() {
    let coded = |code: &str| format!(r#"{{"error":{{"code":"{code}","message":"m"}}}}"#);
    for (status, code, kind, retryable) in [
        (400, "context_length_exceeded", ErrorKind::ContextTooLong, false),
        (400, "content_filter", ErrorKind::ContentFilter, false),
        (403, "content_policy_violation", ErrorKind::ContentFilter, false),
        (500, "overloaded_error", ErrorKind::Overloaded, true),
        (429, "insufficient_quota", ErrorKind::RateLimited, false),
        (401, "invalid_request_error", ErrorKind::Auth, false),
        (504, "server_error", ErrorKind::Timeout, true),
    ] {
        let error = refused(status, "", &coded(code)).await;
        assert_eq!((error.kind(), error.is_retryable()), (kind, retryable), "{status} {code}: {error}");
    }
}

#[tokio::test]
async fn advice_about_trying_again_is_followed() {
    let error = refused(429, "retry-after-ms: 1500\r\n", "{}").await;
    assert_eq!(error.retry_after(), Some(Duration::from_millis(1_500)));
    assert!(!refused(503, "x-should-retry: false\r\n", "").await.is_retryable());
    assert!(refused(400, "x-should-retry: true\r\n", "").await.is_retryable());
    let no_credit = r#"{"error":{"code":"insufficient_quota","message":"m"}}"#;
    assert!(!refused(429, "x-should-retry: true\r\n", no_credit).await.is_retryable());
}

#[tokio::test]
async fn a_redirect_is_named_and_not_followed() {
    let (there, mut requests) = serve(vec![send(answer(200, "", "END"))]).await;
    let error = refused(307, &format!("location: {there}/x?token=hidden\r\n"), "").await;
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::BadRequest, false));
    assert!(
        error.message().contains(&format!("{there}/x,")) && !error.message().contains("hidden"),
        "{error}"
    );
    assert!(requests.try_recv().is_err(), "nobody went there");
}

#[tokio::test]
async fn an_echoed_key_is_not_shown() {
    let body = format!(r#"{{"error":{{"code":"{KEY}","message":"Incorrect API key provided: {KEY}."}}}}"#);
    let error = refused(401, &format!("x-request-id: {KEY}\r\n"), &body).await;
    assert!(!format!("{error} {error:?}").contains(KEY), "{error:?}");
    assert!(error.message().contains("[key]"), "{error}");
    let error = refused(500, "", &format!("<p>{KEY}</p>")).await;
    assert!(!format!("{error} {error:?}").contains(KEY), "{error:?}");
}

#[tokio::test]
async fn bodies_are_bounded() {
    let endless = vec![b'x'; 1 << 20];
    let head = "HTTP/1.1 500 X\r\ncontent-length: 999999999\r\n\r\n";
    let error = call(vec![send(head), send(endless), Step::Hang]).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(error.to_string().len() < 500 && error.message().contains("xxx"), "{error}");

    let (url, _requests) = serve(vec![send(answer(200, "", "12345"))]).await;
    let mut response = client(&url).post(&context(), post()).await.unwrap();
    assert!(response.read_all(4).await.unwrap_err().message().contains("larger than 4 bytes"));
    let mut response = client(&url).post(&context(), post()).await.unwrap();
    assert_eq!(response.read_all(5).await.unwrap(), b"12345");

    let head = "HTTP/1.1 200 X\r\ncontent-length: 999999999\r\n\r\n";
    let mut script = vec![send(head)];
    script.extend(std::iter::repeat_n(send(vec![b'x'; 8 << 20]), 9));
    let (url, _requests) = serve(script).await;
    let client = HttpClient::new("test", &ClientConfig::new(url)).unwrap();
    let response = client.post(&context(), post()).await.unwrap();
    let mut reply =
        reply_stream(response, Asked::Streamed, UntilEnd::default(), UntilEnd::default()).await.unwrap();
    let mut last = None;
    while let Some(delta) = reply.next().await {
        last = delta.err();
    }
    assert!(last.unwrap().message().contains("larger than"));
}

#[tokio::test]
async fn a_dropped_reply_gives_up_the_connection() {
    let head = chunked("content-type: text/event-stream\r\n");
    let (url, mut requests) = serve(vec![send(head), send(chunk("some")), Step::Hang]).await;
    let client = HttpClient::new("test", &ClientConfig::new(url)).unwrap();
    let response = client.post(&context(), post()).await.unwrap();
    let reply = reply_stream(response, Asked::Streamed, UntilEnd::default(), UntilEnd::default());
    let mut reply = reply.await.unwrap();
    assert!(reply.next().await.unwrap().is_ok());
    assert!(requests.recv().await.unwrap().1.starts_with("POST"));
    drop(reply);
    assert_eq!(requests.recv().await.unwrap().1, "gone");
}

#[tokio::test]
async fn an_error_that_drips_for_ever_does_not_hold_the_run_until_its_deadline() {
    for (status, media, kind) in
        [(429, "application/json", ErrorKind::RateLimited), (200, "text/html", ErrorKind::Transport)]
    {
        let head =
            format!("HTTP/1.1 {status} X\r\ncontent-type: {media}\r\ntransfer-encoding: chunked\r\n\r\n");
        let begun = send(chunk("it began to say why"));
        let error = call(vec![send(head), begun, Step::Drip(chunk(" "))]).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.message().contains("it began to say why"), "{error}");
    }
}

#[tokio::test]
async fn the_total_bounds_a_server_that_never_stands_still() {
    let mut script = vec![send(chunked("content-type: text/event-stream\r\n")), send(chunk("some"))];
    script.push(Step::Hang);
    let (url, _requests) = serve(script).await;
    let timeouts = Timeouts::default().with_total(Duration::from_millis(150));
    let client = HttpClient::new("test", &ClientConfig::new(url).with_timeouts(timeouts)).unwrap();
    let response = client.post(&context(), post()).await.unwrap();
    let reply = reply_stream(response, Asked::Streamed, UntilEnd::default(), UntilEnd::default());
    let deltas: Vec<_> = reply.await.unwrap().collect().await;
    let error = deltas.last().unwrap().as_ref().unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Timeout, false), "{error}");
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_when_the_client_is_made() {
    let base = || ClientConfig::new("https://api.example.com/v1");
    for (config, why) in [
        (base().with_base_url("nowhere"), "base URL"),
        (base().with_ca_certificates("-----BEGIN"), "CA certificates"),
        (base().with_proxy("::"), "proxy"),
        (base().with_header("a b", "x"), "name"),
        (base().with_header("x-a", "line\nbreak"), "value"),
    ] {
        let error = HttpClient::new("test", &config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.message().contains(why), "{why}: {error}");
    }
}
