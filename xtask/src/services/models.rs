//! The service `models`: a server that speaks the wire of OpenAI, Anthropic and Cohere, and answers from `fixtures/models`.
//!
//! It is the npm package `@copilotkit/aimock`, at the version and the checksum of the lockfile beside this package.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::net;
use super::{Launch, Room, Service};
use crate::process;
use crate::{Failure, Outcome};

/// What npm reads; both are committed, and the second pins the package by its checksum.
const MANIFESTS: [&str; 2] = ["package.json", "package-lock.json"];
const CLI: &str = "node_modules/@copilotkit/aimock/dist/cli.js";
/// Written when an installation is complete; holds the lockfile it is of.
const STAMP: &str = "installed-lock.json";

/// See the module.
#[derive(Debug)]
pub(super) struct Models;

impl Models {
    fn pinned(room: &Room<'_>) -> PathBuf {
        room.root.join("xtask").join("services").join("models")
    }

    fn fixtures(room: &Room<'_>) -> PathBuf {
        room.root.join("fixtures").join("models")
    }
}

impl Service for Models {
    fn name(&self) -> &'static str {
        "models"
    }

    fn env_override(&self) -> &'static str {
        "LOOMFLOW_TEST_MODELS_URL"
    }

    fn made_of(&self, room: &Room<'_>) -> Outcome<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = MANIFESTS.iter().map(|name| Self::pinned(room).join(name)).collect();
        files.extend(json_files(&Self::fixtures(room))?);
        Ok(files)
    }

    fn install(&self, room: &Room<'_>) -> Outcome {
        let (pinned, home) = (Self::pinned(room), room.home());
        let lock = read(&pinned.join("package-lock.json"))?;
        let stamp = home.join(STAMP);
        if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == lock) && home.join(CLI).exists()
        {
            return Ok(());
        }
        let npm = find("npm")?;
        std::fs::create_dir_all(&home).map_err(|e| super::unusable(&home, &e))?;
        for name in MANIFESTS {
            let to = home.join(name);
            std::fs::copy(pinned.join(name), &to).map_err(|e| super::unusable(&to, &e))?;
        }
        let mut command = process::program(&home, npm);
        // `ci` installs exactly the lockfile, and refuses a package whose checksum is another.
        command.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]);
        super::wait::run(&mut command, "npm installs the service `models`", Duration::from_secs(300))?;
        std::fs::write(&stamp, lock).map_err(|e| super::unusable(&stamp, &e))
    }

    fn launch(&self, room: &Room<'_>, port: u16) -> Outcome<Launch> {
        let mut launch = Launch::new(find("node")?);
        let (cli, fixtures) = (room.home().join(CLI), Self::fixtures(room));
        launch.must_read.extend([cli.clone(), fixtures.clone()]);
        launch.args.push(cli.into());
        launch.args.extend(["--host", "127.0.0.1", "--port"].map(OsString::from));
        launch.args.push(port.to_string().into());
        // A request without a fixture is an error, and so is a fixture that cannot be understood.
        launch.args.extend(["--strict", "--validate-on-load", "--log-level", "warn"].map(OsString::from));
        launch.args.extend([OsString::from("--fixtures"), fixtures.into()]);
        Ok(launch)
    }

    fn url(&self, port: u16) -> String {
        format!("http://127.0.0.1:{port}")
    }

    fn healthy(&self, url: &str) -> bool {
        net::http_ok(url, "/health")
    }
}

fn find(program: &str) -> Outcome<PathBuf> {
    process::find(program).ok_or_else(|| {
        Failure::Failed(format!(
            "the service `models` needs {program}, which is not on PATH: install Node.js 20.15 or later with npm \
             (Debian: `apt-get install nodejs npm`), or let LOOMFLOW_TEST_MODELS_URL name a server that runs already"
        ))
    })
}

fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|e| super::unusable(path, &e))
}

fn json_files(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| super::unusable(dir, &e))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| super::unusable(dir, &e))?.path();
        if path.extension().is_some_and(|ext| ext == "json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
