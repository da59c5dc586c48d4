//! `ledger-oracle`: a ledger against the oracle, for as many sequences as you like.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

use std::cell::Cell;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use loomflow_tests::ledger_oracle::{Options, Report, check};

/// Compares random sequences on a ledger with a naive oracle.
#[derive(Debug, Parser)]
struct Args {
    /// The ledger: `inmemory`, `sqlite:PATH`, `postgres://…`, `redis://…`.
    #[arg(long)]
    store: String,
    /// How many sequences.
    #[arg(long, default_value_t = 3_000)]
    sequences: u32,
    /// Which sequences.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// In process only: keep so few users hot that they are evicted all the time.
    #[arg(long)]
    hot_users: Option<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut options = Options::for_sequences(args.seed, args.sequences);
    options.hot_users = args.hot_users;
    let began = Instant::now();
    let told = Cell::new(began);
    let say = |Report { sequences, operations, .. }: Report| {
        eprintln!(
            "  {operations} operations in {sequences} sequences, {:.1} s",
            began.elapsed().as_secs_f64()
        );
    };
    let progress = |report| {
        if told.get().elapsed() >= Duration::from_secs(10) {
            told.set(Instant::now());
            say(report);
        }
    };
    match check(&args.store, &options, progress) {
        Ok(report) => {
            say(report);
            let scheme = args.store.split(':').next().unwrap_or_default();
            println!("the ledger `{scheme}` answered as the oracle did (seed {})", args.seed);
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("ledger-oracle: {why}");
            ExitCode::FAILURE
        }
    }
}
