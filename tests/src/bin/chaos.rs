//! `chaos`: real processes on one ledger, killed, cut off and set back in time. The other processes are this program, too.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use loomflow_tests::chaos::{self, Failed, Kind, Memory, Options, Report};
use parking_lot::Mutex;

/// Kills, cuts and turns back the clocks of processes that share a store, and judges what is left.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask chaos")]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// A store: `ledger:` with inmemory, sqlite, postgres or redis, or `memory:` with sqlite, postgres, redis or qdrant. Every
    /// store when there is none.
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
    /// The longest lease, in seconds: what is waited for at the end of each round, and twice what the processes have to get all
    /// their turns going at once. Long enough for a machine of two cores when it is not given.
    #[arg(long)]
    lease: Option<u64>,
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
    let stores = stores(&args.store)?;
    let program = std::env::current_exe()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let options = Options::new(args.processes, args.turns)
        .with_seconds(args.seconds)
        .with_seed(args.seed)
        .with_fault(args.fault.clone());
    let options = match args.lease {
        Some(seconds) => options.with_lease(Duration::from_secs(seconds)),
        None => options,
    };
    let mut reports: Vec<Report> = Vec::new();
    for store in stores {
        let report = match store {
            Store::Memory(kind) => {
                let worker = program.with_file_name(format!("memory_worker{}", std::env::consts::EXE_SUFFIX));
                eprintln!("  memory:{kind}: killing for {} s", args.seconds);
                chaos::memory(kind, &worker, args.seconds)
            }
            Store::Ledger(kind) => {
                let told = Mutex::new(Instant::now());
                let say = |line: &str| {
                    let mut last = told.lock();
                    if last.elapsed() >= Duration::from_secs(3) {
                        *last = Instant::now();
                        eprintln!("  ledger:{kind}: {line}");
                    }
                };
                runtime.block_on(chaos::ledger(kind, &program, &options, &say))?
            }
        };
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

#[derive(Clone, Copy, Debug)]
enum Store {
    Ledger(Kind),
    Memory(Memory),
}

fn stores(names: &[String]) -> Result<Vec<Store>, Failed> {
    if names.is_empty() {
        let ledgers = Kind::ALL.into_iter().map(Store::Ledger);
        return Ok(ledgers.chain(Memory::ALL.into_iter().map(Store::Memory)).collect());
    }
    let one = |name: &String| match name.split_once(':') {
        Some(("ledger", kind)) => kind.parse().map(Store::Ledger),
        Some(("memory", kind)) => kind.parse().map(Store::Memory),
        _ => Err(format!("there is no store `{name}`; write `ledger:sqlite` or `memory:sqlite`, say")),
    };
    names.iter().map(|name| one(name).map_err(Failed::new)).collect()
}
