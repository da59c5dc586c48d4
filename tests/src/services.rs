//! Where the real servers are that `cargo xtask services` starts.

#[path = "../../xtask/src/services/alive.rs"]
mod alive;

use std::path::{Path, PathBuf};

use serde_json::Value;

/// One of the programs that a service is made of, such as `initdb` of `postgres`, so that a test can start a server of its own.
///
/// # Panics
///
/// When `cargo xtask services` has not started the service here, or it has no such program.
pub fn program(service: &str, name: &str) -> PathBuf {
    let path = note(service, &notes()).and_then(|note| note["programs"][name].as_str().map(PathBuf::from));
    match path.filter(|path| path.exists()) {
        Some(path) => path,
        None => {
            panic!("there is no `{name}` of the service `{service}`: run `cargo xtask services up {service}`")
        }
    }
}

/// The URL of a service: what `LOOMFLOW_TEST_<NAME>_URL` says, else the server that `cargo xtask services up` started.
///
/// # Panics
///
/// When there is neither. A test that needs a server fails without it; it is never skipped.
pub fn url(name: &str) -> String {
    match find(name, &notes(), from_env(name)) {
        Some(url) => url,
        None => panic!("the service `{name}` is not up: run `cargo xtask services up {name}`"),
    }
}

fn find(name: &str, notes: &Path, from_env: Option<String>) -> Option<String> {
    if let Some(url) = from_env.filter(|url| !url.is_empty()) {
        return Some(url);
    }
    let note = note(name, notes)?;
    let pid = u32::try_from(note["pid"].as_u64()?).ok()?;
    // The server that was noted down, and not another process that has its id by now.
    (alive::born(pid)? == note["born"].as_str()?).then(|| note["url"].as_str().map(str::to_owned))?
}

/// What `cargo xtask services` noted about a service that it started.
fn note(name: &str, notes: &Path) -> Option<Value> {
    let note = std::fs::read_to_string(notes.join(format!("{name}.json"))).ok()?;
    serde_json::from_str(&note).ok()
}

#[allow(clippy::disallowed_methods, reason = "the gate tells its tests by environment where the servers are")]
fn from_env(name: &str) -> Option<String> {
    std::env::var(format!("LOOMFLOW_TEST_{}_URL", name.to_uppercase().replace('-', "_"))).ok()
}

fn notes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/services")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_believed_while_its_process_is_there() {
        let dir = std::env::temp_dir().join(format!("loomflow-tests-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(find("x", &dir, None), None);
        let me = std::process::id();
        for (born, expected) in
            [(alive::born(me).unwrap(), Some("http://a".to_owned())), ("never".to_owned(), None)]
        {
            let note = serde_json::json!({"pid": me, "born": born, "url": "http://a"});
            std::fs::write(dir.join("x.json"), note.to_string()).unwrap();
            assert_eq!(find("x", &dir, None), expected);
            assert_eq!(find("x", &dir, Some(String::new())), expected);
            assert_eq!(find("x", &dir, Some("http://b".to_owned())).as_deref(), Some("http://b"));
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    #[should_panic(
        expected = "no `mysqld` of the service `postgres`: run `cargo xtask services up postgres`"
    )]
    fn a_program_that_is_not_there_names_the_command() {
        assert!(program("postgres", "initdb").is_file());
        program("postgres", "mysqld");
    }

    #[test]
    #[should_panic(expected = "cargo xtask services up no-such-service")]
    fn a_service_that_is_not_up_names_the_command() {
        url("no-such-service");
    }
}
