//! Waiting, with a bound, and with a line for the reader who waits along.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::process;
use crate::{Failure, Outcome};

const LOOK_EVERY: Duration = Duration::from_millis(25);

/// The first line about a wait comes after this, the next ones five times as late.
const QUIET: Duration = Duration::from_secs(2);

/// Asks `done` until it has an answer or `limit` is over; says `what` is waited for when that takes longer than two seconds.
pub(super) fn until<T>(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> Outcome<Option<T>>,
) -> Outcome<Option<T>> {
    let began = Instant::now();
    let mut say_at = QUIET;
    loop {
        if let Some(answer) = done()? {
            return Ok(Some(answer));
        }
        let waited = began.elapsed();
        if waited >= limit {
            return Ok(None);
        }
        if waited >= say_at {
            eprintln!("  {what} ({} s so far, at most {} s)", waited.as_secs(), limit.as_secs());
            say_at = waited + QUIET * 5;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Runs a child to its end. What it says is shown only when it fails, or takes longer than `limit`.
pub(super) fn run(command: &mut Command, what: &str, limit: Duration) -> Outcome {
    let shown = process::shown(command);
    // A group of its own, so that nothing it starts outlives it.
    use std::os::unix::process::CommandExt as _;
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().map_err(|e| Failure::Failed(format!("`{shown}` could not be started: {e}")))?;
    let said = [reader(child.stdout.take()), reader(child.stderr.take())];
    let status = until(what, limit, || child.try_wait().map_err(|e| lost(&shown, &e)))?;
    if status.is_none() {
        end_group(child.id(), Signal::SIGKILL);
        child.wait().map_err(|e| lost(&shown, &e))?;
    }
    let said: String = said.into_iter().map(|thread| thread.join().unwrap_or_default()).collect();
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(Failure::Failed(format!("`{shown}` ended with {status}:\n{}", tail(&said)))),
        None => Err(Failure::Failed(format!(
            "`{shown}` took longer than {} s and was ended:\n{}",
            limit.as_secs(),
            tail(&said)
        ))),
    }
}

/// Sends a signal to the group that process `pid` leads. A group that is gone already is what was wanted.
pub(super) fn end_group(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}

/// The last lines of a text.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(15)..].iter().map(|line| format!("    {line}\n")).collect()
}

/// Ends a child that is of no use, and what it started.
pub(super) fn put_away(child: &mut Child) {
    end_group(child.id(), Signal::SIGKILL);
    let _ = child.wait();
}

fn reader(pipe: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(pipe) = pipe {
            let _ = pipe.take(1 << 20).read_to_end(&mut said);
        }
        String::from_utf8_lossy(&said).into_owned()
    })
}

fn lost(shown: &str, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("`{shown}` cannot be waited for: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(100);

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    #[test]
    fn a_failure_brings_what_was_said_last() {
        assert!(run(&mut sh("echo fine"), "x", Duration::from_secs(60)).is_ok());
        let error = run(&mut sh("echo one; echo two >&2; exit 3"), "x", Duration::from_secs(60)).unwrap_err();
        assert!(
            matches!(&error, Failure::Failed(why) if why.contains("one") && why.contains("two")),
            "{error:?}"
        );
    }

    #[test]
    fn a_child_that_takes_too_long_is_ended_with_what_it_started() {
        let error = run(&mut sh("sleep 600 & sleep 600"), "x", SHORT).unwrap_err();
        assert!(matches!(&error, Failure::Failed(why) if why.contains("took longer")), "{error:?}");
    }

    #[test]
    fn a_wait_ends_with_the_answer_the_error_or_the_limit() {
        let mut asked = 0;
        let answer = until("x", Duration::from_secs(60), || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(answer.unwrap(), Some(3));
        assert_eq!(until("x", SHORT, || Ok(None::<u8>)).unwrap(), None);
        assert!(until("x", SHORT, || Err::<Option<u8>, _>(Failure::Exit(1))).is_err());
    }
}
