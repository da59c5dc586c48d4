//! `cargo xtask test`: the gate, stage by stage, with the minutes each one took.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::tools::{CARGO_FUZZ, DENY, NEXTEST, Tool};
use crate::{Failure, Outcome, bench_tenants, embedder, fuzz, process, services, tidy};

/// Property-test cases per property in the widest gate.
const FULL_PROPTEST_CASES: &str = "4096";

/// The fuzz targets are a workspace of their own.
const FUZZ: &str = "fuzz/Cargo.toml";

/// How much of the gate to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breadth {
    /// The inner loop.
    Fast,
    /// What every change passes.
    Gate,
    /// Everything, with many more cases.
    Full,
}

impl Breadth {
    pub(crate) fn from_flags(fast: bool, full: bool) -> Self {
        match (fast, full) {
            (true, _) => Self::Fast,
            (_, true) => Self::Full,
            _ => Self::Gate,
        }
    }
}

struct Stage {
    name: &'static str,
    run: fn(&Gate) -> Outcome,
}

/// In this order: what is quickest to fail comes first. One feature set and one profile throughout, so that nothing is
/// compiled twice, except the load driver, whose numbers mean something in release mode only.
fn stages(breadth: Breadth) -> Vec<Stage> {
    let mut stages = vec![
        Stage { name: "format", run: format },
        Stage { name: "clippy", run: clippy },
        Stage { name: "tidy", run: |gate| tidy::run(&gate.root) },
        Stage { name: "services", run: services },
        Stage { name: "tests", run: tests },
    ];
    if breadth != Breadth::Fast {
        stages.extend([
            Stage { name: "doc tests", run: doc_tests },
            Stage { name: "documentation", run: documentation },
            Stage { name: "deny", run: deny },
            Stage { name: "fuzz", run: fuzz },
            Stage { name: "bench smoke", run: bench_smoke },
            Stage { name: "bench faults", run: bench_faults },
        ]);
    }
    if breadth == Breadth::Full {
        stages.extend([
            Stage { name: "benches", run: benches },
            Stage { name: "bench stores", run: bench_stores },
            Stage { name: "local embedder", run: local_embedder },
        ]);
    }
    stages
}

struct Gate {
    root: PathBuf,
    breadth: Breadth,
    nextest: PathBuf,
    deny: Option<PathBuf>,
    fuzz: Option<PathBuf>,
    /// What the stage `services` started; ends with the gate, whatever the other stages did.
    services: OnceCell<services::ForTests>,
}

/// Runs the stages in order and stops at the first that fails.
pub(crate) fn run(root: &Path, breadth: Breadth) -> Outcome {
    let mut report = Report::default();
    let mut gate = None;
    report.stage("prepare", || {
        gate = Some(prepare(root, breadth)?);
        Ok(())
    });
    for stage in stages(breadth) {
        match &gate {
            Some(gate) if report.failure.is_none() => report.stage(stage.name, || (stage.run)(gate)),
            _ => report.not_run(stage.name),
        }
    }
    println!("\n{}", report.table());
    // Nothing may follow the closing line; the table has named the stage.
    if report.failure.is_none() { Ok(()) } else { Err(Failure::Exit(1)) }
}

fn prepare(root: &Path, breadth: Breadth) -> Outcome<Gate> {
    let nextest = NEXTEST.find_or_install(root)?;
    let beyond_fast = |tool: Tool| match breadth {
        Breadth::Fast => Ok(None),
        Breadth::Gate | Breadth::Full => tool.find_or_install(root).map(Some),
    };
    let (deny, fuzz) = (beyond_fast(DENY)?, beyond_fast(CARGO_FUZZ)?);
    // Everything for every platform, from the lockfiles: later stages, and deny's offline look, need no network.
    process::run(process::cargo(root).args(["fetch", "--locked", "--quiet"]))?;
    let beyond = [(FUZZ, fuzz.is_some()), (embedder::MANIFEST, breadth == Breadth::Full)];
    for (manifest, _) in beyond.into_iter().filter(|(_, needed)| *needed) {
        process::run(process::cargo(root).args([
            "fetch",
            "--locked",
            "--quiet",
            "--manifest-path",
            manifest,
        ]))?;
    }
    Ok(Gate { root: root.to_owned(), breadth, nextest, deny, fuzz, services: OnceCell::new() })
}

fn format(gate: &Gate) -> Outcome {
    process::run(process::cargo(&gate.root).args(["fmt", "--all", "--check"]))?;
    for manifest in [FUZZ, embedder::MANIFEST] {
        process::run(process::cargo(&gate.root).args(["fmt", "--check", "--manifest-path", manifest]))?;
    }
    Ok(())
}

fn clippy(gate: &Gate) -> Outcome {
    let args =
        ["clippy", "--quiet", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    process::run(process::cargo(&gate.root).args(args))
}

/// A service that cannot be started fails the gate: no test is skipped.
fn services(gate: &Gate) -> Outcome {
    let up = services::ForTests::up(&gate.root)?;
    gate.services.set(up).map_err(|_| Failure::Failed("the services were started twice".to_owned()))
}

/// Unit tests, conformance, dependency graph and compile-fail.
fn tests(gate: &Gate) -> Outcome {
    let mut nextest = process::program(&gate.root, &gate.nextest);
    nextest.args(["nextest", "run", "--workspace", "--all-features", "--no-fail-fast"]);
    nextest.args(["--cargo-quiet", "--status-level", "slow", "--final-status-level", "fail"]);
    nextest.envs(gate.services.get().into_iter().flat_map(services::ForTests::env));
    process::run(more_cases(gate, &mut nextest))
}

fn doc_tests(gate: &Gate) -> Outcome {
    let mut tests = process::cargo(&gate.root);
    tests.args(["test", "--quiet", "--workspace", "--all-features", "--doc"]);
    process::run(more_cases(gate, &mut tests))
}

fn more_cases<'c>(gate: &Gate, command: &'c mut Command) -> &'c mut Command {
    if gate.breadth == Breadth::Full {
        command.env("PROPTEST_CASES", FULL_PROPTEST_CASES);
    }
    command
}

fn documentation(gate: &Gate) -> Outcome {
    let mut doc = process::cargo(&gate.root);
    doc.args(["doc", "--quiet", "--workspace", "--all-features", "--no-deps"]);
    process::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

fn deny(gate: &Gate) -> Outcome {
    let Some(deny) = &gate.deny else {
        return Err(Failure::Failed("cargo-deny was not prepared".to_owned()));
    };
    println!("  The advisory database cannot be reached offline, so advisories are not checked here.");
    let args = ["--offline", "--log-level", "error", "check", "licenses", "bans", "sources"];
    process::run(process::program(&gate.root, deny).args(args))
}

fn fuzz(gate: &Gate) -> Outcome {
    match &gate.fuzz {
        Some(tool) => fuzz::gate(&gate.root, tool),
        None => Err(Failure::Failed("cargo-fuzz was not prepared".to_owned())),
    }
}

fn bench_smoke(gate: &Gate) -> Outcome {
    bench_tenants::run(&gate.root, vec!["--smoke".into()])
}

/// A probe that never sounds proves nothing: each deliberate fault must be seen.
fn bench_faults(gate: &Gate) -> Outcome {
    for fault in bench_tenants::FAULTS {
        bench_tenants::expect_caught(&gate.root, fault)?;
        println!("  fault `{fault}` was caught");
    }
    Ok(())
}

/// Criterion's test mode: each bench once, unmeasured.
fn benches(gate: &Gate) -> Outcome {
    let args = ["bench", "--quiet", "--package", "loomflow-bench", "--benches", "--", "--test"];
    process::run(process::cargo(&gate.root).args(args))
}

/// The smoke load, and the load with a leak that must be seen, on every store there is.
fn bench_stores(gate: &Gate) -> Outcome {
    let file = gate.root.join("target").join("bench-tenants").join(format!("gate-{}.db", std::process::id()));
    let mut urls = vec![("sqlite", format!("sqlite:{}", file.display()))];
    for (name, url) in gate.services.get().into_iter().flat_map(services::ForTests::env) {
        match name {
            "LOOMFLOW_TEST_POSTGRES_URL" => urls.push(("postgres", url.to_owned())),
            "LOOMFLOW_TEST_REDIS_URL" => urls.push(("redis", url.to_owned())),
            "LOOMFLOW_TEST_QDRANT_URL" => urls.push(("qdrant", format!("qdrant:{url}"))),
            _ => {}
        }
    }
    let outcome = bench_tenants::on_every_store(&gate.root, &urls);
    for end in ["", "-wal", "-shm"] {
        let path = format!("{}{end}", file.display());
        // It is there if the load came so far.
        let _ = std::fs::remove_file(path);
    }
    outcome
}

fn local_embedder(gate: &Gate) -> Outcome {
    match &gate.deny {
        Some(deny) => embedder::gate(&gate.root, deny),
        None => Err(Failure::Failed("cargo-deny was not prepared".to_owned())),
    }
}

#[derive(Debug, Default)]
struct Report {
    rows: Vec<Row>,
    failure: Option<&'static str>,
}

#[derive(Debug)]
struct Row {
    name: &'static str,
    took: Option<Duration>,
    passed: bool,
}

impl Report {
    fn stage(&mut self, name: &'static str, run: impl FnOnce() -> Outcome) {
        println!("==> {name}");
        let began = Instant::now();
        let outcome = run();
        let took = began.elapsed();
        let passed = outcome.is_ok();
        println!("<== {name}: {} after {}", if passed { "passed" } else { "FAILED" }, minutes(took));
        if let Err(Failure::Failed(why) | Failure::Usage(why)) = outcome {
            println!("    {why}");
        }
        if !passed {
            self.failure = Some(name);
        }
        self.rows.push(Row { name, took: Some(took), passed });
    }

    fn not_run(&mut self, name: &'static str) {
        self.rows.push(Row { name, took: None, passed: false });
    }

    /// The rows, the sum, and the plain closing line.
    fn table(&self) -> String {
        let mut text = format!("{:<16} {:<8} {:>9}\n", "stage", "result", "time");
        for row in &self.rows {
            let (result, took) = match (row.took, row.passed) {
                (Some(took), true) => ("passed", minutes(took)),
                (Some(took), false) => ("FAILED", minutes(took)),
                (None, _) => ("not run", String::new()),
            };
            text.push_str(format!("{:<16} {result:<8} {took:>9}", row.name).trim_end());
            text.push('\n');
        }
        let total = self.rows.iter().filter_map(|row| row.took).sum();
        text.push_str(&format!("{:<16} {:<8} {:>9}\n\n", "total", "", minutes(total)));
        let passed = self.rows.iter().filter(|row| row.passed).count();
        let failed = self.rows.iter().filter(|row| row.took.is_some() && !row.passed).count();
        text.push_str(&format!("{passed} passed, {failed} failed"));
        text
    }
}

fn minutes(took: Duration) -> String {
    format!("{:.2} min", took.as_secs_f64() / 60.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_the_failure_and_what_was_not_run() {
        let mut report = Report::default();
        report.stage("one", || Ok(()));
        report.stage("two", || Err(Failure::Failed("because".to_owned())));
        report.not_run("three");
        assert_eq!(report.failure, Some("two"));
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[1].starts_with("one") && lines[1].contains("passed"), "{table}");
        assert!(lines[2].starts_with("two") && lines[2].contains("FAILED"), "{table}");
        assert_eq!(lines[3], "three            not run");
        assert_eq!(lines.last(), Some(&"1 passed, 1 failed"));
    }

    #[test]
    fn each_breadth_contains_the_narrower_one() {
        let names = |b| stages(b).into_iter().map(|s| s.name).collect::<Vec<_>>();
        let (fast, gate, full) = (names(Breadth::Fast), names(Breadth::Gate), names(Breadth::Full));
        assert_eq!(fast, ["format", "clippy", "tidy", "services", "tests"]);
        assert_eq!(gate[..fast.len()], fast[..]);
        assert_eq!(full[..gate.len()], gate[..]);
    }
}
