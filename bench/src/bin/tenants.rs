//! `tenants`: the load driver's door. `cargo xtask bench-tenants` builds it in release mode and runs it.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use loomflow_bench::config::{Args, Config, Profile};
use loomflow_bench::progress::Progress;
use loomflow_bench::report::Report;
use loomflow_bench::system::Dump;
use loomflow_bench::{baseline, fixed, full, html, table};
use loomflow_core::ErrorKind;

const VIOLATION: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = args.resolve().map_err(|why| (USAGE, why)).and_then(|config| drive(&args, &config));
    match outcome {
        Ok(report) if report.failures.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(VIOLATION),
        Err((code, why)) => {
            eprintln!("tenants: {why}");
            ExitCode::from(code)
        }
    }
}

type Failed = (u8, String);

fn drive(args: &Args, config: &Config) -> Result<Report, Failed> {
    if let Some(path) = &args.baseline
        && !path.is_file()
    {
        // Told before anything is measured: a missing file should not cost a run.
        return Err((USAGE, format!("--baseline {}: there is no such file", path.display())));
    }
    let (mut report, dump) = measure(config)?;
    if let Some(path) = &args.baseline {
        report.failures.extend(baseline::regressions(path, &report).map_err(|why| (USAGE, why))?);
    }
    if config.quiet {
        report.failures.iter().for_each(|failure| eprintln!("FAILED: {failure}"));
    } else if args.json.as_deref() == Some(Path::new("/dev/stdout")) {
        // Stdout then carries the report and nothing else.
        eprint!("{}", table::render(&report));
    } else {
        print!("{}", table::render(&report));
    }
    write(args, &report, &dump).map_err(|why| (VIOLATION, why))?;
    Ok(report)
}

fn measure(config: &Config) -> Result<(Report, Dump), Failed> {
    let runtime =
        runtime(config.threads).map_err(|e| (VIOLATION, format!("the runtime cannot start: {e}")))?;
    let progress = Progress::new((config.users * config.turns) as u64, config.quiet);
    let measured = runtime.block_on(async {
        match config.profile {
            Profile::Full => full::run(config, &progress).await,
            Profile::Bare | Profile::Text | Profile::Tool => fixed::run(config, &progress).await,
        }
    });
    measured.map_err(|error| match error.kind() {
        ErrorKind::Config => (USAGE, error.to_string()),
        _ => (VIOLATION, format!("the load could not go on: {error}")),
    })
}

fn write(args: &Args, report: &Report, dump: &Dump) -> Result<(), String> {
    let json = serde_json::to_string_pretty(report).map_err(|e| e.to_string())? + "\n";
    let put =
        |path: &Path, text: &str| std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()));
    if let Some(path) = &args.json {
        put(path, &json)?;
    }
    if let Some(path) = &args.html {
        put(path, &html::page(report))?;
    }
    if let Some(dir) = &args.keep {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        put(&dir.join("report.json"), &json)?;
        let path = dir.join("audit.jsonl");
        dump.write(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()
}
