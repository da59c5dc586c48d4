//! Where operations wait, and the task that takes what waits into one transaction, commits, and only then answers.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use loomflow_core::resilience::{Repeat, Resilience};
use loomflow_core::{Error, ErrorKind, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout};

use crate::batch::{Answer, Batch, Item};
use crate::store::Store;

/// The most operations of one transaction: each may lock a user, and the server's table of locks is shared.
const TOGETHER: usize = 64;
/// How many operations may wait in a lane; those that come then wait outside, in order.
const PLACES: usize = 4_096;
/// How often others are let run before a transaction begins, as long as it brings more to wait.
const LET_RUN: usize = 4;
/// How often a lane looks for rows whose time is over, in a namespace that it works for.
const TIDY_EVERY: Duration = Duration::from_secs(300);
const TIDY_AGAIN: Duration = Duration::from_secs(2);

/// One queue and, while something waits in it, one task.
pub(crate) struct Lane {
    store: Arc<Store>,
    resilience: Arc<Resilience>,
    limit: Duration,
    queue: Mutex<Queue>,
    places: Arc<Semaphore>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Item, OwnedSemaphorePermit)>,
    is_running: bool,
    tidies_at: Option<Instant>,
}

impl Lane {
    pub(crate) fn new(store: Arc<Store>, resilience: Arc<Resilience>, limit: Duration) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(PLACES));
        Arc::new(Self { store, resilience, limit, queue: Mutex::default(), places })
    }

    /// Has an operation done. Dropped while it waits, it is taken out; once its transaction began, it is done whole or not
    /// at all, whoever waits.
    ///
    /// # Errors
    ///
    /// The operation's own; those of its transaction; [`ErrorKind::Overloaded`] when there is no place in time.
    pub(crate) async fn run(
        self: &Arc<Self>,
        item: Item,
        answer: oneshot::Receiver<Result<Answer>>,
    ) -> Result<Answer> {
        let operation = item.op.name();
        let place = timeout(self.limit, self.places.clone().acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            let message = "too many operations wait for PostgreSQL; lower the load";
            return Err(Error::new(ErrorKind::Overloaded, message).with_operation(operation));
        };
        self.put(item, place);
        match timeout(self.limit * 3, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                let message = "the task that talks to PostgreSQL was ended";
                Err(Error::new(ErrorKind::Transport, message).with_operation(operation))
            }
            Err(_) => {
                let message = format!("PostgreSQL did not answer within {:?}", self.limit * 3);
                Err(Error::new(ErrorKind::Timeout, message).with_operation(operation).with_retryable(true))
            }
        }
    }

    fn put(self: &Arc<Self>, item: Item, place: OwnedSemaphorePermit) {
        let mut queue = self.lock();
        queue.waiting.push_back((item, place));
        if !queue.is_running {
            queue.is_running = true;
            drop(queue);
            tokio::spawn(Running { lane: self.clone(), has_ended: false }.work());
        }
    }

    /// The next operations of one namespace; `None` when none waits, and the lane's task has ended.
    fn next(&self) -> Option<Batch> {
        let mut queue = self.lock();
        let mut together: Vec<Item> = Vec::new();
        let mut others = VecDeque::new();
        while together.len() < TOGETHER
            && let Some((item, place)) = queue.waiting.pop_front()
        {
            if item.answer.is_closed() {
                continue;
            }
            if together.first().is_none_or(|first| first.owner.namespace() == item.owner.namespace()) {
                together.push(item);
            } else {
                others.push_back((item, place));
            }
        }
        others.append(&mut queue.waiting);
        queue.waiting = others;
        let Some(first) = together.first() else {
            queue.is_running = false;
            return None;
        };
        Some(Batch::new(first.owner.namespace().clone(), together))
    }

    /// Whether it is time to look for rows whose time is over.
    fn is_time_to_tidy(&self) -> bool {
        let now = Instant::now();
        let mut queue = self.lock();
        let due = queue.tidies_at.is_some_and(|at| at <= now);
        if due || queue.tidies_at.is_none() {
            queue.tidies_at = Some(now + TIDY_EVERY);
        }
        due
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane({} wait)", self.lock().waiting.len())
    }
}

/// A lane's task. Ended from outside, it leaves nobody waiting, and the next operation begins another.
struct Running {
    lane: Arc<Lane>,
    has_ended: bool,
}

impl Running {
    async fn work(mut self) {
        let lane = self.lane.clone();
        loop {
            self.gather().await;
            let Some(batch) = lane.next() else {
                self.has_ended = true;
                return;
            };
            let done = lane.resilience.run("ledger", Repeat::Safe, || lane.store.perform(&batch)).await;
            let namespace = batch.namespace().clone();
            answer(batch, done);
            if lane.is_time_to_tidy() {
                // What fails here fails for the operations, too, and is told there.
                let more = timeout(lane.limit, lane.store.sweep(&namespace, true)).await;
                if let Ok(Ok(true)) = more {
                    lane.lock().tidies_at = Some(Instant::now() + TIDY_AGAIN);
                }
            }
        }
    }

    /// Those who were answered just now may have more to do: they are let run, so that it is done together.
    async fn gather(&self) {
        let mut waiting = 0;
        for _ in 0..LET_RUN {
            tokio::task::yield_now().await;
            let now = self.lane.lock().waiting.len();
            if now >= TOGETHER || now == waiting {
                return;
            }
            waiting = now;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Once it has ended, another may be running.
        if !self.has_ended {
            let mut queue = self.lane.lock();
            queue.is_running = false;
            queue.waiting.clear();
        }
    }
}

/// Answers everybody who still waits.
fn answer(batch: Batch, done: Result<Vec<Result<Answer>>>) {
    match done {
        Ok(answers) => {
            for (item, answer) in batch.into_items().into_iter().zip(answers) {
                drop(item.answer.send(answer));
            }
        }
        Err(error) => {
            for item in batch.into_items() {
                let mut told = Error::new(error.kind(), error.message())
                    .with_operation(item.op.name())
                    .with_retryable(error.is_retryable());
                if let Some(after) = error.retry_after() {
                    told = told.with_retry_after(after);
                }
                drop(item.answer.send(Err(told)));
            }
        }
    }
}
