//! `cargo xtask`: the project's own commands. Dispatch only; each command is a room of its own.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line speaks on its streams")]
#![allow(clippy::disallowed_methods, reason = "reads what cargo tells its children: CARGO and PATH")]

mod baseline;
mod bench_tenants;
mod chaos;
mod embedder;
mod fuzz;
mod gate;
mod prices;
mod process;
mod services;
mod tidy;
mod tools;
mod wheel;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The gate: everything that must hold before a change is taken.
    Test {
        /// Only formatting, lints, house rules and tests: the inner loop.
        #[arg(long, conflicts_with = "full")]
        fast: bool,
        /// Adds the benches in test mode, the load on every store, the local embedder and many more property-test cases.
        #[arg(long)]
        full: bool,
    },
    /// Makes the embedded price table anew from the pinned release of litellm, or checks it.
    Prices(prices::Flags),
    /// House rules as code.
    Tidy,
    /// Real servers for tests, on loopback.
    Services {
        #[command(subcommand)]
        action: services::Action,
    },
    /// Feeds decoders with inputs nobody thought of, for a bounded time.
    Fuzz(fuzz::Flags),
    /// Builds the tenant load driver in release mode and runs it with the same flags.
    #[command(disable_help_flag = true)]
    BenchTenants {
        /// Flags of the driver; `--help` lists them. `--baseline FILE` compares the report with an older one.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Kills, cuts and turns back the clocks of processes on ledgers and stores, and judges what is left.
    #[command(disable_help_flag = true)]
    Chaos {
        /// Flags of the driver; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// Why a command ends with something other than 0.
#[derive(Debug)]
enum Failure {
    /// It ran, and the answer is no. Exit code 1.
    Failed(String),
    /// It could not be run as asked. Exit code 2.
    Usage(String),
    /// A child said everything already; its exit code is passed on.
    Exit(u8),
}

type Outcome<T = ()> = Result<T, Failure>;

fn main() -> ExitCode {
    let root = workspace_root();
    let outcome = match Cli::parse().command {
        Command::Test { fast, full } => gate::run(&root, gate::Breadth::from_flags(fast, full)),
        Command::Prices(flags) => prices::run(&root, flags),
        Command::Tidy => tidy::run(&root),
        Command::Fuzz(flags) => fuzz::run(&root, &flags),
        Command::Services { action } => services::run(&root, &action),
        Command::BenchTenants { args } => bench_tenants::run(&root, args),
        Command::Chaos { args } => chaos::run(&root, args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Exit(code)) => ExitCode::from(code),
        Err(Failure::Failed(why)) => {
            eprintln!("error: {why}");
            ExitCode::from(1)
        }
        Err(Failure::Usage(why)) => {
            eprintln!("error: {why}");
            ExitCode::from(2)
        }
    }
}

/// The workspace this binary was built from.
fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

/// The names of all commands, for the rule that documentation mentions no other.
fn command_names() -> Vec<String> {
    use clap::CommandFactory as _;
    Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect()
}
