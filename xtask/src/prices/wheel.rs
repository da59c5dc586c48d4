//! The price list out of the pinned wheel.

use std::path::{Path, PathBuf};

use crate::wheel::Wheel;
use crate::{Failure, Outcome};

/// The list's place in the wheel.
const MEMBER: &str = "litellm/model_prices_and_context_window_backup.json";

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
        let wheel = self.wheel().download(root, &dir);
        wheel
            .and_then(|wheel| Wheel::unpack(root, &wheel, &dir, &[MEMBER]))
            .map_err(|failure| with_advice(failure, self))?;
        Ok(dir.join(MEMBER))
    }

    /// Wheels differ by platform in their native part; one of them is pinned, wherever this runs.
    fn wheel(&self) -> Wheel {
        Wheel {
            package: "litellm",
            version: self.version,
            sha256: self.sha256,
            platform: "manylinux_2_28_x86_64",
            python: "3.12",
        }
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
    fn a_failure_names_the_way_without_a_network() {
        let pin = Pin { version: "1.2.3", date: "2026-01-31", sha256: "abc" };
        let Failure::Failed(why) = with_advice(Failure::Failed("`pip` ended with 1".to_owned()), &pin) else {
            panic!("the kind of failure changed");
        };
        assert!(why.contains("--from FILE --version 1.2.3 --date 2026-01-31"), "{why}");
    }
}
