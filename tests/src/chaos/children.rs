//! The other processes of a round: the provider and the workers, and what they say of themselves.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::provider::{Manners, Seen};
use super::worker::{Job, Progress};

/// What a worker process reads first.
#[derive(Debug, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "the two ends of one pipe")]
pub(super) struct Begin {
    /// What to do.
    pub(super) job: Job,
    /// Where the ledger is. A secret, so it comes through a pipe and not as an argument.
    pub(super) ledger: String,
    /// The cap of all users together, in tokens.
    pub(super) cap: u64,
    /// The cap of each user, in tokens.
    pub(super) per_user: u64,
}

/// What a worker process is told later.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[allow(clippy::exhaustive_enums, reason = "the two ends of one pipe")]
pub(super) enum Tell {
    /// Turn the clock to so many seconds beside the right time.
    Clock(i64),
    /// Begin no further turn.
    Stop,
}

/// A process of ours. It goes, without a farewell, when this is dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    orders: ChildStdin,
}

impl Process {
    fn start(program: &Path, role: &str, begin: &Value) -> io::Result<(Self, BufReader<ChildStdout>)> {
        let mut child =
            Command::new(program).arg(role).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let missing = || io::Error::other("a pipe that was asked for is not there");
        let orders = child.stdin.take().ok_or_else(missing)?;
        let answers = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        let mut process = Self { child, orders };
        process.tell(begin)?;
        Ok((process, answers))
    }

    fn tell(&mut self, what: &impl Serialize) -> io::Result<()> {
        let line = serde_json::to_string(what)?;
        writeln!(self.orders, "{line}")?;
        self.orders.flush()
    }

    fn kill9(&mut self) {
        // It is ours until it was waited for, and it may be gone already.
        let _gone = (self.child.kill(), self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Keeps the last line that a process said, read as `T`, from a thread that ends with the process.
fn listen<T: for<'de> Deserialize<'de> + Send + 'static>(
    answers: BufReader<ChildStdout>,
    last: Arc<Mutex<T>>,
) {
    std::thread::spawn(move || {
        for line in answers.lines() {
            let Ok(line) = line else { return };
            if let Ok(said) = serde_json::from_str(&line) {
                *last.lock() = said;
            }
        }
    });
}

/// A worker process.
#[derive(Debug)]
pub(super) struct Worker {
    process: Process,
    progress: Arc<Mutex<Progress>>,
}

impl Worker {
    /// Starts `program` as a worker.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub(super) fn start(program: &Path, begin: &Begin) -> io::Result<Self> {
        let (process, answers) = Process::start(program, "worker", &serde_json::to_value(begin)?)?;
        let progress = Arc::default();
        listen(answers, Arc::clone(&progress));
        Ok(Self { process, progress })
    }

    /// What it has done, as it last said.
    pub(super) fn progress(&self) -> Progress {
        self.progress.lock().clone()
    }

    /// Tells it something. One that is gone does not listen.
    pub(super) fn tell(&mut self, what: Tell) {
        let _gone = self.process.tell(&what);
    }

    /// SIGKILL.
    pub(super) fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Whether the process is gone.
    pub(super) fn is_gone(&mut self) -> bool {
        !matches!(self.process.child.try_wait(), Ok(None))
    }
}

/// The provider's process.
#[derive(Debug)]
pub(super) struct ProviderProcess {
    _process: Process,
    seen: Arc<Mutex<Seen>>,
    /// Where it listens.
    pub(super) address: String,
}

impl ProviderProcess {
    /// Starts `program` as the provider.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub(super) fn start(program: &Path, invoice: &Path, manners: &Manners) -> io::Result<Self> {
        let begin = serde_json::json!({ "invoice": invoice, "manners": manners });
        let (process, mut answers) = Process::start(program, "provider", &begin)?;
        let mut address = String::new();
        answers.read_line(&mut address)?;
        let seen = Arc::default();
        listen(answers, Arc::clone(&seen));
        Ok(Self { _process: process, seen, address: address.trim().to_owned() })
    }

    /// What it has seen, as it last said.
    pub(super) fn seen(&self) -> Seen {
        *self.seen.lock()
    }
}
