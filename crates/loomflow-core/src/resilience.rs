//! What stands between a backend and a server that fails: a time limit, one retry where it is safe, a circuit breaker.
//!
//! A circuit is closed while the server answers, open after it failed several times in a row, and lets one caller through
//! to try it when its pause is over. While it is open, operations fail at once instead of piling up.

use std::fmt;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};

/// How many failures in a row open a circuit.
const OPENS_AFTER: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Before the one retry: a pool needs a moment to notice that its connections are gone.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// Whether an operation may be done twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "it may or it may not")]
pub enum Repeat {
    /// Doing it again gives what doing it once gives: reads, and writes that are idempotent.
    Safe,
    /// It may have been done although it failed: only what was never sent is tried again.
    Unsafe,
}

/// How a store stands, for a readiness probe.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Readiness {
    /// Whether it can be used now.
    pub ready: bool,
    /// `closed`, `open` or `half_open`; `closed` for a store without a circuit.
    pub circuit: CircuitState,
    /// What is wrong, for a person; empty when nothing is. Never a credential.
    pub detail: String,
}

impl Readiness {
    /// A store that can be used.
    #[must_use]
    pub fn ready() -> Self {
        Self { ready: true, circuit: CircuitState::Closed, detail: String::new() }
    }
}

/// The state of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CircuitState {
    /// Operations go through.
    Closed,
    /// Operations fail at once.
    Open,
    /// One caller is trying whether the server is back.
    HalfOpen,
}

impl CircuitState {
    /// `closed`, `open` or `half_open`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Guards the operations of one backend on one server.
pub struct Resilience {
    server: &'static str,
    limit: Duration,
    breaks: bool,
    circuit: Mutex<Circuit>,
}

#[derive(Debug, Default)]
struct Circuit {
    failures: u32,
    /// While it is open: since when it may be tried.
    try_from: Option<Instant>,
    pause: Duration,
    trying: bool,
}

impl Resilience {
    /// Guards a server that messages call `server` (`PostgreSQL`), whose operations may take `limit`; one that is tried again may take it twice.
    #[must_use]
    pub fn new(server: &'static str, limit: Duration) -> Self {
        Self { server, limit, breaks: true, circuit: Mutex::default() }
    }

    /// Limits and retries as [`Resilience::new`] does, and never breaks: for a file, which is not gone because one
    /// operation on it took long.
    #[must_use]
    pub fn without_circuit(server: &'static str, limit: Duration) -> Self {
        Self { breaks: false, ..Self::new(server, limit) }
    }

    /// Runs an operation: each attempt within its time, once more if that is safe and the failure was transient, and not at all while
    /// the circuit is open.
    ///
    /// - Dropping the future drops the operation; a trial of an open circuit that is dropped counts as none.
    ///
    /// # Errors
    ///
    /// The operation's own; [`ErrorKind::Timeout`] when its time is over; [`ErrorKind::Unreachable`] with
    /// [`Error::retry_after`] while the circuit is open.
    pub async fn run<T, F, Fut>(&self, operation: &'static str, repeat: Repeat, mut attempt: F) -> Result<T>
    where
        F: FnMut() -> Fut + Send,
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let trial = self.admit(operation)?;
        let mut result = self.once(operation, &mut attempt).await;
        let again = |e: &Error| match e.kind() {
            ErrorKind::Unreachable => true,
            ErrorKind::Transport => repeat == Repeat::Safe,
            _ => false,
        };
        if result.as_ref().is_err_and(again) {
            tokio::time::sleep(RETRY_AFTER).await;
            result = self.once(operation, &mut attempt).await;
        }
        trial.settle(result.as_ref().err());
        result
    }

    /// How the circuit stands.
    #[must_use]
    pub fn state(&self) -> CircuitState {
        let circuit = self.lock();
        match circuit.try_from {
            None => CircuitState::Closed,
            Some(_) if circuit.trying => CircuitState::HalfOpen,
            Some(_) => CircuitState::Open,
        }
    }

    /// What a readiness probe is told after asking the server: `answer` is the outcome of a cheap operation that went
    /// through [`Resilience::run`].
    #[must_use]
    pub fn readiness(&self, answer: &Result<()>) -> Readiness {
        Readiness {
            ready: answer.is_ok(),
            circuit: self.state(),
            detail: answer.as_ref().err().map(ToString::to_string).unwrap_or_default(),
        }
    }

    async fn once<T, F, Fut>(&self, operation: &'static str, attempt: &mut F) -> Result<T>
    where
        F: FnMut() -> Fut + Send,
        Fut: Future<Output = Result<T>> + Send,
    {
        let late = |_| {
            let message = format!("{} did not answer within {:?}", self.server, self.limit);
            Error::new(ErrorKind::Timeout, message).with_operation(operation).with_retryable(true)
        };
        tokio::time::timeout(self.limit, attempt()).await.map_err(late)?
    }

    fn admit(&self, operation: &'static str) -> Result<Trial<'_>> {
        let now = Instant::now();
        let mut circuit = self.lock();
        let Some(try_from) = circuit.try_from else { return Ok(Trial { of: self, trying: false }) };
        if now >= try_from && !circuit.trying {
            circuit.trying = true;
            return Ok(Trial { of: self, trying: true });
        }
        let wait = try_from.saturating_duration_since(now);
        let message = format!(
            "{} failed {} times in a row and is left alone for a moment",
            self.server, circuit.failures
        );
        Err(Error::new(ErrorKind::Unreachable, message).with_operation(operation).with_retry_after(wait))
    }

    fn lock(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Resilience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resilience({}, {})", self.server, self.state().as_str())
    }
}

/// An admitted operation. Dropped before it is settled, it says nothing about the server.
struct Trial<'r> {
    of: &'r Resilience,
    trying: bool,
}

impl Trial<'_> {
    fn settle(self, error: Option<&Error>) {
        let mut circuit = self.of.lock();
        if !self.of.breaks || !error.is_some_and(|e| is_servers_fault(e.kind())) {
            *circuit = Circuit { trying: circuit.trying, ..Circuit::default() };
            return;
        }
        circuit.failures = circuit.failures.saturating_add(1);
        // Those that were under way when it opened do not lengthen its pause.
        if self.trying || (circuit.try_from.is_none() && circuit.failures >= OPENS_AFTER) {
            circuit.pause = (circuit.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            circuit.try_from = Some(Instant::now() + circuit.pause);
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if self.trying {
            self.of.lock().trying = false;
        }
    }
}

/// What says that the server is gone or silent. That it is busy, or gave up on one statement, it said itself: one tenant's
/// heavy query must not take the store from everybody.
fn is_servers_fault(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Transport | ErrorKind::Unreachable | ErrorKind::Timeout)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Runs an operation that fails with `kind` as often as `fails` says; returns the outcome and how often it was tried.
    async fn run(of: &Resilience, repeat: Repeat, kind: ErrorKind, fails: u32) -> (Option<ErrorKind>, u32) {
        let tried = AtomicU32::new(0);
        let attempt = || async {
            let n = tried.fetch_add(1, Ordering::Relaxed);
            if n < fails { Err(Error::new(kind, "no")) } else { Ok(()) }
        };
        let outcome = of.run("recall", repeat, attempt).await.err().map(|e| e.kind());
        (outcome, tried.load(Ordering::Relaxed))
    }

    fn guard() -> Resilience {
        Resilience::new("the server", Duration::from_secs(1))
    }

    #[tokio::test(start_paused = true)]
    async fn one_retry_where_it_is_safe() {
        use ErrorKind::{Erased, Transport, Unreachable};
        assert_eq!(run(&guard(), Repeat::Safe, Transport, 1).await, (None, 2));
        assert_eq!(run(&guard(), Repeat::Safe, Transport, 9).await, (Some(Transport), 2));
        assert_eq!(run(&guard(), Repeat::Unsafe, Transport, 1).await, (Some(Transport), 1));
        assert_eq!(run(&guard(), Repeat::Unsafe, Unreachable, 1).await, (None, 2), "nothing was sent");
        assert_eq!(run(&guard(), Repeat::Safe, Erased, 1).await, (Some(Erased), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_fails_at_once_and_closes_again() {
        let guard = guard();
        for _ in 0..5 {
            assert_eq!(guard.state(), CircuitState::Closed);
            run(&guard, Repeat::Unsafe, ErrorKind::Transport, 9).await;
        }
        assert_eq!(guard.state(), CircuitState::Open);
        assert_eq!(
            run(&guard, Repeat::Safe, ErrorKind::Transport, 0).await,
            (Some(ErrorKind::Unreachable), 0)
        );
        let answer = guard.run("ready", Repeat::Safe, || async { Ok(()) }).await;
        assert!(answer.as_ref().unwrap_err().retry_after().is_some());
        let readiness = guard.readiness(&answer);
        assert!(!readiness.ready && readiness.circuit == CircuitState::Open && !readiness.detail.is_empty());
        tokio::time::sleep(FIRST_PAUSE).await;
        run(&guard, Repeat::Unsafe, ErrorKind::Transport, 9).await;
        tokio::time::sleep(FIRST_PAUSE).await;
        assert_eq!(
            run(&guard, Repeat::Safe, ErrorKind::Transport, 0).await,
            (Some(ErrorKind::Unreachable), 0),
            "a failed trial doubles the pause"
        );
        tokio::time::sleep(FIRST_PAUSE).await;
        assert_eq!(run(&guard, Repeat::Safe, ErrorKind::Transport, 0).await, (None, 1));
        assert_eq!(guard.state(), CircuitState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn one_tries_and_one_who_leaves_lets_the_next_try() {
        let guard = guard();
        for _ in 0..5 {
            run(&guard, Repeat::Unsafe, ErrorKind::Unreachable, 9).await;
        }
        tokio::time::sleep(FIRST_PAUSE).await;
        {
            let slow = guard.run("a", Repeat::Safe, || async {
                tokio::time::sleep(Duration::from_millis(900)).await;
                Ok(())
            });
            let gone = tokio::time::timeout(Duration::from_millis(10), slow);
            let (gone, other) = tokio::join!(gone, async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                assert_eq!(guard.state(), CircuitState::HalfOpen);
                run(&guard, Repeat::Safe, ErrorKind::Transport, 0).await
            });
            assert!(gone.is_err());
            assert_eq!(other, (Some(ErrorKind::Unreachable), 0));
        }
        assert_eq!(run(&guard, Repeat::Safe, ErrorKind::Transport, 0).await, (None, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_server_is_not_a_lost_one() {
        let guard = guard();
        for _ in 0..20 {
            assert_eq!(
                run(&guard, Repeat::Safe, ErrorKind::Overloaded, 9).await.1,
                1,
                "nor is it asked twice"
            );
        }
        assert_eq!(guard.state(), CircuitState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_has_no_circuit() {
        let guard = Resilience::without_circuit("the file", Duration::from_secs(1));
        for _ in 0..20 {
            run(&guard, Repeat::Unsafe, ErrorKind::Transport, 9).await;
        }
        assert_eq!(run(&guard, Repeat::Safe, ErrorKind::Transport, 0).await, (None, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_fails_and_counts() {
        let guard = guard();
        for _ in 0..5 {
            let outcome = guard.run("recall", Repeat::Safe, std::future::pending::<Result<()>>).await;
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Timeout);
        }
        assert_eq!(guard.state(), CircuitState::Open);
    }
}
