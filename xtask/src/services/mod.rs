//! `cargo xtask services`: real servers for tests, on loopback, without a container.
//!
//! A service is one file that implements [`Service`] and one line in [`ALL`]; everything else (ports, the log, the lock,
//! waiting until it answers, ending it) is here and in [`manager`], and the same for all.

mod alive;
mod answers;
#[cfg(test)]
mod containers;
mod homes;
mod install;
mod manager;
mod models;
mod net;
mod postgres;
mod qdrant;
mod redis;
mod state;
mod user;
mod wait;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use nix::sys::signal::Signal;
use serde::Serialize;

use self::manager::Manager;
use self::user::RunsAs;
use crate::{Failure, Outcome};

/// Every service there is.
static ALL: [&dyn Service; 5] =
    [&models::Models, &postgres::Postgres, &redis::REDIS, &redis::PLAIN, &qdrant::Qdrant];

/// What a service has to say about itself.
trait Service: fmt::Debug + Sync {
    /// How it is called on the command line and in `target/services`.
    fn name(&self) -> &'static str;

    /// The variable that tests read its URL from. When it is set, that server is used and none is started.
    fn env_override(&self) -> &'static str;

    /// The files that it is made of. When one of them changes, a running server is out of date.
    fn made_of(&self, room: &Room<'_>) -> Outcome<Vec<PathBuf>>;

    /// Puts its program into its home, unless it is there. What is missing on the machine is named in the error.
    fn install(&self, room: &Room<'_>) -> Outcome;

    /// What of its programs tests may start themselves, by name.
    fn programs(&self, _room: &Room<'_>) -> Vec<(&'static str, PathBuf)> {
        Vec::new()
    }

    /// Makes its data ready for a start, as the user that it will run as.
    fn prepare(&self, _room: &Room<'_>, _runs_as: &RunsAs) -> Outcome {
        Ok(())
    }

    /// The process to start, on `port` of the loopback interface.
    fn launch(&self, room: &Room<'_>, port: u16) -> Outcome<Launch>;

    /// What a client is given.
    fn url(&self, port: u16) -> String;

    /// Whether it does its work; asked until it does.
    fn healthy(&self, url: &str) -> bool;

    /// What it is asked with to end.
    fn stop_signal(&self) -> Signal {
        Signal::SIGTERM
    }
}

/// Where a service lives.
#[derive(Clone, Copy, Debug)]
struct Room<'a> {
    /// The workspace.
    root: &'a Path,
    /// Where homes are: `target/services`, or a place that the server's user can enter.
    dir: &'a Path,
    name: &'static str,
}

impl Room<'_> {
    /// The service's own directory, for its program and its data. It outlives a `down`; data is begun anew by an `up` that
    /// starts something.
    fn home(&self) -> PathBuf {
        self.dir.join(self.name)
    }
}

/// A process to start.
#[derive(Debug)]
struct Launch {
    program: PathBuf,
    args: Vec<OsString>,
    /// What it reads. When an unprivileged user cannot, it runs as the caller.
    must_read: Vec<PathBuf>,
}

impl Launch {
    fn new(program: PathBuf) -> Self {
        Self { program, args: Vec::new(), must_read: Vec::new() }
    }
}

/// What to do with which services.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Installs and starts services, and waits until they answer. Those that are up stay as they are.
    Up(Which),
    /// Stops services.
    Down(Which),
    /// Says which services are up, and where.
    Status(Which),
}

/// Which services, and how to speak of them.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Names of services; all of them when there is none.
    names: Vec<String>,
    /// Prints one JSON array to stdout.
    #[arg(long)]
    json: bool,
}

/// `cargo xtask services ...`
pub(crate) fn run(root: &Path, action: &Action) -> Outcome {
    let manager = Manager::new(root);
    let (Action::Up(which) | Action::Down(which) | Action::Status(which)) = action;
    let chosen = choose(&which.names)?;
    for service in &chosen {
        match action {
            Action::Up(_) => drop(manager.up(*service)?),
            Action::Down(_) => manager.down(*service)?,
            Action::Status(_) => {}
        }
    }
    let rows: Vec<Row> = chosen.iter().map(|service| manager.status(*service)).collect();
    print!("{}", if which.json { json(&rows)? } else { table(&rows) });
    Ok(())
}

/// The services that tests need, for as long as this lives: those that were not up before are stopped when it is dropped.
#[derive(Debug)]
pub(crate) struct ForTests {
    manager: Manager,
    started: Vec<&'static dyn Service>,
    env: Vec<(&'static str, String)>,
}

impl ForTests {
    /// Starts what is not up, of all there are.
    pub(crate) fn up(root: &Path) -> Outcome<Self> {
        let names: Vec<&str> = ALL.iter().map(|service| service.name()).collect();
        Self::these(root, &names)
    }

    /// Starts what is not up, of those with these names.
    pub(crate) fn these(root: &Path, names: &[&str]) -> Outcome<Self> {
        let mut all = Self { manager: Manager::new(root), started: Vec::new(), env: Vec::new() };
        for service in ALL.into_iter().filter(|service| names.contains(&service.name())) {
            let up = all.manager.up(service)?;
            if up.started {
                all.started.push(service);
            }
            eprintln!("  {}: {}{}", service.name(), up.url, if up.started { "" } else { " (was up before)" });
            all.env.push((service.env_override(), up.url));
        }
        Ok(all)
    }

    /// The variables that tests read.
    pub(crate) fn env(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.env.iter().map(|(name, url)| (*name, url.as_str()))
    }
}

impl Drop for ForTests {
    fn drop(&mut self) {
        for service in self.started.drain(..) {
            if let Err(Failure::Failed(why) | Failure::Usage(why)) = self.manager.down(service) {
                eprintln!("  {} could not be stopped: {why}", service.name());
            }
        }
    }
}

/// One service in the answer of every action.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    /// `up`, `down`, `external`, or `unhealthy`: its process is there and it does not answer.
    status: &'static str,
    /// `null` when it is down.
    url: Option<String>,
}

fn choose(names: &[String]) -> Outcome<Vec<&'static dyn Service>> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    let find = |name: &String| {
        ALL.into_iter().find(|service| service.name() == name).ok_or_else(|| {
            let known: Vec<&str> = ALL.iter().map(|service| service.name()).collect();
            Failure::Usage(format!("there is no service `{name}`; there are: {}", known.join(", ")))
        })
    };
    names.iter().map(find).collect()
}

fn json(rows: &[Row]) -> Outcome<String> {
    let text =
        serde_json::to_string(rows).map_err(|e| Failure::Failed(format!("the answer as JSON: {e}")))?;
    Ok(text + "\n")
}

fn table(rows: &[Row]) -> String {
    let line = |row: &Row| {
        let url = row.url.as_deref().unwrap_or_default();
        format!("{:<12} {:<10} {url}", row.name, row.status).trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn unusable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod testing {
    //! What the tests of this command share.

    use std::path::{Path, PathBuf};

    /// A directory that is gone when the test is over.
    #[derive(Debug)]
    pub(super) struct Scratch(PathBuf);

    impl Scratch {
        pub(super) fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("loomflow-services-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        pub(super) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        assert_eq!(choose(&[]).unwrap().len(), ALL.len());
        for service in ALL {
            assert_eq!(choose(&[service.name().to_owned()]).unwrap()[0].name(), service.name());
        }
        let error = choose(&["models".to_owned(), "mysql".to_owned()]).unwrap_err();
        assert!(
            matches!(&error, Failure::Usage(why) if why.contains("`mysql`") && why.contains("models")),
            "{error:?}"
        );
    }

    #[test]
    fn the_answer_is_one_array() {
        let rows = [
            Row { name: "models", status: "up", url: Some("http://127.0.0.1:1".to_owned()) },
            Row { name: "other", status: "down", url: None },
        ];
        assert_eq!(
            json(&rows).unwrap(),
            "[{\"name\":\"models\",\"status\":\"up\",\"url\":\"http://127.0.0.1:1\"},\
             {\"name\":\"other\",\"status\":\"down\",\"url\":null}]\n"
        );
        assert_eq!(table(&rows), "models       up         http://127.0.0.1:1\nother        down\n");
    }

    #[test]
    fn every_service_has_a_name_and_a_variable_of_its_own() {
        for (i, service) in ALL.iter().enumerate() {
            assert!(service.env_override().starts_with("LOOMFLOW_TEST_"), "{service:?}");
            for other in &ALL[i + 1..] {
                assert_ne!(service.name(), other.name());
                assert_ne!(service.env_override(), other.env_override());
            }
        }
    }
}
