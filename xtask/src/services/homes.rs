//! Where programs and data of services are: in `target/services`, unless the user that they run as cannot enter that.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use super::unusable;
use super::user::RunsAs;
use crate::{Failure, Outcome};

/// The directory for the workspace in `root`: `dir`, or one in `/var/tmp` when the caller is root and `nobody` cannot enter
/// `root`, as when it is in root's own home.
pub(super) fn of(root: &Path, dir: &Path) -> PathBuf {
    if !RunsAs::whoever_can(Path::new("/bin/sh"), [root.join(".")]).is_root() {
        return dir.to_owned();
    }
    let mut hasher = DefaultHasher::new();
    root.hash(&mut hasher);
    Path::new("/var/tmp").join(format!("loomflow-services-{:016x}", hasher.finish()))
}

/// Makes a directory of [`of`] that others can enter. Anybody may write where it is: one that is there has to be the caller's own.
pub(super) fn make(dir: &Path) -> Outcome {
    match std::fs::DirBuilder::new().mode(0o755).create(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(unusable(dir, &error)),
        _ => {
            let found = std::fs::symlink_metadata(dir).map_err(|e| unusable(dir, &e))?;
            if !found.is_dir() || found.uid() != Uid::effective().as_raw() {
                return Err(Failure::Failed(format!("{} is somebody else's", dir.display())));
            }
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(dir, mode).map_err(|e| unusable(dir, &e))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Scratch;
    use super::*;

    fn mode(dir: &Path, mode: u32) {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn homes_are_elsewhere_only_where_the_server_could_not_go() {
        let scratch = Scratch::new("homes");
        let (root, dir) = (scratch.path().join("root"), scratch.path().join("root/target"));
        std::fs::create_dir_all(&dir).unwrap();
        mode(&root, 0o755);
        assert_eq!(of(&root, &dir), dir);
        mode(&root, 0o700);
        let elsewhere = of(&root, &dir);
        assert_eq!(elsewhere == dir, !Uid::effective().is_root(), "only root has to give way");
        assert_eq!(of(&root, &dir), elsewhere, "the same place each time");
    }

    #[test]
    fn a_home_is_made_once_and_never_through_a_link() {
        let scratch = Scratch::new("home");
        let home = scratch.path().join("home");
        for _ in 0..2 {
            make(&home).unwrap();
            assert_eq!(std::fs::metadata(&home).unwrap().mode() & 0o777, 0o755);
            mode(&home, 0o700);
        }
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&home, &link).unwrap();
        assert!(make(&link).is_err());
    }
}
