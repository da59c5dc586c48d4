//! The example as a user runs it: a process of its own, told by its environment.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Output};
use std::sync::Arc;

use loomflow_tests::provider::{ProviderDouble, Whims, Wire};

fn run(env: &[(&str, &str)], words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_any-provider"));
    for name in ["LOOMFLOW_MODEL", "LOOMFLOW_API_KEY", "LOOMFLOW_BASE_URL", "LOOMFLOW_PROVIDER"] {
        command.env_remove(name);
    }
    command.envs(env.iter().copied()).args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn without_an_endpoint_it_says_what_to_set() {
    let output = run(&[], &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    for name in ["LOOMFLOW_MODEL", "LOOMFLOW_API_KEY", "LOOMFLOW_BASE_URL", "LOOMFLOW_PROVIDER"] {
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    for (env, named) in [
        (&[("LOOMFLOW_MODEL", "m")][..], "LOOMFLOW_API_KEY"),
        (&[("LOOMFLOW_MODEL", "m"), ("LOOMFLOW_API_KEY", "k"), ("LOOMFLOW_PROVIDER", "acme")], "acme"),
        (&[("LOOMFLOW_MODEL", "m"), ("LOOMFLOW_BASE_URL", "ftp://x/v1")], "neither http nor https"),
    ] {
        let output = run(env, &["hi"]);
        assert_eq!(output.status.code(), Some(2), "{env:?}");
        assert!(text(&output.stderr).contains(named), "{}", text(&output.stderr));
    }
}

#[test]
fn a_server_that_is_not_there_is_an_error_and_not_a_hang() {
    let output = run(&[("LOOMFLOW_MODEL", "m"), ("LOOMFLOW_BASE_URL", "http://127.0.0.1:9/v1")], &["hi"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("could not be reached"), "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_talks_to_whatever_endpoint_it_is_given() {
    for (wire, provider) in [(Wire::OpenAi, "openai"), (Wire::Anthropic, "anthropic")] {
        let double = Arc::new(ProviderDouble::new(wire, Whims::KIND, 7));
        let server = double.serve().await;
        let url = if wire == Wire::OpenAi { format!("{}/v1", server.url()) } else { server.url() };
        let key = "a-key-that-nobody-may-see";
        let env = [
            ("LOOMFLOW_MODEL", "double"),
            ("LOOMFLOW_BASE_URL", &url),
            ("LOOMFLOW_PROVIDER", provider),
            ("LOOMFLOW_API_KEY", key),
        ]
        .map(|(name, value)| (name, value.to_owned()));
        let asked = tokio::task::spawn_blocking(move || {
            let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
            run(&env, &["How", "is", "it?"])
        });
        let output = asked.await.unwrap();
        let said = text(&output.stdout);
        assert!(output.status.success(), "{said}{}", text(&output.stderr));
        let bill = double.books().account(key);
        assert!(bill.calls > 0 && said.contains(&format!("{} tokens in", bill.input)), "{bill:?}\n{said}");
        assert!(said.contains("price not known"), "nobody knows this server's prices: {said}");
        assert!(!said.contains(key) && !text(&output.stderr).contains(key));
    }
}
