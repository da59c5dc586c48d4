//! A closed loop: so many workers, each of which begins the next operation when its last one has been answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use loomflow_core::{Error, ErrorKind, Result};
use tokio::task::JoinSet;

use crate::progress::Progress;

/// When a loop ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) workers: usize,
    /// After so many operations,
    pub(super) operations: u64,
    /// or so long, whatever comes first.
    pub(super) time: Duration,
}

/// What a loop did.
#[derive(Debug)]
pub(super) struct Done {
    /// Ascending.
    pub(super) latencies: Vec<Duration>,
    pub(super) wall: Duration,
}

impl Load {
    /// Exactly so many operations.
    pub(super) fn of(workers: usize, operations: u64) -> Self {
        Self { workers, operations, time: Duration::MAX }
    }

    /// Does `operation` again and again; each is given its number.
    pub(super) async fn run<F, Fut>(self, progress: &Progress, operation: F) -> Result<Done>
    where
        F: Fn(u64) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        let (operation, next) = (Arc::new(operation), Arc::new(AtomicU64::new(0)));
        let _drawing = progress.draw();
        let began = Instant::now();
        let mut workers = JoinSet::new();
        for _ in 0..self.workers.max(1) {
            let (operation, next, progress) = (operation.clone(), next.clone(), progress.clone());
            workers.spawn(async move {
                let mut latencies = Vec::new();
                while began.elapsed() < self.time {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= self.operations {
                        break;
                    }
                    let started = Instant::now();
                    operation(number).await?;
                    latencies.push(started.elapsed());
                    progress.tick();
                }
                Ok::<_, Error>(latencies)
            });
        }
        let mut latencies = Vec::new();
        while let Some(done) = workers.join_next().await {
            let panicked = |_| Error::new(ErrorKind::Internal, "a worker of the load panicked");
            latencies.extend(done.map_err(panicked)??);
        }
        let wall = began.elapsed();
        latencies.sort_unstable();
        Ok(Done { latencies, wall })
    }
}
