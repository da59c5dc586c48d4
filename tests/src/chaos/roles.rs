//! What the binary `chaos` does when it is one of the other processes.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use loomflow_core::{BudgetConfig, Clock, Ledger};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::Failed;
use super::children::{Begin, Tell};
use super::provider::{Manners, Provider};
use super::stores::open;
use super::worker::{Strings, work};

/// How often a process says how far it is.
const SAY_EVERY: Duration = Duration::from_millis(100);
/// How often a worker tries to open its ledger, whose server may just be down.
const ATTEMPTS: u32 = 120;

#[derive(Debug, Deserialize)]
struct Opening {
    invoice: PathBuf,
    manners: Manners,
}

/// The provider, until it is killed or its driver is gone.
///
/// # Errors
///
/// When it cannot begin.
pub fn provider() -> Result<(), Failed> {
    let mut lines = io::stdin().lines();
    let opening: Opening = first(&mut lines)?;
    let provider = Provider::new(&opening.invoice, opening.manners)?;
    let runtime = runtime()?;
    let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
    say_line(&listener.local_addr()?.to_string())?;
    let serving = provider.clone();
    runtime.spawn(async move { serving.serve(listener).await });
    end_with_driver(lines, |_| {});
    loop {
        say(&provider.seen())?;
        runtime.block_on(async { tokio::time::sleep(SAY_EVERY).await });
    }
}

/// A worker, until its job is done.
///
/// # Errors
///
/// When its job cannot be done.
pub fn worker() -> Result<(), Failed> {
    let mut lines = io::stdin().lines();
    let Begin { job, ledger, cap, per_user } = first(&mut lines)?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(io::Error::from)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(io::Error::from)?;
    let strings = Arc::new(Strings::default());
    let pulled = strings.clone();
    end_with_driver(lines, move |told| match told {
        Tell::Clock(seconds) => pulled.clock.turn_to(seconds),
        Tell::Stop => pulled.stop.store(true, Ordering::SeqCst),
    });
    let config = BudgetConfig::new().max_tokens(cap).per_user_max_tokens(per_user);
    let runtime = runtime()?;
    runtime.block_on(async {
        let ledger = reach(&ledger, &config, &strings.clock).await?;
        let working = tokio::spawn(work(job, ledger, strings.clone()));
        while !working.is_finished() {
            say(&*strings.progress.lock())?;
            tokio::time::sleep(SAY_EVERY).await;
        }
        working.await.map_err(|e| Failed::new(e.to_string()))??;
        say(&*strings.progress.lock())?;
        Ok(())
    })
}

async fn reach(
    url: &str,
    config: &BudgetConfig,
    clock: &Arc<super::worker::TurnedClock>,
) -> Result<Arc<dyn Ledger>, Failed> {
    let mut tried = 0;
    loop {
        match open(url, config.clone(), clock.clone() as Arc<dyn Clock>).await {
            Ok(ledger) => return Ok(ledger),
            Err(error) if tried == ATTEMPTS => return Err(error.into()),
            Err(_) => tried += 1,
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

type Lines = io::Lines<io::StdinLock<'static>>;

fn first<T: for<'de> Deserialize<'de>>(lines: &mut Lines) -> Result<T, Failed> {
    let line = lines.next().ok_or_else(|| Failed::new("nobody said what to do"))??;
    serde_json::from_str(&line).map_err(|e| Failed::new(format!("what to do is unclear: {e}")))
}

/// Hears what the driver says, and ends the process with it: nobody is left behind.
#[allow(clippy::disallowed_methods, reason = "nobody is left whom a record would be for")]
fn end_with_driver(mine: Lines, mut told: impl FnMut(Tell) + Send + 'static) {
    // The lock of the first reader is given up, so that another thread can read on.
    drop(mine);
    std::thread::spawn(move || {
        for line in io::stdin().lines() {
            let Ok(line) = line else { break };
            if let Ok(what) = serde_json::from_str(&line) {
                told(what);
            }
        }
        std::process::exit(1);
    });
}

fn say(what: &impl Serialize) -> Result<(), Failed> {
    let line = serde_json::to_string(what).map_err(|e| Failed::new(e.to_string()))?;
    say_line(&line)
}

fn say_line(line: &str) -> Result<(), Failed> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
