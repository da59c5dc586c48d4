//! "Thin core" as a fact: what core, and what every backend, really compiles with.
//!
//! Cargo resolves each package on its own (`cargo tree -p`), because in a whole workspace features of one member would
//! be counted as another's.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

const CORE: &str = "loomflow-core";

/// Core's direct dependencies. A new one is a decision, and this line is where it is seen.
const CORE_DIRECT: [&str; 12] = [
    "async-trait",
    "futures-core",
    "futures-util",
    "hmac",
    "rand",
    "serde",
    "serde_json",
    "sha2",
    "time",
    "tokio",
    "unicode-properties",
    "zeroize",
];

/// What core may switch on in tokio: tasks, channels and timers. No reactor, no files, no processes.
const CORE_TOKIO: [&str; 4] = ["default", "rt", "sync", "time"];

/// Drivers, clients, TLS, schema generators and telemetry. A name that ends in `*` is a prefix.
const NOT_IN_CORE: [&str; 35] = [
    "axum*",
    "curl*",
    "h2",
    "hyper*",
    "isahc",
    "jsonschema",
    "libsqlite3-sys",
    "log4rs",
    "mio",
    "native-tls",
    "openssl*",
    "opentelemetry*",
    "postgres*",
    "prost*",
    "qdrant*",
    "quinn*",
    "r2d2*",
    "redis*",
    "regex*",
    "reqwest*",
    "ring",
    "aws-lc*",
    "rusqlite",
    "rustls*",
    "schannel",
    "schemars*",
    "security-framework*",
    "signal-hook*",
    "socket2",
    "sqlx*",
    "tonic*",
    "tracing-subscriber",
    "ureq*",
    "vaultrs*",
    "webpki*",
];

/// A package's closure over normal and build dependencies, resolved for it alone: names and the features switched on.
fn closure(package: &str) -> BTreeMap<String, BTreeSet<String>> {
    closure_with(package, &[])
}

fn closure_with(package: &str, features: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the workspace");
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--package", package, "--edges", "normal,build"])
        .args(["--prefix", "none", "--no-dedupe", "--format", "{lib}|{p}|{f}"])
        .args(features)
        .current_dir(root)
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines().filter(|line| !line.is_empty()) {
        let mut parts = line.splitn(3, '|').skip(1);
        let name = parts.next().and_then(|p| p.split(' ').next()).expect("a line names its package");
        let features = parts.next().unwrap_or_default().trim_end_matches(" (*)");
        let features = features.split(',').filter(|f| !f.is_empty()).map(str::to_owned);
        found.entry(name.to_owned()).or_default().extend(features);
    }
    found
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

fn workspace() -> Metadata {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).no_deps().exec().expect("the workspace can be read")
}

fn direct(workspace: &Metadata, package: &str, kind: DependencyKind) -> BTreeSet<String> {
    let package = workspace.packages.iter().find(|p| p.name == package).expect("it is a member");
    package.dependencies.iter().filter(|d| d.kind == kind).map(|d| d.name.clone()).collect()
}

#[test]
fn core_compiles_with_no_driver_no_client_and_no_telemetry() {
    let closure = closure(CORE);
    assert!(closure.len() > CORE_DIRECT.len(), "the closure was read: {closure:?}");
    let intruders: Vec<&String> =
        closure.keys().filter(|name| NOT_IN_CORE.iter().any(|pattern| matches(pattern, name))).collect();
    assert!(intruders.is_empty(), "core compiles with {intruders:?}");
}

#[test]
fn core_names_exactly_what_it_may() {
    let direct = direct(&workspace(), CORE, DependencyKind::Normal);
    assert_eq!(direct, CORE_DIRECT.map(str::to_owned).into());
}

#[test]
fn core_takes_tasks_channels_and_timers_from_tokio_and_nothing_else() {
    let closure = closure(CORE);
    let more: Vec<&String> =
        closure["tokio"].iter().filter(|feature| !CORE_TOKIO.contains(&feature.as_str())).collect();
    assert!(more.is_empty(), "core switches on {more:?} in tokio");
}

#[test]
fn the_suites_know_core_alone() {
    let ours: Vec<String> = direct(&workspace(), "loomflow-conformance", DependencyKind::Normal)
        .into_iter()
        .filter(|name| name.starts_with("loomflow"))
        .collect();
    assert_eq!(ours, [CORE]);
}

/// Resolved, not declared: not even through somebody else does one implementation reach another.
#[test]
fn implementations_reach_core_and_their_support_crate_only() {
    let families = ["memory", "ledger", "audit", "secrets", "runtime", "model"];
    let workspace = workspace();
    let is_one = |name: &str| {
        name == "loomflow-local" || families.iter().any(|f| name.starts_with(&format!("loomflow-{f}-")))
    };
    let all: Vec<&str> = workspace.packages.iter().map(|p| p.name.as_str()).filter(|n| is_one(n)).collect();
    assert!(all.contains(&"loomflow-local"), "{all:?}");
    for package in all {
        let ours: Vec<String> =
            closure(package).into_keys().filter(|n| n.starts_with("loomflow") && n != package).collect();
        let others: Vec<&String> = ours
            .iter()
            .filter(|n| *n != CORE && *n != "loomflow-macros" && !n.starts_with("loomflow-support-"))
            .collect();
        assert!(others.is_empty(), "{package} reaches {others:?}");
        assert!(ours.len() <= 3 && ours.iter().any(|n| n == CORE), "{package} reaches {ours:?}");
    }
}

/// What decodes a provider's bytes does no I/O: without its client, an adapter is built from core's dependencies and a few
/// pure ones.
#[test]
fn codecs_compile_without_any_client() {
    let clients = ["hyper*", "h2", "mio", "reqwest*", "ring", "rustls*", "socket2", "ureq*"];
    for package in [
        "loomflow-support-model",
        "loomflow-model-openai",
        "loomflow-model-anthropic",
        "loomflow-model-cohere",
    ] {
        let closure = closure_with(package, &["--no-default-features"]);
        let found: Vec<&String> =
            closure.keys().filter(|name| clients.iter().any(|pattern| matches(pattern, name))).collect();
        assert!(found.is_empty(), "the codec of {package} compiles with {found:?}");
        let whole = closure_with(package, &[]);
        assert!(whole.contains_key("reqwest") && whole.contains_key("ring"), "{package} has its client");
    }
}

/// One TLS, with one provider of its cryptography.
#[test]
fn nothing_of_ours_links_the_hosts_tls_or_a_second_provider() {
    // `openssl-probe` only looks for the folder of certificates.
    let banned = ["openssl", "openssl-sys", "native-tls", "aws-lc*"];
    for package in workspace().packages.iter().filter(|p| p.manifest_path.as_str().contains("/crates/")) {
        let closure = closure_with(&package.name, &["--all-features"]);
        let found: Vec<&String> =
            closure.keys().filter(|name| banned.iter().any(|pattern| matches(pattern, name))).collect();
        assert!(found.is_empty(), "{} compiles with {found:?}", package.name);
    }
}

#[test]
fn a_pattern_is_a_name_or_a_prefix() {
    assert!(matches("hyper*", "hyper-util") && matches("h2", "h2"));
    assert!(!matches("h2", "h2-sys") && !matches("mio", "mio-extras"));
}
