//! `ledgers`: how many durable operations a ledger does in a second. One that is reserved, marked sent and closed is three.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    BudgetConfig, Charge, Epoch, Error, ErrorKind, Hold, HoldKey, Identity, Ledger, Namespace, Reserve,
    Result, RunId, Scope, Usage, UserId,
};

/// Measures one ledger.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// The ledger: `inmemory`, `sqlite:PATH`, `postgres://…`, `redis://…`; all but the first need their feature, `ledger-…`.
    #[arg(long)]
    ledger: String,
    /// Calls at the same time, each by users of its own.
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// How long, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Users of each call.
    #[arg(long, default_value_t = 64)]
    users: usize,
    /// One cap that all users share, beside each user's.
    #[arg(long)]
    global_cap: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("ledgers: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|e| Error::new(ErrorKind::Internal, "the runtime cannot start").with_source(e))?;
    runtime.block_on(measure(args))
}

async fn measure(args: &Args) -> Result<()> {
    let budget = BudgetConfig::new().per_user_max_tokens(1 << 50);
    let budget = if args.global_cap { budget.max_tokens(1 << 52) } else { budget };
    let ledger = loomflow::resolve::ledger(args.ledger.clone(), budget).await?;
    let namespace = Namespace::new(format!("bench-{:016x}", rand::random::<u64>()))?;
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let callers: Vec<_> = (0..args.concurrency)
        .map(|caller| {
            let (ledger, namespace, users) = (ledger.clone(), namespace.clone(), args.users.max(1));
            tokio::spawn(async move {
                let scopes: Vec<Scope> = (0..users)
                    .map(|n| scope(&namespace, &format!("user_{caller}_{n}")))
                    .collect::<Result<_>>()?;
                let mut took = Vec::new();
                for scope in scopes.iter().cycle() {
                    if Instant::now() >= until {
                        break;
                    }
                    call(&*ledger, scope, &mut took).await?;
                }
                Ok::<_, Error>(took)
            })
        })
        .collect();
    let began = Instant::now();
    let mut took = Vec::new();
    for caller in callers {
        let done =
            caller.await.map_err(|e| Error::new(ErrorKind::Internal, "a caller failed").with_source(e))?;
        took.extend(done?);
    }
    let seconds = began.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |part: usize| took.get(took.len() * part / 100).map_or(0.0, |d| d.as_secs_f64() * 1e3);
    println!(
        "{}: {:.0} operations/s at concurrency {}{}; an operation takes p50 {:.2} ms, p99 {:.2} ms",
        ledger.store_name(),
        took.len() as f64 / seconds,
        args.concurrency,
        if args.global_cap { ", one cap for all" } else { "" },
        at(50),
        at(99),
    );
    Ok(())
}

/// One model call: reserved, sent, closed.
async fn call(ledger: &dyn Ledger, scope: &Scope, took: &mut Vec<Duration>) -> Result<()> {
    let hold = Hold::tokens(HoldKey::new(RunId::from_u128(rand::random()), 0), 100, 50);
    let began = Instant::now();
    let Reserve::Held(held) = ledger.reserve(scope, &hold).await? else {
        return Err(Error::new(ErrorKind::Internal, "a cap that nobody reaches refused"));
    };
    let reserved = Instant::now();
    ledger.sent(scope, held.id).await?;
    let sent = Instant::now();
    ledger.close(scope, held.id, Charge::Used { usage: Usage::new(100, 20), estimated: false }).await?;
    took.extend([reserved - began, sent - reserved, sent.elapsed()]);
    Ok(())
}

fn scope(namespace: &Namespace, user: &str) -> Result<Scope> {
    Ok(assume_scope(namespace.clone(), Identity::User(UserId::new(user)?), Epoch::ZERO))
}
