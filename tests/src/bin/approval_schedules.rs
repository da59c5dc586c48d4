//! `approval-schedules`: random schedules of approvals, as many as you like.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use loomflow::local::InMemoryApprovalStore;
use loomflow_core::{ApprovalStore, Clock};
use loomflow_tests::schedules::{Options, Report, check};

/// Plays random schedules of approvals against a real agent and judges each with a naive oracle.
#[derive(Debug, Parser)]
struct Args {
    /// How many.
    #[arg(long, default_value_t = 100_000)]
    schedules: u64,
    /// Which.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The first of them: what a failure names.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Where approvals are kept: `inmemory`.
    #[arg(long, default_value = "inmemory")]
    store: String,
}

fn main() -> ExitCode {
    match play(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("approval-schedules: {why}");
            ExitCode::FAILURE
        }
    }
}

fn play(args: &Args) -> Result<(), String> {
    if args.store != "inmemory" {
        return Err(format!(
            "{:?} is no store of approvals that is known here; there is: inmemory",
            args.store
        ));
    }
    let open = |clock: Arc<dyn Clock>| -> Arc<dyn ApprovalStore> {
        Arc::new(InMemoryApprovalStore::new().with_clock(clock))
    };
    let began = Instant::now();
    let mut told = began;
    let options = Options::new(args.seed, args.schedules).with_first(args.first);
    let report = check(options, &open, |report| {
        if told.elapsed() >= Duration::from_secs(5) {
            told = Instant::now();
            eprintln!("  {} schedules, {:.0} s", report.schedules, began.elapsed().as_secs_f64());
        }
    });
    let Report { schedules, tally, .. } = report.map_err(|failure| format!("{failure:?}"))?;
    println!(
        "{schedules} schedules of seed {} in {:.1} s: {tally:?}",
        args.seed,
        began.elapsed().as_secs_f64()
    );
    println!("executions without a live matching approval 0, approved but lost 0, run twice 0");
    Ok(())
}
