//! Servers of a test's own: to be killed without warning, and started again on the same data.
//!
//! The programs are those of `cargo xtask services`, so that service has to be up. Each server writes through to the disk
//! before it answers (`fsync`, `appendfsync always`), and has a port and a directory of its own.

#[path = "../../xtask/src/services/answers.rs"]
mod answers;
#[path = "../../xtask/src/services/user.rs"]
mod user;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use user::RunsAs;

use crate::services;

/// How long a server may take until it answers, recovery of its data included.
const START: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// A server that lost its port to somebody else ends within this; one that has it stays.
const SETTLE: Duration = Duration::from_millis(150);
/// Ports that are tried for a new server.
const PORTS: usize = 4;

/// Nothing is answered before it is on the disk.
const POSTGRES: [&str; 3] = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=on"];
const REDIS: [&str; 8] =
    ["--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always", "--save", ""];

/// Starts a PostgreSQL.
#[derive(Clone, Copy, Debug)]
pub struct OwnPostgres;

/// Starts a Redis.
#[derive(Clone, Copy, Debug)]
pub struct OwnRedis;

impl OwnPostgres {
    /// An empty PostgreSQL, where its superuser `postgres` needs no password. It has pgvector to be created as an extension.
    ///
    /// # Panics
    ///
    /// When the service `postgres` is not up, or a server does not start.
    pub async fn start() -> OwnServer {
        OwnServer::start(Kind::Postgres).await
    }
}

impl OwnRedis {
    /// An empty Redis, which can `search` or not.
    ///
    /// # Panics
    ///
    /// When the service `redis` (or `redis-plain`) is not up, or a server does not start.
    pub async fn start(search: bool) -> OwnServer {
        OwnServer::start(Kind::Redis { search }).await
    }
}

/// A server that is gone, with all it wrote, when this is dropped.
pub struct OwnServer {
    server: Server,
    child: Option<Child>,
}

impl OwnServer {
    async fn start(kind: Kind) -> Self {
        blocking(move || {
            let mut said = String::new();
            for _ in 0..PORTS {
                // Whatever becomes of this attempt, its directory goes with it.
                let mut own = Self { server: Server::new(kind), child: None };
                own.server.prepare();
                match own.server.run() {
                    Ok(child) => {
                        own.child = Some(child);
                        return own;
                    }
                    Err(why) => said = why,
                }
            }
            panic!("{kind:?} does not start: {said}")
        })
        .await
    }

    /// What a client is given; the same after a restart.
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// Kills the server with SIGKILL: no farewell, nothing written that was not written yet. Returns when it is gone.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the process is ours");
            child.wait().expect("the process is ours");
        }
    }

    /// Starts it again on the same port and the same data; kills it first where that was not done.
    ///
    /// # Panics
    ///
    /// When it does not start again within a minute.
    pub async fn restart(&mut self) {
        self.kill9();
        let server = self.server.clone();
        let again = move || {
            let began = Instant::now();
            loop {
                match server.run() {
                    Ok(child) => return child,
                    // Children of a killed PostgreSQL may hold on to its memory for a moment, and clients to its port.
                    Err(why) => assert!(began.elapsed() < START, "it does not start again: {why}"),
                }
                pause(LOOK_EVERY);
            }
        };
        self.child = Some(blocking(again).await);
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = (child.kill(), child.wait());
        }
        // Children of a killed PostgreSQL may still write for a moment.
        for _ in 0..100 {
            match std::fs::remove_dir_all(&self.server.dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => pause(LOOK_EVERY),
                _ => return,
            }
        }
    }
}

impl fmt::Debug for OwnServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnServer({}, {})", self.server.url, if self.child.is_some() { "up" } else { "down" })
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Postgres,
    Redis { search: bool },
}

/// Everything that two runs of one server have in common.
#[derive(Clone, Debug)]
struct Server {
    kind: Kind,
    program: PathBuf,
    args: Vec<OsString>,
    url: String,
    /// Its log, and its data.
    dir: PathBuf,
    runs_as: RunsAs,
}

impl Server {
    fn new(kind: Kind) -> Self {
        let dir = std::env::temp_dir().join(format!("loomflow-own-{:016x}", rand::random::<u64>()));
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free loopback port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let (data, number) = (dir.join("data"), port.to_string());
        let (mut args, mut files) = (Vec::<OsString>::new(), Vec::new());
        let (program, url) = match kind {
            Kind::Postgres => {
                args.extend(["-D".into(), data.into(), "-p".into(), number.into()]);
                args.extend(POSTGRES.iter().flat_map(|setting| ["-c".into(), setting.into()]));
                let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
                (services::program("postgres", "postgres"), url)
            }
            Kind::Redis { search } => {
                args.extend(["--dir".into(), data.into(), "--port".into(), number.into()]);
                args.extend(REDIS.map(OsString::from));
                if search {
                    let module = services::program("redis", "redisearch.so");
                    args.extend(["--loadmodule".into(), module.clone().into()]);
                    files.push(module);
                }
                let service = if search { "redis" } else { "redis-plain" };
                (services::program(service, "redis-server"), format!("redis://127.0.0.1:{port}"))
            }
        };
        let runs_as = RunsAs::whoever_can(&program, &files);
        Self { kind, program, args, url, dir, runs_as }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn prepare(&self) {
        self.runs_as.empty_dir(&self.data()).expect("a directory for temporary files");
        if let Kind::Postgres = self.kind {
            assert!(!self.runs_as.is_root(), "PostgreSQL does not run as root, and `nobody` cannot reach it");
            let mut initdb = command(&services::program("postgres", "initdb"), &self.dir);
            initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "-D"]);
            let output = self.runs_as.apply(initdb.arg(self.data())).output().expect("initdb can be started");
            assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// Runs it until it answers; when it does not, says what it said.
    fn run(&self) -> Result<Child, String> {
        let log = File::create(self.log()).expect("a directory for temporary files");
        let mut server = command(&self.program, &self.dir);
        server.args(&self.args).stdout(log.try_clone().expect("an open file")).stderr(log);
        let mut child = self.runs_as.apply(&mut server).spawn().expect("the program can be started");
        let began = Instant::now();
        while began.elapsed() < START {
            let answers = self.answers();
            if answers {
                // Somebody else's server on the same port answers as well. Ours would end now.
                pause(SETTLE);
            }
            match (child.try_wait().expect("the process is ours"), answers) {
                (None, true) => return Ok(child),
                (None, false) => pause(LOOK_EVERY),
                (Some(_), _) => break,
            }
        }
        let _gone = (child.kill(), child.wait());
        Err(std::fs::read_to_string(self.log()).unwrap_or_default())
    }

    fn answers(&self) -> bool {
        match self.kind {
            Kind::Postgres => answers::postgres(&self.url, "SELECT 1"),
            Kind::Redis { .. } => answers::redis(&self.url, "PING", "+PONG"),
        }
    }
}

fn command(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).stdin(Stdio::null());
    command
}

#[allow(clippy::disallowed_methods, reason = "on a thread for blocking, or at the end of a test")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Off the threads that other futures wait for.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use loomflow_conformance::doubles::{Direction, FaultyProxy};

    use super::*;

    async fn sql(url: &str, query: &'static str) -> bool {
        let url = url.to_owned();
        blocking(move || answers::postgres(&url, query)).await
    }

    async fn redis(url: &str, command: &'static str, start: &'static str) -> bool {
        let url = url.to_owned();
        blocking(move || answers::redis(&url, command, start)).await
    }

    #[tokio::test]
    async fn a_postgres_that_is_killed_has_what_it_promised() {
        let mut own = OwnPostgres::start().await;
        let (url, dir) = (own.url().to_owned(), own.server.dir.clone());
        let write =
            "CREATE EXTENSION vector; CREATE TABLE t (x vector); INSERT INTO t VALUES ('[1]') RETURNING 1";
        assert!(sql(&url, write).await);
        for _ in 0..2 {
            own.kill9();
            assert!(!sql(&url, "SELECT 1").await, "it is gone");
            own.restart().await;
            assert!(own.url() == url && sql(&url, "SELECT 1 FROM t WHERE x = '[1]'").await);
        }
        assert!(sql(&url, "SELECT 1 WHERE current_setting('fsync') = 'on'").await);
        drop(own);
        assert!(!dir.exists() && !sql(&url, "SELECT 1").await);
    }

    #[tokio::test]
    async fn a_redis_that_is_killed_has_what_it_promised() {
        for search in [true, false] {
            let mut own = OwnRedis::start(search).await;
            let (url, dir) = (own.url().to_owned(), own.server.dir.clone());
            assert!(redis(&url, "SET k v", "+OK").await);
            assert_eq!(redis(&url, "FT._LIST", "*").await, search);
            own.kill9();
            assert!(!redis(&url, "PING", "+PONG").await, "it is gone");
            own.restart().await;
            assert!(own.url() == url && redis(&url, "GET k", "$1").await);
            drop(own);
            assert!(!dir.exists() && !redis(&url, "PING", "+PONG").await);
        }
    }

    #[tokio::test]
    async fn a_lost_answer_is_work_done_on_a_real_server() {
        let own = OwnRedis::start(false).await;
        let proxy = FaultyProxy::start(own.url()).await.unwrap();
        let through = proxy.url_like(own.url());
        assert!(redis(&through, "INCR n", ":1").await);
        proxy.cut_after(Direction::Replies, 0);
        assert!(!redis(&through, "INCR n", ":").await);
        assert!(redis(&through, "INCR n", ":3").await);
        proxy.cut_after(Direction::Requests, 4);
        assert!(!redis(&through, "INCR n", ":").await);
        assert!(redis(&through, "INCR n", ":4").await, "a command that was cut short is none");
    }
}
