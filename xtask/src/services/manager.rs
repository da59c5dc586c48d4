//! Starting, finding and ending a service, whichever it is.

use std::fs::{File, TryLockError};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;

use super::state::State;
use super::user::RunsAs;
use super::{Launch, Room, Row, Service, alive, homes, net, unusable, wait};
use crate::process;
use crate::{Failure, Outcome};

/// How long a service may take until it answers.
const START: Duration = Duration::from_secs(60);
/// How long it has to end by itself, and to be gone once it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How long another `up` or `down` of the same service is waited for; an installation can take minutes.
const TURN: Duration = Duration::from_secs(600);
/// A server that lost its port to somebody else ends within this; one that has it stays.
const SETTLE: Duration = Duration::from_millis(150);
/// Ports that are tried before somebody is told.
const PORTS: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Manager {
    root: PathBuf,
    /// `target/services`: notes, locks and logs.
    dir: PathBuf,
    /// Where programs and data are.
    homes: PathBuf,
    /// How long a service has to end by itself before it is killed.
    grace: Duration,
}

/// What came of an `up`.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) url: String,
    /// Whether it was this call that started it.
    pub(super) started: bool,
}

/// What came of one attempt.
enum Attempt {
    Answers(State),
    PortWasTaken,
}

/// What became of a new process.
enum Watched {
    Answers(State),
    Ended,
    Silent,
}

impl Manager {
    pub(super) fn new(root: &Path) -> Self {
        let dir = root.join("target").join("services");
        Self { root: root.to_owned(), homes: homes::of(root, &dir), dir, grace: GRACE }
    }

    /// Starts a service unless it is up, and waits until it answers.
    pub(super) fn up(&self, service: &dyn Service) -> Outcome<Up> {
        if let Some(url) = external(service) {
            // Asked only where the question is understood; another kind of URL is taken at its word.
            if url.starts_with("http://") && !service.healthy(&url) {
                let variable = service.env_override();
                return Err(Failure::Failed(format!("{variable} names {url}, and nobody answers there")));
            }
            return Ok(Up { url, started: false });
        }
        let _turn = self.lock(service)?;
        let made_of = self.made_of(service)?;
        if let Some(old) = State::read(&self.dir, service.name()) {
            if old.is_alive() && old.made_of == made_of && service.healthy(&old.url) {
                return Ok(Up { url: old.url, started: false });
            }
            self.stop(service, &old)?;
        }
        if self.homes != self.dir {
            homes::make(&self.homes)?;
        }
        service.install(&self.room(service))?;
        for _ in 0..PORTS {
            if let Attempt::Answers(state) = self.attempt(service, &made_of)? {
                return Ok(Up { url: state.url, started: true });
            }
        }
        Err(Failure::Failed(format!("{} lost {PORTS} ports to somebody else in a row", service.name())))
    }

    /// Stops a service that was started here. One that is down, or somebody else's, is left as it is.
    pub(super) fn down(&self, service: &dyn Service) -> Outcome {
        let _turn = self.lock(service)?;
        match State::read(&self.dir, service.name()) {
            Some(state) => self.stop(service, &state),
            // A note that cannot be read is in the way of nobody.
            None => self.forget(service),
        }
    }

    pub(super) fn status(&self, service: &dyn Service) -> Row {
        let name = service.name();
        if let Some(url) = external(service) {
            return Row { name, status: "external", url: Some(url) };
        }
        match State::read(&self.dir, name).filter(State::is_alive) {
            Some(state) if service.healthy(&state.url) => Row { name, status: "up", url: Some(state.url) },
            Some(state) => Row { name, status: "unhealthy", url: Some(state.url) },
            None => Row { name, status: "down", url: None },
        }
    }

    fn room(&self, service: &dyn Service) -> Room<'_> {
        Room { root: &self.root, dir: &self.homes, name: service.name() }
    }

    /// Waits for its turn: two shells never work on one service at the same time.
    fn lock(&self, service: &dyn Service) -> Outcome<File> {
        let path = self.dir.join(format!("{}.lock", service.name()));
        std::fs::create_dir_all(&self.dir).map_err(|e| unusable(&self.dir, &e))?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| unusable(&path, &e))?;
        let what = format!("another `cargo xtask services` works on {}", service.name());
        wait::until(&what, TURN, || match file.try_lock() {
            Ok(()) => Ok(Some(())),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(unusable(&path, &error)),
        })?
        .ok_or_else(|| Failure::Failed(format!("{what} for more than {} s", TURN.as_secs())))?;
        Ok(file)
    }

    /// Starts it on a port of its own. What does not come to answer is ended and forgotten.
    fn attempt(&self, service: &dyn Service, made_of: &str) -> Outcome<Attempt> {
        let port =
            net::free_port().map_err(|e| Failure::Failed(format!("there is no free loopback port: {e}")))?;
        let launch = service.launch(&self.room(service), port)?;
        let runs_as = RunsAs::whoever_can(&launch.program, &launch.must_read);
        service.prepare(&self.room(service), &runs_as)?;
        let (mut child, log) = self.spawn(service, &launch, &runs_as)?;
        let why = match self.watch(service, &mut child, port, made_of) {
            Ok(Watched::Answers(state)) => return Ok(Attempt::Answers(state)),
            Ok(Watched::Ended) if net::is_taken(port) => None,
            Ok(Watched::Ended) => Some("it ended before it answered".to_owned()),
            Ok(Watched::Silent) => Some(format!("it did not answer in {} s", START.as_secs())),
            Err(Failure::Failed(why) | Failure::Usage(why)) => Some(why),
            Err(Failure::Exit(code)) => Some(format!("it ended with {code}")),
        };
        wait::put_away(&mut child);
        self.forget(service)?;
        let Some(why) = why else { return Ok(Attempt::PortWasTaken) };
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let (name, log) = (service.name(), log.display());
        Err(Failure::Failed(format!("{name} does not start: {why}; {log} ends with:\n{}", wait::tail(&said))))
    }

    /// Notes a new process down and waits until it answers.
    fn watch(&self, service: &dyn Service, child: &mut Child, port: u16, made_of: &str) -> Outcome<Watched> {
        let Some(born) = alive::born(child.id()) else { return Ok(Watched::Ended) };
        let programs = service.programs(&self.room(service));
        let state = State {
            name: service.name().to_owned(),
            pid: child.id(),
            born,
            port,
            url: service.url(port),
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            made_of: made_of.to_owned(),
            programs: programs.into_iter().map(|(name, path)| (name.to_owned(), path)).collect(),
        };
        // Before it answers: whatever happens to this process, the next one finds what was started.
        state.write(&self.dir).map_err(|e| unusable(&self.dir, &e))?;
        let answers = wait::until(&format!("{} starts", service.name()), START, || {
            let answers = service.healthy(&state.url);
            if answers {
                // Somebody else's server on the same port answers as well. Ours would end now.
                std::thread::sleep(SETTLE);
            }
            match child.try_wait() {
                Ok(None) => Ok(answers.then_some(true)),
                Ok(Some(_)) => Ok(Some(false)),
                Err(error) => Err(Failure::Failed(format!("it cannot be waited for: {error}"))),
            }
        })?;
        Ok(match answers {
            Some(true) => Watched::Answers(state),
            Some(false) => Watched::Ended,
            None => Watched::Silent,
        })
    }

    /// Starts the process, detached: no stdin, a log for what it says, and a group of its own, so that an interrupt meant
    /// for the caller does not reach it.
    fn spawn(&self, service: &dyn Service, launch: &Launch, runs_as: &RunsAs) -> Outcome<(Child, PathBuf)> {
        let path = self.dir.join(format!("{}.log", service.name()));
        let log = File::create(&path).map_err(|e| unusable(&path, &e))?;
        let errors = log.try_clone().map_err(|e| unusable(&path, &e))?;
        let mut command = process::program(&self.homes, &launch.program);
        command.args(&launch.args).process_group(0).stdout(log).stderr(errors);
        runs_as.apply(&mut command);
        let child = command.spawn().map_err(|e| {
            Failure::Failed(format!("`{}` could not be started: {e}", process::shown(&command)))
        })?;
        Ok((child, path))
    }

    fn stop(&self, service: &dyn Service, state: &State) -> Outcome {
        for (signal, limit) in [(service.stop_signal(), self.grace), (Signal::SIGKILL, GRACE)] {
            if !state.is_alive() {
                break;
            }
            wait::end_group(state.pid, signal);
            wait::until(&format!("{} ends", state.name), limit, || Ok((!state.is_alive()).then_some(())))?;
        }
        if state.is_alive() {
            return Err(Failure::Failed(format!("{} (process {}) does not end", state.name, state.pid)));
        }
        self.forget(service)
    }

    fn forget(&self, service: &dyn Service) -> Outcome {
        State::remove(&self.dir, service.name()).map_err(|e| unusable(&self.dir, &e))
    }

    /// A fingerprint of everything the service is made of.
    fn made_of(&self, service: &dyn Service) -> Outcome<String> {
        let mut hasher = DefaultHasher::new();
        for path in service.made_of(&self.room(service))? {
            path.hash(&mut hasher);
            std::fs::read(&path).map_err(|e| unusable(&path, &e))?.hash(&mut hasher);
        }
        Ok(format!("{:016x}", hasher.finish()))
    }
}

/// The server that the environment names in place of one of ours.
fn external(service: &dyn Service) -> Option<String> {
    std::env::var(service.env_override()).ok().filter(|url| !url.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Scratch;
    use super::*;
    use std::ffi::OsString;
    use std::net::{Ipv4Addr, TcpListener};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// A service made of a shell that is always there. It answers when its process does, or never.
    #[derive(Debug, Default)]
    struct Double {
        /// What the shell runs; `sleep` when empty.
        script: &'static str,
        sick: AtomicBool,
        launches: AtomicUsize,
        installs: AtomicUsize,
        /// How it is asked to end; politely when there is nothing here.
        stop_signal: Option<Signal>,
        /// Whether its data can be made ready.
        unready: bool,
        /// How often somebody else takes the port first.
        robbed: usize,
        robbers: Mutex<Vec<TcpListener>>,
    }

    impl Service for Double {
        fn name(&self) -> &'static str {
            "double"
        }

        fn env_override(&self) -> &'static str {
            "LOOMFLOW_TEST_DOUBLE_URL"
        }

        fn made_of(&self, room: &Room<'_>) -> Outcome<Vec<PathBuf>> {
            Ok(vec![room.root.join("fixture")])
        }

        fn install(&self, _room: &Room<'_>) -> Outcome {
            self.installs.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        fn programs(&self, room: &Room<'_>) -> Vec<(&'static str, PathBuf)> {
            vec![("tool", room.home().join("tool"))]
        }

        fn prepare(&self, room: &Room<'_>, runs_as: &RunsAs) -> Outcome {
            if self.unready {
                return Err(Failure::Failed("it is not ready".to_owned()));
            }
            let data = room.home().join("data");
            runs_as.empty_dir(&data).map_err(|e| unusable(&data, &e))
        }

        fn stop_signal(&self) -> Signal {
            self.stop_signal.unwrap_or(Signal::SIGTERM)
        }

        fn launch(&self, _room: &Room<'_>, port: u16) -> Outcome<Launch> {
            let mut launch = Launch::new(process::find("sh").unwrap());
            let before = self.launches.fetch_add(1, Ordering::SeqCst);
            let script = if before < self.robbed {
                self.robbers.lock().unwrap().push(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
                "exit 1"
            } else if self.script.is_empty() {
                "exec sleep 600"
            } else {
                self.script
            };
            launch.args.extend(["-c", script].map(OsString::from));
            Ok(launch)
        }

        fn url(&self, port: u16) -> String {
            format!("double://127.0.0.1:{port}")
        }

        fn healthy(&self, _url: &str) -> bool {
            !self.sick.load(Ordering::SeqCst)
        }
    }

    struct Bench {
        dir: Scratch,
        manager: Manager,
    }

    impl Bench {
        fn new(name: &str) -> Self {
            let dir = Scratch::new(name);
            std::fs::write(dir.path().join("fixture"), "1").unwrap();
            let manager = Manager::new(dir.path());
            Self { dir, manager }
        }

        fn state(&self) -> Option<State> {
            State::read(&self.manager.dir, "double")
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = self.manager.down(&Double::default());
        }
    }

    #[test]
    fn up_twice_starts_one_and_down_ends_it() {
        let (bench, double) = (Bench::new("twice"), Double::default());
        let first = bench.manager.up(&double).unwrap();
        let state = bench.state().unwrap();
        assert!(first.started && state.is_alive() && state.url == first.url);
        let second = bench.manager.up(&double).unwrap();
        assert!(!second.started);
        assert_eq!((second.url, bench.state()), (first.url, Some(state.clone())));
        assert_eq!(double.installs.load(Ordering::SeqCst), 1);
        assert_eq!(bench.manager.status(&double).status, "up");
        bench.manager.down(&double).unwrap();
        assert!(!state.is_alive() && bench.state().is_none());
        assert_eq!(bench.manager.status(&double).status, "down");
        bench.manager.down(&double).unwrap();
    }

    #[test]
    fn many_at_once_start_one() {
        let (bench, double) = (Bench::new("at-once"), Double::default());
        let started = std::thread::scope(|scope| {
            let ups: Vec<_> =
                (0..8).map(|_| scope.spawn(|| bench.manager.up(&double).unwrap().started)).collect();
            ups.into_iter().map(|up| usize::from(up.join().unwrap())).sum::<usize>()
        });
        assert_eq!((started, double.launches.load(Ordering::SeqCst)), (1, 1));
    }

    #[test]
    fn a_note_about_a_process_that_is_gone_or_somebody_elses_is_not_believed() {
        let (bench, double) = (Bench::new("stale"), Double::default());
        bench.manager.up(&double).unwrap();
        let first = bench.state().unwrap();
        wait::end_group(first.pid, Signal::SIGKILL);
        while first.is_alive() {
            std::thread::yield_now();
        }
        assert_eq!(bench.manager.status(&double).status, "down");
        assert!(bench.manager.up(&double).unwrap().started);
        // Another program with the noted id: this very test. It must not be ended.
        let second = bench.state().unwrap();
        let mine = State { pid: std::process::id(), ..second.clone() };
        mine.write(&bench.manager.dir).unwrap();
        assert_eq!(bench.manager.status(&double).status, "down");
        bench.manager.down(&double).unwrap();
        second.write(&bench.manager.dir).unwrap();
        assert!(second.is_alive());
    }

    #[test]
    fn a_server_that_is_out_of_date_or_does_not_answer_is_replaced() {
        let (bench, double) = (Bench::new("replaced"), Double::default());
        bench.manager.up(&double).unwrap();
        let first = bench.state().unwrap();
        std::fs::write(bench.dir.path().join("fixture"), "2").unwrap();
        assert!(bench.manager.up(&double).unwrap().started && !first.is_alive());
        let second = bench.state().unwrap();
        double.sick.store(true, Ordering::SeqCst);
        assert_eq!(bench.manager.status(&double).status, "unhealthy");
        let healed = std::thread::scope(|scope| {
            let up = scope.spawn(|| bench.manager.up(&double).unwrap());
            while second.is_alive() {
                std::thread::yield_now();
            }
            double.sick.store(false, Ordering::SeqCst);
            up.join().unwrap()
        });
        assert!(healed.started);
    }

    #[test]
    fn a_port_that_was_taken_meanwhile_costs_another_attempt() {
        let (bench, double) = (Bench::new("robbed"), Double { robbed: 2, ..Double::default() });
        assert!(bench.manager.up(&double).unwrap().started);
        assert_eq!(double.launches.load(Ordering::SeqCst), 3);
        let taken: Vec<u16> =
            double.robbers.lock().unwrap().iter().map(|l| l.local_addr().unwrap().port()).collect();
        assert!(!taken.contains(&bench.state().unwrap().port));
        let unlucky = Double { robbed: usize::MAX, ..Double::default() };
        bench.manager.down(&unlucky).unwrap();
        assert!(bench.manager.up(&unlucky).is_err() && bench.state().is_none());
        assert_eq!(unlucky.launches.load(Ordering::SeqCst), PORTS);
    }

    #[test]
    fn data_is_begun_anew_as_the_user_that_the_server_runs_as() {
        let bench = Bench::new("data");
        let data = bench.manager.homes.join("double").join("data");
        let script = "cd double/data && ls -A && touch mine && exec sleep 600";
        let double = Double { script, ..Double::default() };
        for _ in 0..2 {
            bench.manager.up(&double).unwrap();
            // It may write there, and finds nothing from before.
            while !data.join("mine").exists() {
                assert!(bench.state().unwrap().is_alive(), "it cannot write");
                std::thread::yield_now();
            }
            assert_eq!(std::fs::read_to_string(bench.manager.dir.join("double.log")).unwrap(), "");
            bench.manager.down(&double).unwrap();
        }
        let unready = Double { unready: true, ..Double::default() };
        assert!(bench.manager.up(&unready).is_err() && bench.state().is_none());
        assert_eq!(unready.launches.load(Ordering::SeqCst), 1, "nothing is started, and nothing tried again");
    }

    #[test]
    fn its_programs_are_noted_and_it_is_asked_to_end_in_its_own_way() {
        let bench = Bench::new("own-way");
        // A grace that is never used up: whoever sends another signal waits for it.
        let script = "trap '' TERM; trap 'echo asked; exit 0' INT; while :; do sleep 0.02; done";
        let double = Double { script, stop_signal: Some(Signal::SIGINT), ..Double::default() };
        bench.manager.up(&double).unwrap();
        let home = bench.manager.homes.join("double");
        assert_eq!(bench.state().unwrap().programs["tool"], home.join("tool"));
        bench.manager.down(&double).unwrap();
        assert_eq!(std::fs::read_to_string(bench.manager.dir.join("double.log")).unwrap(), "asked\n");
    }

    #[test]
    fn a_service_that_ends_is_told_with_what_it_said_last() {
        let bench = Bench::new("ends");
        let double = Double { script: "echo no luck >&2; exit 7", ..Double::default() };
        let error = bench.manager.up(&double).unwrap_err();
        assert!(matches!(&error, Failure::Failed(why) if why.contains("no luck")), "{error:?}");
        assert_eq!((double.launches.load(Ordering::SeqCst), bench.state()), (1, None));
    }

    #[test]
    fn one_that_ignores_the_polite_signal_is_killed_with_its_children() {
        let mut bench = Bench::new("deaf");
        bench.manager.grace = Duration::from_millis(100);
        let script = "trap '' TERM; sleep 600 & echo $!; wait; sleep 600";
        let double = Double { script, ..Double::default() };
        bench.manager.up(&double).unwrap();
        let state = bench.state().unwrap();
        let log = std::fs::read_to_string(bench.manager.dir.join("double.log")).unwrap();
        let child: u32 = log.trim().parse().unwrap();
        assert!(alive::born(child).is_some());
        bench.manager.down(&double).unwrap();
        assert!(!state.is_alive() && bench.state().is_none());
        while alive::born(child).is_some() {
            std::thread::yield_now();
        }
    }
}
