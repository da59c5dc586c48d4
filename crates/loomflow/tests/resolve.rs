//! The resolver with whatever features this is built with: what is compiled in opens, what is not says how to get it, and
//! nothing repeats a URL. Real servers are asked in the workspace's cross-crate tests.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "without a runtime there is no test")]

use std::error::Error as _;

use loomflow::{Error, ErrorKind, resolve};
use proptest::prelude::*;

const STORES: [(&str, bool, &str); 4] = [
    ("memory-sqlite", cfg!(feature = "memory-sqlite"), "sqlite:/no/such/folder/x.db"),
    ("memory-postgres", cfg!(feature = "memory-postgres"), "postgres://u:hunter2@127.0.0.1:1/d"),
    ("memory-redis", cfg!(feature = "memory-redis"), "redis://:hunter2@127.0.0.1:1"),
    ("memory-qdrant", cfg!(feature = "memory-qdrant"), "qdrant:http://127.0.0.1:1"),
];

fn open(url: &str) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async { resolve::memory(url).await.map(drop) })
}

/// Everything a reader of this error may come to see.
fn everything(error: &Error) -> String {
    let mut all = format!("{error} {error:?} {error:#?} {:?}", error.context());
    let mut source = error.source();
    while let Some(cause) = source {
        all.push_str(&format!(" {cause} {cause:?}"));
        source = cause.source();
    }
    all
}

#[test]
fn a_store_that_is_not_compiled_in_names_its_feature_and_the_line() {
    for (feature, _, url) in STORES.iter().filter(|(_, on, _)| !on) {
        let error = open(url).unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Config, "resolve_memory"));
        let text = everything(&error);
        assert!(
            text.contains(&format!("features = [\"{feature}\"]")) && text.contains("Cargo.toml"),
            "{text}"
        );
        assert!(!text.contains("hunter2") && !text.contains(url), "{text}");
    }
}

#[test]
fn approvals_open_or_say_what_is_missing() {
    let open = |url: &'static str| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async { resolve::approvals(url).await.map(|store| store.store_name().to_owned()) })
    };
    assert_eq!(open("inmemory").is_ok(), cfg!(feature = "local"));
    for (feature, on, url) in [
        ("runtime-sqlite", cfg!(feature = "runtime-sqlite"), "sqlite:/no/such/folder/x.db"),
        ("runtime-postgres", cfg!(feature = "runtime-postgres"), "postgres://u:hunter2@127.0.0.1:1/d"),
    ] {
        let error = open(url).unwrap_err();
        let text = everything(&error);
        assert_eq!(text.contains(&format!("features = [\"{feature}\"]")), !on, "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    for url in ["redis://:hunter2@127.0.0.1:1", "qdrant:http://127.0.0.1:1"] {
        let error = open(url).unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Config, "resolve_approvals"));
        let text = everything(&error);
        assert!(text.contains("keeps no approvals") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn memory_in_the_process_comes_with_the_feature_local() {
    let opened = open("inmemory");
    assert_eq!(opened.is_ok(), cfg!(feature = "local"));
    if let Err(error) = opened {
        assert!(error.message().contains("features = [\"local\"]"), "{error}");
    }
}

/// What a password may be made of, as people type it: with and without the characters that mean something in a URL.
fn password() -> impl Strategy<Value = String> {
    "[a-z0-9]{12}[@/?#:%& +\\\\]{0,2}[A-Z0-9]{12}"
}

/// As it should be written, and as it should not.
fn written(password: &str) -> [String; 2] {
    let encoded = password
        .bytes()
        .map(|b| if b.is_ascii_alphanumeric() { (b as char).to_string() } else { format!("%{b:02X}") })
        .collect();
    [password.to_owned(), encoded]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_error_repeats_a_password(password in password(), odd in 0..14_usize, encoded in 0..2_usize) {
        let secret = &written(&password)[encoded];
        let url = match odd {
            0 => format!("postgres://u:{secret}@127.0.0.1:1/d"),
            1 => format!("postgresql://u:{secret}@127.0.0.1:x/d"),
            2 => format!("postgres://127.0.0.1:1/d?user=u&password={secret}"),
            3 => format!("postgres://u@127.0.0.1:1/d?sslpassword={secret}"),
            4 => format!("postgres://127.0.0.1:1/d?sslmode={secret}"),
            5 => format!("redis://:{secret}@127.0.0.1:1"),
            6 => format!("redis://u:{secret}@127.0.0.1:1/notanumber"),
            7 => format!("redis://127.0.0.1:1/?password={secret}&protocol={secret}"),
            8 => format!("rediss://:{secret}@127.0.0.1:1"),
            9 => format!("qdrant:http://u:{secret}@127.0.0.1:1"),
            10 => format!("qdrant:http://127.0.0.1:1?api_key={secret}"),
            11 => secret.clone(),
            12 => format!("{secret}:x@127.0.0.1:1/d"),
            _ => format!("qdrant:http://{secret}@127.0.0.1:x"),
        };
        let text = everything(&open(&url).expect_err("nobody listens there"));
        prop_assert!(!text.contains(url.as_str()), "{}", text);
        for part in [&password[..12], &password[password.len() - 12..]] {
            prop_assert!(!text.to_lowercase().contains(&part.to_lowercase()), "{}: {}", url, text);
        }
    }
}
