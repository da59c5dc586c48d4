//! What is noted down about a service that was started, in `target/services/<name>.json`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::alive;

/// One running service. Tests of other packages read `url`, `pid`, `born` and `programs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) name: String,
    /// The process, which leads a group of its own.
    pub(super) pid: u32,
    /// When that process began, so that another one with its id is not taken for it.
    pub(super) born: String,
    pub(super) port: u16,
    pub(super) url: String,
    /// Seconds since 1970.
    pub(super) started: u64,
    /// What it was made of: a server with other fixtures is another server.
    pub(super) made_of: String,
    /// Its programs, for tests that start a server of their own.
    #[serde(default)]
    pub(super) programs: BTreeMap<String, PathBuf>,
}

impl State {
    pub(super) fn path(dir: &Path, name: &str) -> PathBuf {
        dir.join(format!("{name}.json"))
    }

    /// What is noted; `None` without a note, and for one that cannot be read: it names no process to keep.
    pub(super) fn read(dir: &Path, name: &str) -> Option<Self> {
        let text = std::fs::read_to_string(Self::path(dir, name)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes it so that a reader sees the old note, or the new one, never a part.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let path = Self::path(dir, &self.name);
        let new = path.with_extension("json.new");
        std::fs::write(&new, serde_json::to_string_pretty(self)? + "\n")?;
        std::fs::rename(new, path)
    }

    pub(super) fn remove(dir: &Path, name: &str) -> io::Result<()> {
        match std::fs::remove_file(Self::path(dir, name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the process that was started is there still.
    pub(super) fn is_alive(&self) -> bool {
        alive::born(self.pid).is_some_and(|born| born == self.born)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Scratch;
    use super::*;

    fn state(pid: u32, born: &str) -> State {
        State {
            name: "x".to_owned(),
            pid,
            born: born.to_owned(),
            port: 1,
            url: "http://127.0.0.1:1".to_owned(),
            started: 2,
            made_of: String::new(),
            programs: BTreeMap::from([("p".to_owned(), PathBuf::from("/p"))]),
        }
    }

    #[test]
    fn a_note_is_read_as_it_was_written_and_a_broken_one_is_none() {
        let dir = Scratch::new("note");
        assert_eq!(State::read(dir.path(), "x"), None);
        let note = state(1, "a");
        note.write(dir.path()).unwrap();
        assert_eq!(State::read(dir.path(), "x"), Some(note));
        std::fs::write(State::path(dir.path(), "x"), "{\"name\":\"x\"").unwrap();
        assert_eq!(State::read(dir.path(), "x"), None);
        State::remove(dir.path(), "x").unwrap();
        State::remove(dir.path(), "x").unwrap();
        assert!(!State::path(dir.path(), "x").exists());
    }

    #[test]
    fn another_process_with_the_same_id_is_another() {
        let me = std::process::id();
        let born = alive::born(me).unwrap();
        assert!(state(me, &born).is_alive());
        assert!(!state(me, "before my time").is_alive());
    }

    #[test]
    fn a_process_that_ended_is_gone_before_and_after_it_was_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let born = alive::born(child.id()).unwrap();
        let note = state(child.id(), &born);
        assert!(note.is_alive());
        child.kill().unwrap();
        // Its remains stay until somebody waits; they serve nobody.
        while alive::born(note.pid).is_some() {
            std::thread::yield_now();
        }
        assert!(!note.is_alive());
        child.wait().unwrap();
        assert!(!note.is_alive());
    }
}
