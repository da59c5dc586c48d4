//! Whom a server runs as: never root, if there is another way. Also compiled into the cross-crate tests, which start servers of
//! their own.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{Uid, User};

/// `nobody`, when the caller is root; else the caller.
#[derive(Clone, Debug)]
pub(crate) struct RunsAs(Option<User>);

impl RunsAs {
    /// `nobody` when the caller is root and `nobody` can execute `program` and read every one of `files`.
    pub(crate) fn whoever_can<F: AsRef<OsStr>>(program: &Path, files: impl IntoIterator<Item = F>) -> Self {
        let can = |user: &User| {
            let mut probe = Command::new("sh");
            probe.args(["-c", "test -x \"$0\" || exit 1; for file; do test -r \"$file\" || exit 1; done"]);
            probe.arg(program).args(files).uid(user.uid.as_raw()).gid(user.gid.as_raw());
            let status = probe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        Self(Self::nobody().filter(can))
    }

    /// Whether it is root all the same.
    pub(crate) fn is_root(&self) -> bool {
        self.0.is_none() && Uid::effective().is_root()
    }

    /// Lets a command run as this user.
    pub(crate) fn apply<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        if let Some(user) = &self.0 {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    /// Makes an empty directory that is this user's; one that is there goes with what is in it.
    pub(crate) fn empty_dir(&self, dir: &Path) -> io::Result<()> {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(dir)?,
        }
        match &self.0 {
            Some(user) => std::os::unix::fs::chown(dir, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
            None => Ok(()),
        }
    }

    fn nobody() -> Option<User> {
        Uid::effective().is_root().then(|| User::from_name("nobody").ok().flatten())?
    }
}
