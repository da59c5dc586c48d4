//! Whether a process that was noted down is still that process. Also compiled into the cross-crate tests, which read the
//! same notes.

use std::process::{Command, Stdio};

/// When process `pid` began, in its system's own words; `None` when there is no such process, or only its remains.
///
/// A process id is used again after its process is gone; together with this it names one process for good.
pub(crate) fn born(pid: u32) -> Option<String> {
    if std::path::Path::new("/proc/self/stat").exists() { born_in_proc(pid) } else { born_by_ps(pid) }
}

fn born_in_proc(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in brackets, and may hold blanks and brackets itself.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    // The 22nd field is the start, in ticks since the machine's own: the 19th after the state.
    let start = fields.nth(18)?;
    (!matches!(state, "Z" | "X" | "x")).then(|| start.to_owned())
}

fn born_by_ps(pid: u32) -> Option<String> {
    let pid = pid.to_string();
    let output = Command::new("ps")
        .args(["-o", "state=,lstart=", "-p", &pid])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (state, start) = line.split_once(char::is_whitespace)?;
    (!state.starts_with('Z')).then(|| start.trim().to_owned())
}
