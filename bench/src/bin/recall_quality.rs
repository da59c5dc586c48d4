//! `recall_quality`: how well a store finds what was said, by words, by vectors, and by both.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use loomflow::resolve;
use loomflow_bench::quality::{generate, measure, read_longmemeval};
use loomflow_local::HashEmbedder;

/// Measures recall against an exact answer key, without any language model.
#[derive(Debug, Parser)]
struct Args {
    /// The store: `inmemory`, `sqlite:PATH`, `postgres://…`, `redis://…`, `qdrant:http://…`.
    #[arg(long, default_value = "inmemory")]
    memory: String,
    /// A file of LongMemEval instead of generated haystacks.
    #[arg(long)]
    longmemeval: Option<PathBuf>,
    /// Only the first so many users or questions.
    #[arg(long, default_value_t = 100)]
    users: usize,
    /// Which haystacks are generated.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Components of the hashed vectors.
    #[arg(long, default_value_t = 256)]
    dimensions: usize,
    /// Where the report goes as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// No progress.
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("recall_quality: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let mut haystacks = match &args.longmemeval {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            read_longmemeval(&text)?
        }
        None => generate(args.seed, args.users),
    };
    haystacks.truncate(args.users);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("the runtime cannot start: {e}"))?;
    let report = runtime.block_on(async {
        let store = resolve::memory(args.memory.as_str()).await?;
        let embedder = HashEmbedder::with_dimensions(args.dimensions);
        Box::pin(measure(&*store, &embedder, &haystacks, args.quiet)).await
    });
    let report = report.map_err(|e| format!("{e:?}"))?;
    println!("{}", report.table());
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report).map_err(|e| e.to_string())?;
        std::fs::write(path, json + "\n").map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}
