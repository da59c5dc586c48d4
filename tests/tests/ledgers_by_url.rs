//! Every ledger is what its URL says, through one agent and no other line of code; and what goes wrong on the way says what
//! to do and nothing of the URL.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a ledger that cannot be opened is a failed test")]

use loomflow::prelude::*;
use loomflow_tests::services;

/// Two tenants of one agent: each spends its own, and a spent quota stops its own tenant alone.
async fn is_a_ledger(url: &str, name: &str) {
    let budget = BudgetConfig::new().per_user_max_tokens(6_000).window(Window::Day);
    let ledger = resolve::ledger(url, budget).await.unwrap();
    assert_eq!(ledger.store_name(), name);
    let namespace = Namespace::new(format!("url-{:x}", rand::random::<u64>())).unwrap();
    let agent =
        Agent::builder("").model(EchoModel::new()).budget(ledger).namespace(namespace).build().unwrap();
    let (alice, bob) =
        (agent.for_user(UserId::new("alice").unwrap()), agent.for_user(UserId::new("Alice").unwrap()));
    alice.run("My tea is green").await.unwrap();
    assert!(alice.usage().await.unwrap().used.total_tokens() > 0, "{name}");
    assert_eq!(bob.usage().await.unwrap().used.total_tokens(), 0, "{name}");
    agent.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_process_and_in_a_file() {
    is_a_ledger("inmemory", "ledger:inmemory").await;
    let dir = std::env::temp_dir().join(format!("loomflow-ledger-url-{:x}", rand::random::<u64>()));
    std::fs::create_dir_all(&dir).unwrap();
    let url = format!("sqlite:{}/bot.db", dir.display());
    is_a_ledger(&url, "ledger:sqlite").await;
    let budget = BudgetConfig::new().soft_warning_at(2.0);
    let error = resolve::ledger(url, budget).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("soft_warning_at"), "{error}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn on_servers() {
    is_a_ledger(&services::url("postgres"), "ledger:postgres").await;
    is_a_ledger(&services::url("redis-plain"), "ledger:redis").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_told_without_the_url() {
    for (url, told) in [
        ("postgre://app:hunter2@db/bot", "did you mean `postgres://"),
        ("qdrant:http://hunter2:6334", "keeps no ledger"),
        ("sqlite:", "needs the path of a file"),
    ] {
        let error = resolve::ledger(url, BudgetConfig::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(told), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}
