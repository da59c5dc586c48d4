//! What is measured while the load runs: time, CPU, memory, and memory against tenants.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::machine::{cpu_seconds, rss_bytes};
use crate::stats::Sample;

/// How many memory samples are taken at most.
const SAMPLES: u64 = 40;

/// Says how many bytes the audit log takes by its own account.
pub type AuditBytes = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A measurement that has begun.
pub struct Meter {
    began: Instant,
    cpu: f64,
    rss: u64,
    audit_bytes: AuditBytes,
    audit_before: u64,
    users: AtomicU64,
    every: u64,
    samples: Mutex<Vec<Sample>>,
}

/// What a measurement came to.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Measured {
    /// Wall-clock time.
    pub wall: Duration,
    /// User and system time of the process, in seconds.
    pub cpu_s: f64,
    /// Resident memory before, in bytes.
    pub rss_before: u64,
    /// Resident memory after, in bytes.
    pub rss_after: u64,
    /// What the audit log took of the difference, by its own account.
    pub audit_bytes: u64,
    /// Memory against tenants.
    pub samples: Vec<Sample>,
}

impl Meter {
    /// Begins to measure a load of `users` tenants.
    #[must_use]
    pub fn begin(users: usize, audit_bytes: AuditBytes) -> Self {
        let (rss, audit_before) = (rss_bytes(), audit_bytes());
        let every = (users as u64).div_ceil(SAMPLES).max(1);
        let samples = Mutex::new(Vec::with_capacity(SAMPLES as usize + 2));
        Self {
            cpu: cpu_seconds(),
            began: Instant::now(),
            rss,
            audit_bytes,
            audit_before,
            users: AtomicU64::new(0),
            every,
            samples,
        }
    }

    /// A tenant ran for the first time.
    pub fn user_created(&self) {
        let users = self.users.fetch_add(1, Ordering::Relaxed) + 1;
        if users.is_multiple_of(self.every) {
            let audit = (self.audit_bytes)().saturating_sub(self.audit_before);
            self.samples.lock().push(Sample::new(users, rss_bytes(), audit));
        }
    }

    /// Ends the measurement.
    #[must_use]
    pub fn end(&self) -> Measured {
        let (wall, cpu) = (self.began.elapsed(), cpu_seconds());
        let mut samples = self.samples.lock().clone();
        samples.sort_by_key(|sample| sample.users);
        Measured {
            wall,
            cpu_s: cpu - self.cpu,
            rss_before: self.rss,
            rss_after: rss_bytes(),
            audit_bytes: (self.audit_bytes)().saturating_sub(self.audit_before),
            samples,
        }
    }
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Meter({:?})", self.began.elapsed())
    }
}
