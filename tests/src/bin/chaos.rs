//! `chaos`: real processes on one ledger, killed, cut off and set back in time. The other processes are this program, too.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use loomflow_tests::chaos::{self, Failed, Kind, Options, Report};
use parking_lot::Mutex;

/// Kills, cuts and turns back the clocks of processes that share a store, and judges what is left.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask chaos")]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// A store: `ledger:` and one of inmemory, sqlite, postgres, redis. All of them when there is none.
    #[arg(long)]
    store: Vec<String>,
    /// How long things go wrong, for each store.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Which things.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Worker processes at a time.
    #[arg(long, default_value_t = 4)]
    processes: u64,
    /// Turns at once in each of them.
    #[arg(long, default_value_t = 1_000)]
    turns: u64,
    /// Where the reports go, as a JSON array.
    #[arg(long)]
    json: Option<PathBuf>,
    /// What to break on purpose; needs the feature `fault-injection`.
    #[arg(long, hide = true)]
    fault: Option<String>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Role {
    /// The provider of models.
    #[command(hide = true)]
    Provider,
    /// A worker.
    #[command(hide = true)]
    Worker,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.role {
        Some(Role::Provider) => chaos::provider().map(|()| 0),
        Some(Role::Worker) => chaos::worker().map(|()| 0),
        None => drive(&args),
    };
    match outcome {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(why) => {
            eprintln!("chaos: {why}");
            ExitCode::from(2)
        }
    }
}

/// Returns the number of findings.
fn drive(args: &Args) -> Result<u64, Failed> {
    let kinds = kinds(&args.store).map_err(Failed::from)?;
    let program = std::env::current_exe()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let options = Options::new(args.processes, args.turns)
        .with_seconds(args.seconds)
        .with_seed(args.seed)
        .with_fault(args.fault.clone());
    let mut reports: Vec<Report> = Vec::new();
    for kind in kinds {
        let told = Mutex::new(Instant::now());
        let say = |line: &str| {
            let mut last = told.lock();
            if last.elapsed() >= Duration::from_secs(3) {
                *last = Instant::now();
                eprintln!("  ledger:{kind}: {line}");
            }
        };
        let report = runtime.block_on(chaos::ledger(kind, &program, &options, &say))?;
        for told in &report.verdict.told {
            eprintln!("  {}: {told}", report.store);
        }
        reports.push(report);
    }
    eprintln!("\n{}", chaos::table(&reports));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&reports).map_err(std::io::Error::from)?;
        std::fs::write(path, text + "\n")?;
    }
    let findings = reports.iter().map(Report::findings).sum();
    eprintln!("{findings} findings");
    Ok(findings)
}

fn kinds(stores: &[String]) -> std::io::Result<Vec<Kind>> {
    if stores.is_empty() {
        return Ok(Kind::ALL.to_vec());
    }
    let one = |store: &String| {
        let name = store.strip_prefix("ledger:").unwrap_or(store);
        name.parse().map_err(std::io::Error::other)
    };
    stores.iter().map(one).collect()
}
