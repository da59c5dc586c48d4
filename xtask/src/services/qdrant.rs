//! The service `qdrant`: Qdrant's own engine behind its gRPC service, built from `xtask/services/qdrant`.
//!
//! No package registry has the server; its engine is a library. The first build takes minutes, and cargo keeps it: what is
//! built again is what changed. Data is begun anew with each start.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::user::RunsAs;
use super::{Launch, Room, Service, answers, unusable, wait};
use crate::process;
use crate::{Failure, Outcome};

const PROGRAM: &str = "loomflow-qdrant-service";
/// With its lockfile, everything the program is made of.
const SOURCES: [&str; 7] = [
    "Cargo.toml",
    "Cargo.lock",
    "src/main.rs",
    "src/collections.rs",
    "src/engine.rs",
    "src/points.rs",
    "src/wire.rs",
];
/// A cold build on a busy machine.
const BUILD: Duration = Duration::from_secs(3_600);

/// See the module.
#[derive(Debug)]
pub(super) struct Qdrant;

impl Qdrant {
    fn project(room: &Room<'_>) -> PathBuf {
        room.root.join("xtask/services/qdrant")
    }

    fn program(room: &Room<'_>) -> PathBuf {
        room.home().join("build/release").join(PROGRAM)
    }

    fn data(room: &Room<'_>) -> PathBuf {
        room.home().join("data")
    }
}

impl Service for Qdrant {
    fn name(&self) -> &'static str {
        "qdrant"
    }

    fn env_override(&self) -> &'static str {
        "LOOMFLOW_TEST_QDRANT_URL"
    }

    fn made_of(&self, room: &Room<'_>) -> Outcome<Vec<PathBuf>> {
        Ok(SOURCES.iter().map(|name| Self::project(room).join(name)).collect())
    }

    fn install(&self, room: &Room<'_>) -> Outcome {
        let home = room.home();
        std::fs::create_dir_all(&home).map_err(|e| unusable(&home, &e))?;
        let cargo = process::find("cargo").ok_or_else(|| {
            let message = format!(
                "the service `qdrant` is built with cargo; or let {} name a server",
                self.env_override()
            );
            Failure::Failed(message)
        })?;
        let mut command = process::program(&Self::project(room), cargo);
        // Cargo itself knows whether anything changed, and is done at once when nothing did.
        command.args(["build", "--release", "--locked", "--quiet", "--target-dir"]).arg(home.join("build"));
        wait::run(&mut command, "cargo builds the service `qdrant` (some minutes the first time)", BUILD)
    }

    fn programs(&self, room: &Room<'_>) -> Vec<(&'static str, PathBuf)> {
        vec![(PROGRAM, Self::program(room))]
    }

    fn prepare(&self, room: &Room<'_>, runs_as: &RunsAs) -> Outcome {
        let data = Self::data(room);
        runs_as.empty_dir(&data).map_err(|e| unusable(&data, &e))
    }

    fn launch(&self, room: &Room<'_>, port: u16) -> Outcome<Launch> {
        let mut launch = Launch::new(Self::program(room));
        launch.args.extend([OsString::from("--dir"), Self::data(room).into()]);
        launch.args.extend([OsString::from("--listen"), format!("127.0.0.1:{port}").into()]);
        Ok(launch)
    }

    fn url(&self, port: u16) -> String {
        format!("http://127.0.0.1:{port}")
    }

    fn healthy(&self, url: &str) -> bool {
        answers::http2(url)
    }
}
