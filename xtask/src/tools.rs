//! What the gate needs beyond the toolchain: found on `PATH` or in `target/tools`, installed there otherwise.

use std::path::{Path, PathBuf};

use crate::process;
use crate::{Failure, Outcome};

/// A cargo subcommand that the gate uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    /// The binary's and the package's name.
    pub(crate) name: &'static str,
    /// The version that is installed when there is none.
    pub(crate) version: &'static str,
    /// How long that takes on two cores, for the reader who waits.
    pub(crate) takes: &'static str,
}

/// Runs the tests, each in a process of its own.
pub(crate) const NEXTEST: Tool = Tool { name: "cargo-nextest", version: "0.9.143", takes: "3 to 5 minutes" };

/// Checks licences, bans and sources.
pub(crate) const DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2", takes: "2 to 4 minutes" };

/// Builds and runs fuzz targets.
pub(crate) const CARGO_FUZZ: Tool = Tool { name: "cargo-fuzz", version: "0.13.2", takes: "half a minute" };

impl Tool {
    /// The tool's path; builds it into `target/tools` first if it is nowhere.
    pub(crate) fn find_or_install(self, root: &Path) -> Outcome<PathBuf> {
        let tools = root.join("target").join("tools");
        if let Some(found) = self.find(&tools) {
            println!("  {}: {}", self.name, found.display());
            return Ok(found);
        }
        println!("  {} {}: not found; building it once (about {})", self.name, self.version, self.takes);
        let mut install = process::cargo(root);
        install.args(["install", "--locked", "--debug", "--version", self.version, "--root"]);
        install.arg(&tools).arg(self.name);
        // The toolchain file's directory decides the toolchain; the build goes where it disturbs no other.
        install.env("CARGO_TARGET_DIR", tools.join("build"));
        process::run(&mut install)?;
        self.find(&tools).ok_or_else(|| {
            Failure::Failed(format!("{} was installed and is not in {}", self.name, tools.display()))
        })
    }

    fn find(self, tools: &Path) -> Option<PathBuf> {
        Some(tools.join("bin").join(self.name))
            .filter(|file| file.is_file())
            .or_else(|| process::find(self.name))
    }
}
