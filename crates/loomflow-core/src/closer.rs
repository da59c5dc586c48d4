//! Finishes what a dropped future left behind: settles holds and writes terminal records.
//!
//! `Drop` cannot await. Whatever must happen all the same is an owned future with a place in this queue, taken before
//! there was anything to finish. Polled to its end, it gives the place back; dropped before, it is handed over, and the
//! closer's task polls it on from where it stood. So a record is written exactly once, and no queue can be full when a
//! place is needed.

use std::any::Any;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, ErrorKind, Result};

/// A boxed future that can be polled by whoever holds it.
pub(crate) type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

type Job = Work<()>;

const LANES: usize = 8;
/// Places over all lanes: how many runs and holds can be open at once.
const PLACES: usize = 65_536;
/// The longest one job may take: a store that hangs must not stop the others for ever.
const JOB_LIMIT: Duration = Duration::from_secs(30);

/// The queue and its tasks. Jobs of one lane run in order, so a run's holds are settled before its record is written.
pub(crate) struct Closer {
    lanes: RwLock<Option<Vec<mpsc::Sender<Job>>>>,
}

impl Closer {
    pub(crate) fn new() -> Self {
        Self { lanes: RwLock::new(None) }
    }

    /// Takes a place in the lane of `key`, waiting while all are taken.
    pub(crate) async fn slot(&self, key: u128) -> Result<Slot> {
        let lane = (key % LANES as u128) as usize;
        // Twice, because the runtime that ran the lanes may end between looking and taking.
        for _ in 0..2 {
            let sender = self.lane(lane);
            if let Ok(permit) = sender.reserve_owned().await {
                return Ok(Slot(permit));
            }
        }
        Err(Error::new(ErrorKind::Internal, "the closer's task is gone: its runtime was shut down"))
    }

    /// Waits until everything handed over so far is finished.
    pub(crate) async fn drain(&self) -> Result<()> {
        let running = self.lanes.read().unwrap_or_else(PoisonError::into_inner).is_some();
        if running {
            for lane in 0..LANES {
                self.barrier(lane as u128).await?;
            }
        }
        Ok(())
    }

    /// Waits until everything that was handed over in the lane of `key` so far is finished.
    pub(crate) async fn barrier(&self, key: u128) -> Result<()> {
        let (done, wait) = oneshot::channel();
        self.slot(key).await?.hand_over(Box::pin(async move {
            // The waiter may have been dropped; the barrier itself has no other effect.
            let _gone = done.send(());
        }));
        wait.await.map_err(|_| Error::new(ErrorKind::Internal, "the closer's task ended before it was done"))
    }

    fn lane(&self, lane: usize) -> mpsc::Sender<Job> {
        // The lanes live and die together, with the runtime that runs them.
        let alive = |all: &Option<Vec<mpsc::Sender<Job>>>| {
            all.as_ref().map(|all| &all[lane]).filter(|sender| !sender.is_closed()).cloned()
        };
        if let Some(sender) = alive(&self.lanes.read().unwrap_or_else(PoisonError::into_inner)) {
            return sender;
        }
        let mut lanes = self.lanes.write().unwrap_or_else(PoisonError::into_inner);
        alive(&lanes)
            .unwrap_or_else(|| lanes.insert((0..LANES).map(|_| spawn_lane()).collect())[lane].clone())
    }
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closer")
    }
}

fn spawn_lane() -> mpsc::Sender<Job> {
    let (sender, mut jobs) = mpsc::channel::<Job>(PLACES / LANES);
    tokio::spawn(async move {
        while let Some(job) = jobs.recv().await {
            // A job that panics or hangs costs itself, not the lane; the lease of its hold covers the rest.
            let _ended: Result<Result<(), Box<dyn Any + Send>>, _> =
                tokio::time::timeout(JOB_LIMIT, AssertUnwindSafe(job).catch_unwind()).await;
        }
    });
    sender
}

/// A place in the queue.
pub(crate) struct Slot(mpsc::OwnedPermit<Job>);

impl Slot {
    fn hand_over(self, job: Job) {
        self.0.send(job);
    }
}

/// A future that finishes whatever becomes of its owner: dropped before its end, the closer polls it on.
#[must_use = "await it, or drop it to let the closer finish it"]
pub(crate) struct Handoff<T: Send + 'static> {
    work: Option<(Work<T>, Slot)>,
    orphaned: Option<fn(T) -> Work<()>>,
}

impl<T: Send + 'static> Handoff<T> {
    pub(crate) fn new(slot: Slot, work: Work<T>) -> Self {
        Self { work: Some((work, slot)), orphaned: None }
    }

    /// Says what to do with an answer that nobody waits for any more: to give back what was taken, say.
    pub(crate) fn or_undo(mut self, undo: fn(T) -> Work<()>) -> Self {
        self.orphaned = Some(undo);
        self
    }

    /// Awaits the answer and keeps the place in the queue, for what has to be finished next.
    pub(crate) async fn keeping_its_place(mut self) -> (T, Slot) {
        let answer = std::future::poll_fn(|cx| {
            let (work, _) = self.work.as_mut().expect("a handoff is not polled after its end");
            work.as_mut().poll(cx)
        })
        .await;
        let (_, slot) = self.work.take().expect("the place is kept until the work has ended");
        (answer, slot)
    }
}

impl<T: Send + 'static> Future for Handoff<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let (work, _) = self.work.as_mut().expect("a handoff is not polled after its end");
        let ended = work.as_mut().poll(cx);
        if ended.is_ready() {
            self.work = None;
        }
        ended
    }
}

impl<T: Send + 'static> Drop for Handoff<T> {
    fn drop(&mut self) {
        if let Some((work, slot)) = self.work.take() {
            let orphaned = self.orphaned;
            slot.hand_over(Box::pin(async move {
                // Nobody waits for the answer any more; the effect is what counts, or what undoes it.
                let answer = work.await;
                match orphaned {
                    Some(undo) => undo(answer).await,
                    None => drop(answer),
                }
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_dropped_handoff_is_finished_from_where_it_stood() {
        let closer = Closer::new();
        let steps = Arc::new(AtomicU32::new(0));
        for polled in [false, true] {
            let steps_of_job = steps.clone();
            let mut handoff = Handoff::new(
                closer.slot(1).await.unwrap(),
                Box::pin(async move {
                    steps_of_job.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    steps_of_job.fetch_add(10, Ordering::SeqCst);
                }),
            );
            if polled {
                assert!((&mut handoff).now_or_never().is_none());
            }
            drop(handoff);
            closer.drain().await.unwrap();
        }
        assert_eq!(steps.load(Ordering::SeqCst), 22);
    }

    #[tokio::test]
    async fn a_panicking_job_does_not_end_its_lane() {
        let closer = Closer::new();
        drop(Handoff::<()>::new(closer.slot(1).await.unwrap(), Box::pin(async { panic!("on purpose") })));
        closer.drain().await.unwrap();
        let done = Handoff::new(closer.slot(1).await.unwrap(), Box::pin(async { 7 })).await;
        assert_eq!(done, 7);
    }
}
