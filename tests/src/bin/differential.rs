//! `differential`: a store against the oracle, for as many operations as you like.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use loomflow::resolve;
use loomflow_tests::differential::{Options, Report, check};

/// Compares random histories on a memory store with a naive oracle.
#[derive(Debug, Parser)]
struct Args {
    /// The store: `inmemory`, `sqlite:PATH`, `postgres://…`, `redis://…`, `qdrant:http://…`.
    #[arg(long)]
    backend: String,
    /// At least so many operations.
    #[arg(long, default_value_t = 20_000)]
    ops: u64,
    /// Which histories.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The first of them: what a failure names.
    #[arg(long, default_value_t = 0)]
    case: u64,
}

fn main() -> ExitCode {
    match compare(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("differential: {why}");
            ExitCode::FAILURE
        }
    }
}

fn compare(args: &Args) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("the runtime cannot start: {e}"))?;
    let store = runtime.block_on(resolve::memory(args.backend.as_str())).map_err(|e| e.to_string())?;
    let options = Options::for_operations(args.seed, args.ops).with_first_case(args.case);
    let began = Instant::now();
    let mut told = began;
    let report = check(&runtime, &store, &options, |report| {
        if told.elapsed() >= Duration::from_secs(2) {
            told = Instant::now();
            say(report, began);
        }
    });
    say(report.map_err(|failure| format!("{failure:?}"))?, began);
    println!("{} answered as the oracle did (seed {})", store.store_name(), args.seed);
    Ok(())
}

fn say(report: Report, began: Instant) {
    let Report { operations, cases, .. } = report;
    eprintln!("  {operations} operations in {cases} cases, {:.1} s", began.elapsed().as_secs_f64());
}
