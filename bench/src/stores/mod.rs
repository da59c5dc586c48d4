//! What a memory store does by itself, without an agent around it: how fast it remembers, how fast it finds facts among
//! very many, and what the data of others costs a tenant. The binary `stores` is the door.

mod floor;
mod load;
mod report;
mod world;

use std::time::Duration;

use clap::{Parser, ValueEnum};
use loomflow::resolve;
use loomflow_core::Result;

pub use self::report::{Facts, Floor, Noise, Rate, Report};
use self::world::World;

/// Measures one memory store.
#[derive(Clone, Debug, Parser)]
#[allow(clippy::exhaustive_structs, reason = "a command line")]
pub struct Args {
    /// The store: `inmemory`, `sqlite:PATH`, `postgres://…`, `redis://…`, `qdrant:http://…`.
    #[arg(long)]
    pub memory: String,
    /// What to measure; everything by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Part>,
    /// Writers at the same time.
    #[arg(long, default_value_t = 16)]
    pub writers: usize,
    /// How long they remember, in seconds.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Components of each episode's vector; 0 for none.
    #[arg(long, default_value_t = 256)]
    pub dimensions: usize,
    /// How many facts there are among which some are recalled.
    #[arg(long, default_value_t = 100_000)]
    pub facts: u64,
    /// Whose they are.
    #[arg(long, default_value_t = 10_000)]
    pub users: u64,
    /// How many episodes of others lie around a tenant's own, one measurement for each.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000])]
    pub foreign: Vec<u64>,
    /// Queries of each measurement.
    #[arg(long, default_value_t = 1_000)]
    pub queries: u64,
    /// The program `pgbench`, for the floor of PostgreSQL.
    #[arg(long, default_value = "pgbench")]
    pub pgbench: std::path::PathBuf,
    /// Leaves what was written where it is.
    #[arg(long)]
    pub keep: bool,
    /// No progress.
    #[arg(long)]
    pub quiet: bool,
    /// Where the report goes as JSON.
    #[arg(long)]
    pub json: Option<std::path::PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(clippy::exhaustive_enums, reason = "a command line")]
pub enum Part {
    /// Concurrent writers.
    Remembers,
    /// The same rows without us.
    Floor,
    /// Facts among many.
    Facts,
    /// One relevant episode among those of others.
    Foreign,
}

/// Measures.
///
/// # Errors
///
/// Whatever the store fails with, and what the resolver says of the URL; nothing repeats it.
pub async fn measure(args: &Args) -> Result<Report> {
    let store = resolve::memory(args.memory.as_str()).await?;
    let world = World::new(store, args)?;
    let wanted = |part: Part| args.only.is_empty() || args.only.contains(&part);
    let mut report = Report::new(world.store_name(), args);
    if wanted(Part::Remembers) {
        report.remembers = Some(world.remember(Duration::from_secs(args.seconds)).await?);
    }
    if wanted(Part::Floor) {
        report.floor = floor::measure(args).await?;
    }
    if wanted(Part::Facts) {
        report.facts = Some(world.facts().await?);
    }
    if wanted(Part::Foreign) {
        for foreign in &args.foreign {
            report.foreign.push(world.foreign(*foreign).await?);
        }
    }
    if !args.keep {
        world.clear().await?;
    }
    Ok(report)
}
