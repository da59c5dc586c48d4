//! Starting children: always without stdin, always from the workspace's root.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::{Failure, Outcome};

/// The cargo that runs this command, so that a child uses the same toolchain.
pub(crate) fn cargo(root: &Path) -> Command {
    program(root, std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// A child that works in the workspace's root.
pub(crate) fn program(root: &Path, name: impl Into<OsString>) -> Command {
    let mut command = Command::new(name.into());
    command.current_dir(root).stdin(Stdio::null());
    command
}

/// Where a program lies on `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Runs a child whose output goes where ours goes.
pub(crate) fn run(command: &mut Command) -> Outcome {
    let status = command.status().map_err(|e| cannot_start(command, &e))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::Failed(format!("`{}` ended with {status}", shown(command))))
}

/// Runs a child and keeps its output; it is the caller's to judge.
pub(crate) fn capture(command: &mut Command) -> Outcome<Output> {
    command.output().map_err(|e| cannot_start(command, &e))
}

/// The command as one would type it, but for URLs, which may hold a password: of these, their scheme.
pub(crate) fn shown(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let mut text = name.to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        let arg = arg.to_string_lossy();
        match arg.find("://") {
            Some(at) => text.push_str(&format!("{}://..", &arg[..at])),
            None => text.push_str(&arg),
        }
    }
    text
}

fn cannot_start(command: &Command, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("`{}` could not be started: {error}", shown(command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_child_is_named_with_its_arguments() {
        let root = crate::workspace_root();
        let error = run(program(&root, "false").arg("--really")).unwrap_err();
        assert!(matches!(&error, Failure::Failed(why) if why.contains("false --really")), "{error:?}");
        let error = run(&mut program(&root, "no-such-program-anywhere")).unwrap_err();
        assert!(matches!(&error, Failure::Failed(why) if why.contains("could not be started")), "{error:?}");
        assert!(run(&mut program(&root, "true")).is_ok());
    }

    #[test]
    fn a_url_is_not_repeated() {
        let root = crate::workspace_root();
        let error =
            run(program(&root, "false").args(["--memory=postgres://u:hunter2@h/d", "-q"])).unwrap_err();
        assert!(
            matches!(&error, Failure::Failed(why) if why.contains("`false --memory=postgres://.. -q`")),
            "{error:?}"
        );
    }

    #[test]
    fn a_program_is_found_on_the_path_or_not_at_all() {
        assert!(find("sh").is_some_and(|path| path.is_absolute() && path.ends_with("sh")));
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
