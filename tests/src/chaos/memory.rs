//! Chaos with a memory: what the tests of several processes do to it, for as long as there is time.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::report::Report;
use crate::killing::{Toll, the_client, the_server};
use crate::own::{OwnPostgres, OwnRedis};
use crate::place::{OwnPlace, Place};

/// A memory that chaos is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Memory {
    /// In a file.
    Sqlite,
    /// On PostgreSQL.
    Postgres,
    /// On Redis.
    Redis,
    /// On Qdrant: the service, which nobody restarts.
    Qdrant,
}

impl Memory {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sqlite, Self::Postgres, Self::Redis, Self::Qdrant];

    fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Qdrant => "qdrant",
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|memory| memory.name() == text).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|memory| memory.name()).collect();
            format!("there is no memory `{text}`; there are: {}", known.join(", "))
        })
    }
}

/// Kills processes that write to a memory, and its server, until the time is over. `program` is the binary
/// `memory_worker`.
///
/// # Panics
///
/// When a server or a process cannot be started.
pub fn memory(kind: Memory, program: &Path, seconds: u64) -> Report {
    let began = Instant::now();
    let mut report = Report { store: format!("memory:{kind}"), ..Report::default() };
    // What is half there panics, and is a finding like any other.
    let killed =
        std::thread::scope(|scope| scope.spawn(|| kill(kind, program, Duration::from_secs(seconds))).join());
    match killed {
        Ok(toll) => report.memory(toll),
        Err(panic) => {
            let why = panic.downcast_ref::<String>().cloned();
            report.verdict.lost += 1;
            report.verdict.told.push(why.unwrap_or_else(|| "a write is neither there nor not".to_owned()));
        }
    }
    report.seconds = began.elapsed().as_secs_f64();
    report
}

fn kill(kind: Memory, program: &Path, time: Duration) -> Toll {
    let began = Instant::now();
    let until = |end: Duration| move |round| round == 0 || began.elapsed() < end;
    let served = |mut place: OwnPlace| {
        let mut toll = the_client(&|| place.worker(), &until(time / 2));
        toll.add(the_server(&mut place, &until(time)));
        toll
    };
    match kind {
        Memory::Sqlite => {
            let place = Place::sqlite(program);
            the_client(&|| place.worker(), &until(time))
        }
        Memory::Qdrant => {
            let place = Place::service(program, "qdrant", "qdrant:");
            the_client(&|| place.worker(), &until(time))
        }
        Memory::Postgres => served(OwnPlace::start(program, OwnPostgres::start())),
        Memory::Redis => served(OwnPlace::start(program, OwnRedis::start(true))),
    }
}
