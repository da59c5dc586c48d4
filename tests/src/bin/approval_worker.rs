//! `approval_worker`: a process of its own that does to a store of approvals what it is told, so that tests can have several
//! at once, and kill them. The first line it reads is the store's URL; each other line is an order, and is answered by a line.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;

use loomflow::resolve;
use loomflow_tests::approvals;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("approval_worker: {why}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let mut lines = io::stdin().lock().lines();
    let url = lines.next().ok_or("no URL came")?.map_err(|e| e.to_string())?;
    let store = runtime.block_on(resolve::approvals(url)).map_err(|e| format!("{e:?}"))?;
    for line in lines {
        let answer = runtime.block_on(approvals::obey(&*store, &line.map_err(|e| e.to_string())?));
        let mut out = io::stdout().lock();
        writeln!(out, "{answer}").and_then(|()| out.flush()).map_err(|e| e.to_string())?;
    }
    Ok(())
}
