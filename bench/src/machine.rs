//! What the machine says: its processor, this process's CPU time and its resident memory.

use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;

/// The machine a report is from.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Machine {
    /// Cores this process may use.
    pub cores: usize,
    /// The processor's name.
    pub cpu: String,
}

impl Machine {
    /// This machine.
    #[must_use]
    pub fn here() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: name.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned()),
        }
    }
}

/// User and system time of this process so far, in seconds; zero where it cannot be had.
#[must_use]
pub fn cpu_seconds() -> f64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return 0.0 };
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// Resident memory of this process in bytes; zero where it cannot be had.
#[must_use]
pub fn rss_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
    pages.unwrap_or(0) * page_size()
}

fn page_size() -> u64 {
    // `sysconf` is behind a feature that is not worth its price here: Linux keeps the page size in the auxiliary vector
    // of every process (type 6, AT_PAGESZ).
    static SIZE: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *SIZE.get_or_init(|| {
        let auxv = std::fs::read("/proc/self/auxv").unwrap_or_default();
        let word = |bytes: &[u8]| bytes.try_into().map(u64::from_ne_bytes).unwrap_or(0);
        auxv.chunks_exact(16).find(|entry| word(&entry[..8]) == 6).map_or(4_096, |entry| word(&entry[8..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_answers() {
        assert!(cpu_seconds() > 0.0);
        assert!(rss_bytes() > 100_000);
        assert!(page_size().is_power_of_two() && page_size() >= 4_096);
        assert!(Machine::here().cores > 0);
    }
}
