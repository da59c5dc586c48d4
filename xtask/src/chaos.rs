//! `cargo xtask chaos`: builds the driver and what it kills, starts the services it needs, and runs it with the same flags.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cargo_metadata::Message;

use crate::services::ForTests;
use crate::{Failure, Outcome, process};

/// The services that a store needs: some are used, of others the programs.
const SERVICES: [(&str, &[&str]); 5] = [
    ("ledger:postgres", &["postgres"]),
    ("ledger:redis", &["redis-plain"]),
    ("memory:postgres", &["postgres"]),
    ("memory:redis", &["redis"]),
    ("memory:qdrant", &["qdrant"]),
];

/// Builds and runs the driver.
pub(crate) fn run(root: &Path, args: Vec<OsString>) -> Outcome {
    let needed = needed(&args);
    let driver = build(root)?;
    let services = ForTests::these(root, &needed)?;
    let mut command = process::program(root, driver);
    let status = command.args(args).envs(services.env()).status();
    let status = status.map_err(|e| Failure::Failed(format!("the driver could not be started: {e}")))?;
    // The services go before the process does.
    drop(services);
    match status.code() {
        Some(0) => Ok(()),
        // A signal has no code; to a caller it is a failure like any other.
        code => Err(Failure::Exit(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))),
    }
}

/// The services of the stores that are named, or of all. Any other flag is the driver's to judge.
fn needed(args: &[OsString]) -> Vec<&'static str> {
    let mut stores: Vec<String> = Vec::new();
    let mut help = false;
    let mut args = args.iter().map(|arg| arg.to_string_lossy());
    while let Some(arg) = args.next() {
        match arg.strip_prefix("--store") {
            Some("") => stores.extend(args.next().map(Into::into)),
            Some(rest) => stores.extend(rest.strip_prefix('=').map(str::to_owned)),
            None => help |= arg == "--help" || arg == "-h",
        }
    }
    let wanted = |store: &str| !help && (stores.is_empty() || stores.iter().any(|name| name == store));
    let mut needed: Vec<&str> =
        SERVICES.iter().filter(|(store, _)| wanted(store)).flat_map(|(_, names)| *names).copied().collect();
    needed.sort_unstable();
    needed.dedup();
    needed
}

/// Builds the driver and the workers beside it; returns the driver. Cargo's output is shown only when the build fails.
fn build(root: &Path) -> Outcome<PathBuf> {
    let mut cargo = process::cargo(root);
    cargo.args([
        "build",
        "--locked",
        "--package",
        "loomflow-tests",
        "--bin",
        "chaos",
        "--bin",
        "memory_worker",
    ]);
    cargo.arg("--message-format=json-render-diagnostics");
    let output = process::capture(&mut cargo)?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(Failure::Failed(format!("`{}` ended with {}", process::shown(&cargo), output.status)));
    }
    Message::parse_stream(&output.stdout[..])
        .filter_map(Result::ok)
        .find_map(|message| match message {
            Message::CompilerArtifact(artifact) if artifact.target.name == "chaos" => artifact.executable,
            _ => None,
        })
        .map(PathBuf::from)
        .ok_or_else(|| Failure::Failed("cargo built the driver and did not say where it is".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &[&str]) -> Vec<&'static str> {
        needed(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_store_needs_its_service_and_no_other() {
        assert_eq!(of(&["--store", "ledger:postgres", "--seconds=3"]), ["postgres"]);
        assert_eq!(of(&["--store=ledger:redis", "--store", "memory:redis"]), ["redis", "redis-plain"]);
        assert!(of(&["--store", "ledger:sqlite"]).is_empty());
        assert_eq!(of(&[]), ["postgres", "qdrant", "redis", "redis-plain"]);
        assert!(of(&["--help"]).is_empty());
    }
}
