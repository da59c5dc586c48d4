//! `tenants`: the load driver's door. `cargo xtask bench-tenants` builds it in release mode and runs it.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

use std::process::ExitCode;

use clap::Parser as _;
use loomflow_bench::config::{Args, Config, Profile};
use loomflow_bench::{fixed, full};
use loomflow_bench::progress::Progress;
use loomflow_bench::report::Report;

const VIOLATION: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    let config = match args.resolve() {
        Ok(config) => config,
        Err(why) => {
            eprintln!("tenants: {why}");
            return ExitCode::from(USAGE);
        }
    };
    match drive(&args, config) {
        Ok(report) if report.failures.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(VIOLATION),
        Err(why) => {
            eprintln!("tenants: {why}");
            ExitCode::from(VIOLATION)
        }
    }
}

fn drive(args: &Args, config: Config) -> Result<Report, String> {
    let runtime = runtime(config.threads).map_err(|e| format!("the runtime cannot start: {e}"))?;
    let progress = Progress::new((config.users * config.turns) as u64, config.quiet);
    let report = runtime.block_on(async {
        match config.profile {
            Profile::Full => full::run(&config, &progress).await.map(|(report, _)| report).map_err(|e| e.to_string()),
            _ => fixed::run(&config, &progress).await.map_err(|e| e.to_string()),
        }
    })?;
    for failure in &report.failures {
        eprintln!("FAILED: {failure}");
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(report)
}

fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_time().build()
}
