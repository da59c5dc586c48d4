//! Asks a ledger all the time whether what is used and held is within the caps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use loomflow_core::{Ledger, Scope, UsageReport};
use parking_lot::Mutex;
use serde::Serialize;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// What was seen.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(clippy::exhaustive_structs, reason = "read by the round beside it")]
pub(super) struct Samples {
    /// Looks.
    pub(super) looks: u64,
    /// Looks that failed, as they do while a server is down.
    pub(super) failed: u64,
    /// Looks that saw more than a cap.
    pub(super) overspend: u64,
    /// The most of the cap of all users together that was ever used and held.
    pub(super) most: u64,
    /// The first overspend, in words.
    pub(super) example: Option<String>,
}

impl Samples {
    fn look(&mut self, report: &UsageReport, all: bool) {
        self.looks += 1;
        let mut over = false;
        for line in &report.windows {
            let sum = line.used.saturating_add(line.held);
            if all {
                self.most = self.most.max(sum);
            }
            if sum > line.limit {
                over = true;
                self.example.get_or_insert_with(|| {
                    format!("{} is {}: {} used, {} held", line.cap, line.limit, line.used, line.held)
                });
            }
        }
        self.overspend += u64::from(over);
    }
}

/// Looks until it is stopped.
#[derive(Debug)]
pub(super) struct Sampler {
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Samples>>,
    looking: tokio::task::JoinHandle<()>,
}

impl Sampler {
    /// Looks at all of `users`, who share a namespace, and at one of them after the other.
    ///
    /// # Panics
    ///
    /// When there is no user.
    pub(super) fn start(ledger: Arc<dyn Ledger>, users: Arc<[Scope]>) -> Self {
        let (stop, samples) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Samples::default())));
        let (stopped, seen) = (stop.clone(), samples.clone());
        let looking = tokio::spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                let scope = &users[rand::random_range(0..users.len())];
                for all in [true, false] {
                    let report =
                        if all { ledger.namespace_usage(scope).await } else { ledger.usage(scope).await };
                    match report {
                        Ok(report) => seen.lock().look(&report, all),
                        Err(_) => seen.lock().failed += 1,
                    }
                }
                // A ledger in this process answers without ever waiting, and others want the processor, too.
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { stop, samples, looking }
    }

    /// Ends it.
    pub(super) async fn stop(self) -> Samples {
        self.stop.store(true, Ordering::SeqCst);
        // A panic in it would be one in every look, and there were some.
        let _ended = self.looking.await;
        self.samples.lock().clone()
    }
}
