//! The handler against a real HTTP server: what it sends, what it believes, how often it tries, and when it gives up.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use loomflow::approval_webhook::{
    IDEMPOTENCY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, WebhookApprovals, WebhookConfig, sign, verify,
};
use loomflow_conformance::doubles::{Head, Recorded, Script, ScriptedServer};
use loomflow_core::{Agent, Clock as _, Effect, Secret, SystemClock, Timestamp, ToolOutcome, ToolStatus};
use loomflow_local::{InMemoryApprovalStore, InMemoryAuditLog};
use loomflow_tests::double::{ModelDouble, call, say};
use loomflow_tests::fixture::{FnTool, entries, user};
use serde_json::{Value, json};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn secret() -> Secret<String> {
    Secret::new(SECRET.to_owned())
}

fn now() -> Timestamp {
    SystemClock.now()
}

/// What came of a payment whose approval goes to the webhook, and how often it was executed.
async fn pay(config: WebhookConfig) -> (ToolStatus, u64) {
    let (status, executed, _) = pay_and_log(config).await;
    (status, executed)
}

async fn pay_and_log(config: WebhookConfig) -> (ToolStatus, u64, String) {
    let executed = Arc::new(AtomicU64::new(0));
    let counter = executed.clone();
    let tool = FnTool::new("pay", Effect::External, move |_, arguments| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move { ToolOutcome::ok(format!("paid {}", arguments["cents"])) }
    });
    let model = ModelDouble::new(|request, _| {
        let answered = request.messages.last().is_some_and(|m| m.tool_call_id.is_some());
        Ok(if answered { say("bye") } else { call("pay", "{\"cents\": 5, \"to\": \"b\\u00f6b\"}") })
    });
    let agent = Agent::builder("x")
        .model(model)
        .tool(tool)
        .approval_store(InMemoryApprovalStore::new())
        .approval_handler(WebhookApprovals::new(&config).unwrap())
        .approvers([user("boss")])
        .approvals_expire_after(Duration::from_millis(400))
        .audit_log(InMemoryAuditLog::new())
        .build()
        .unwrap();
    let alice = agent.for_user(user("alice"));
    let status = alice.run("pay").await.unwrap().tool_calls[0].status;
    let log = entries(&alice).await;
    let log: String =
        log.iter().map(|e| format!("{} {}\n", e.event.action.as_str(), e.event.payload.get())).collect();
    (status, executed.load(Ordering::SeqCst), log)
}

fn config(server: &ScriptedServer) -> WebhookConfig {
    WebhookConfig::new(format!("{}/hook", server.url()), secret())
        .with_backoff(Duration::from_millis(5))
        .with_attempt_timeout(Duration::from_secs(5))
}

fn answer(status: u16, body: &str) -> Script {
    Script::whole(Head::new(status).with_content_type("application/json"), body)
}

/// An answer signed with `key` at `at`, whose body is then `sent`.
fn signed(key: &str, at: Timestamp, body: &str, sent: &str) -> Script {
    let mut head = Head::new(200).with_content_type("application/json");
    for (name, value) in sign(&Secret::new(key.to_owned()), body.as_bytes(), at) {
        head = head.with_header(name, value);
    }
    Script::whole(head, sent)
}

fn id_of(request: &Recorded) -> Value {
    request.json().unwrap()["approval_id"].clone()
}

fn approve(request: &Recorded) -> String {
    json!({"approval_id": id_of(request), "decision": "approve", "by": "boss"}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_signed_and_says_what_an_approver_must_know() {
    let server = ScriptedServer::start(|_, _| answer(202, "")).await.unwrap();
    assert_eq!(pay(config(&server)).await, (ToolStatus::Denied, 0), "nobody answered in time");
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    let request = &requests[0];
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/hook"));
    let headers = || request.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    verify(&secret(), headers(), &request.body, now(), Duration::from_secs(60)).unwrap();
    let late = now().saturating_add(Duration::from_secs(301));
    verify(&secret(), headers(), &request.body, late, Duration::from_secs(300)).unwrap_err();
    let tampered = request.text().replace("\"cents\":5", "\"cents\":500");
    assert_ne!(tampered.as_bytes(), &request.body[..]);
    verify(&secret(), headers(), tampered.as_bytes(), now(), Duration::from_secs(60)).unwrap_err();

    let body = request.json().unwrap();
    assert_eq!(request.header(IDEMPOTENCY_HEADER), body["approval_id"].as_str());
    assert_eq!((&body["user_id"], &body["tool"]), (&json!("alice"), &json!("pay")));
    assert_eq!((&body["effect"], &body["approvers"]), (&json!("external"), &json!(["boss"])));
    assert_eq!(body["arguments"], json!({"cents": 5, "to": "böb"}));
    assert!(body["why"].as_str().unwrap().contains("external") && body["expires_at"].is_string());
    assert!(!request.contains(SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_decision_counts_and_names_who_made_it() {
    let server = ScriptedServer::start(|request, _| {
        let body = approve(request);
        signed(SECRET, now(), &body, &body)
    });
    let server = server.await.unwrap();
    let (status, executed, log) = pay_and_log(config(&server)).await;
    assert_eq!((status, executed), (ToolStatus::Ok, 1));
    assert!(log.contains("approval_granted") && log.contains("\"approver\":\"boss\""), "{log}");
    let edits = ScriptedServer::start(|request, _| {
        let body =
            json!({"approval_id": id_of(request), "decision": "deny", "reason": "not today"}).to_string();
        signed(SECRET, now(), &body, &body)
    });
    let (status, executed, log) = pay_and_log(config(&edits.await.unwrap())).await;
    assert_eq!((status, executed), (ToolStatus::Denied, 0));
    assert!(log.contains("approval_denied") && log.contains("not today"), "{log}");
}

/// A decision that nobody signed, or not so, is an error, and an error is a deny: it is not waited for somebody either.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_is_not_signed_as_it_must_be_is_a_deny() {
    type Forge = fn(&Recorded) -> Script;
    let forgeries: [(&str, Forge); 7] = [
        ("unsigned", |request| answer(200, &approve(request))),
        ("signed with another secret", |request| {
            let body = approve(request);
            signed("another secret of at least 32 bytes", now(), &body, &body)
        }),
        ("tampered with", |request| {
            let body = approve(request);
            signed(SECRET, now(), &body.replace("approve", "deny"), &body)
        }),
        ("old", |request| {
            let body = approve(request);
            signed(SECRET, Timestamp::from_micros(now().as_micros() - 301_000_000), &body, &body)
        }),
        ("of another request", |_| {
            let body =
                json!({"approval_id": "appr_00000000000000000000000000", "decision": "approve"}).to_string();
            signed(SECRET, now(), &body, &body)
        }),
        ("for no request", |_| {
            signed(SECRET, now(), r#"{"decision":"approve"}"#, r#"{"decision":"approve"}"#)
        }),
        ("no decision at all", |request| {
            let body = json!({"approval_id": id_of(request), "decision": "perhaps"}).to_string();
            signed(SECRET, now(), &body, &body)
        }),
    ];
    for (what, forge) in forgeries {
        let server = ScriptedServer::start(move |request, _| forge(request)).await.unwrap();
        let (status, executed, log) = pay_and_log(config(&server)).await;
        assert_eq!((status, executed), (ToolStatus::Denied, 0), "{what}");
        assert!(log.contains("nobody could be asked"), "{what}: {log}");
        assert_eq!(server.request_count(), 1, "{what}: what was answered is not asked again");
    }
}

/// The request itself, sent back with its own signature, decides nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_echoed_is_no_decision() {
    let server = ScriptedServer::start(|request, _| {
        let mut head = Head::new(200).with_content_type("application/json");
        for name in [TIMESTAMP_HEADER, SIGNATURE_HEADER] {
            head = head.with_header(name, request.header(name).unwrap());
        }
        Script::whole(head, &request.body)
    });
    assert_eq!(pay(config(&server.await.unwrap())).await, (ToolStatus::Denied, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_tried_again_under_the_same_key() {
    for trouble in [500, 503, 429] {
        let server = ScriptedServer::start(move |request, n| {
            let body = approve(request);
            if n < 2 { answer(trouble, "") } else { signed(SECRET, now(), &body, &body) }
        });
        let server = server.await.unwrap();
        assert_eq!(pay(config(&server)).await, (ToolStatus::Ok, 1), "{trouble}");
        let keys: Vec<_> =
            server.requests().iter().map(|r| r.header(IDEMPOTENCY_HEADER).unwrap().to_owned()).collect();
        assert_eq!((keys.len(), &keys[0], &keys[1]), (3, &keys[1], &keys[2]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gives_up_and_follows_nobody() {
    let always = ScriptedServer::start(|_, _| answer(500, "")).await.unwrap();
    assert_eq!(pay(config(&always).with_attempts(3)).await, (ToolStatus::Denied, 0));
    assert_eq!(always.request_count(), 3);
    let never = ScriptedServer::start(|_, _| answer(403, "")).await.unwrap();
    assert_eq!(pay(config(&never)).await, (ToolStatus::Denied, 0));
    assert_eq!(never.request_count(), 1, "a refusal is not asked again");
    let elsewhere = ScriptedServer::start(|_, _| answer(200, "")).await.unwrap();
    let target = elsewhere.url();
    let moved = ScriptedServer::start(move |_, _| {
        Script::whole(Head::new(307).with_header("location", target.as_str()), "")
    });
    let moved = moved.await.unwrap();
    assert_eq!(pay(config(&moved)).await, (ToolStatus::Denied, 0));
    assert_eq!(
        (moved.request_count(), elsewhere.request_count()),
        (1, 0),
        "the request stayed where it was sent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_hangs_or_is_not_there_is_a_deny() {
    let hangs = ScriptedServer::start(|_, _| Script::new().pause(Duration::from_secs(600))).await.unwrap();
    let short = config(&hangs).with_attempt_timeout(Duration::from_millis(150)).with_attempts(2);
    assert_eq!(pay(short).await, (ToolStatus::Denied, 0));
    assert_eq!(hangs.request_count(), 2);
    let nobody =
        WebhookConfig::new("http://127.0.0.1:1/hook", secret()).with_backoff(Duration::from_millis(5));
    assert_eq!(pay(nobody).await, (ToolStatus::Denied, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_answer_is_bounded() {
    let server = ScriptedServer::start(|_, _| {
        let pieces = (0..600).map(|_| vec![b' '; 1 << 10]);
        Script::new().head(&Head::new(200).chunked()).chunks(pieces).end_chunks()
    });
    assert_eq!(pay(config(&server.await.unwrap())).await, (ToolStatus::Denied, 0));
}
