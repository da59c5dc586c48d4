//! How much memory something took at its worst, as the system saw it.

/// Measures by how much the memory of this process grew, at its peak, since it was begun.
///
/// The process is measured as a whole: run the test in a process of its own, as `cargo nextest` does.
#[derive(Clone, Copy, Debug)]
pub struct PeakMemory {
    before: Option<u64>,
}

impl PeakMemory {
    /// Begins to measure.
    #[must_use]
    pub fn begin() -> Self {
        Self { before: status("VmRSS:") }
    }

    /// The growth in bytes; `None` where the system has no `/proc/self/status`.
    #[must_use]
    pub fn growth(&self) -> Option<u64> {
        // The peak is kept by the system, so that nothing is missed between two looks. It is the whole process's, so an
        // earlier peak counts, too: what is measured may be overstated, and never understated.
        Some(status("VmHWM:")?.saturating_sub(self.before?))
    }
}

fn status(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_still_counts() {
        let peak = PeakMemory::begin();
        if peak.before.is_none() {
            return;
        }
        drop(std::hint::black_box(vec![1_u8; 32 << 20]));
        assert!(peak.growth() >= Some(31 << 20), "{peak:?}");
    }
}
