//! Where operations wait, and the task that takes what waits into one transaction, commits, and only then answers.
//!
//! A user's lock that is not granted in time fails its group. The group is halved until that user is alone: everybody else is
//! served, and the user is put aside and tried again, for as long as one attempt may take.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use loomflow_core::resilience::{Repeat, Resilience};
use loomflow_core::{Error, ErrorKind, Result};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::batch::{Answer, Batch, Item, Performed};
use crate::schema::Partition;
use crate::store::Store;
use crate::sweep::Swept;
use crate::turns::{Next, Turns};

/// The most operations of one transaction: each may lock a user, and the server's table of locks is shared.
const TOGETHER: usize = 64;
/// How many operations may wait in a lane; those that come then wait outside, in order.
const PLACES: usize = 4_096;
/// How many of them one user can have.
const PLACES_OF_ONE: usize = PLACES / 4;
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
    came: Notify,
    places: Arc<Semaphore>,
    places_of_one: Mutex<HashMap<Partition, Arc<Semaphore>>>,
}

#[derive(Default)]
struct Queue {
    turns: Turns<Item>,
    is_running: bool,
    tidies_at: Option<Instant>,
}

impl Lane {
    pub(crate) fn new(store: Arc<Store>, resilience: Arc<Resilience>, limit: Duration) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(PLACES));
        let (queue, places_of_one) = (Mutex::default(), Mutex::default());
        Arc::new(Self { store, resilience, limit, queue, came: Notify::new(), places, places_of_one })
    }

    /// Has an operation done. Dropped while it waits, it is taken out; once its transaction began, it is done whole or not
    /// at all, whoever waits.
    ///
    /// # Errors
    ///
    /// The operation's own; those of its transaction; [`ErrorKind::Overloaded`] when there is no place in time.
    pub(crate) async fn run(
        self: &Arc<Self>,
        mut item: Item,
        answer: oneshot::Receiver<Result<Answer>>,
    ) -> Result<Answer> {
        let operation = item.op.name();
        let Ok(Some(places)) = timeout(self.limit, self.places_for(item.partition())).await else {
            let message = "too many operations wait for PostgreSQL; lower the load";
            return Err(Error::new(ErrorKind::Overloaded, message).with_operation(operation));
        };
        item.places = places;
        self.put(item);
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

    /// A place among the user's own, and then one of the queue. `None` is never: nobody closes it.
    async fn places_for(&self, user: &Partition) -> Option<Vec<OwnedSemaphorePermit>> {
        let own = self.places_of_one(*user).acquire_owned().await.ok()?;
        Some(vec![own, self.places.clone().acquire_owned().await.ok()?])
    }

    fn places_of_one(&self, user: Partition) -> Arc<Semaphore> {
        let mut places = self.places_of_one.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody has a place of or waits for go, before there is room for more.
        if places.len() == places.capacity() {
            places.retain(|_, of_one| Arc::strong_count(of_one) > 1);
        }
        places.entry(user).or_insert_with(|| Arc::new(Semaphore::new(PLACES_OF_ONE))).clone()
    }

    fn put(self: &Arc<Self>, item: Item) {
        let mut queue = self.lock();
        let (namespace, user) = (item.owner.namespace().clone(), *item.partition());
        queue.turns.push(&namespace, user, item);
        if queue.is_running {
            self.came.notify_one();
        } else {
            queue.is_running = true;
            drop(queue);
            tokio::spawn(Running { lane: self.clone(), has_ended: false }.work());
        }
    }

    /// What to do next. After [`Next::Nothing`] the lane's task has ended.
    fn next(&self) -> Next<Item> {
        let mut queue = self.lock();
        let next = queue.turns.next(TOGETHER, Instant::now());
        queue.is_running = !matches!(next, Next::Nothing);
        next
    }

    /// Has a user wait whose lock is stuck, and tells those that waited for long.
    fn put_aside(&self, batch: Batch) {
        let (mut waits, mut ends) = (Vec::new(), Vec::new());
        let namespace = batch.namespace().clone();
        for item in batch.into_items() {
            if item.since.elapsed() < self.limit { waits.push(item) } else { ends.push(item) }
        }
        if let Some(user) = waits.first().or(ends.first()).map(|item| *item.partition()) {
            self.lock().turns.put_aside(&namespace, user, waits, Instant::now() + self.store.patience * 4);
        }
        for item in ends {
            let message = format!(
                "another transaction held a lock on this user's account in PostgreSQL for {:?}, and nothing was done: look for it \
                 in pg_stat_activity, or try again",
                self.limit
            );
            let error = Error::new(ErrorKind::Overloaded, message).with_operation(item.op.name());
            drop(item.answer.send(Err(error)));
        }
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
        write!(f, "Lane({} wait)", self.lock().turns.waiting())
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
            let (namespace, items) = match lane.next() {
                Next::Group(namespace, items) => (namespace, items),
                Next::Later(at) => {
                    drop(timeout_at(at, lane.came.notified()).await);
                    continue;
                }
                Next::Nothing => {
                    self.has_ended = true;
                    return;
                }
            };
            let wanted: Vec<Item> = items.into_iter().filter(|item| !item.answer.is_closed()).collect();
            if wanted.is_empty() {
                continue;
            }
            self.perform(Batch::new(namespace.clone(), wanted)).await;
            if lane.is_time_to_tidy() {
                // What fails here fails for the operations, too, and is told there.
                let more = timeout(lane.limit, lane.store.sweep(&namespace, true)).await;
                if let Ok(Ok(Swept { more: true, .. })) = more {
                    lane.lock().tidies_at = Some(Instant::now() + TIDY_AGAIN);
                }
            }
        }
    }

    /// Has a group done and answers it: in halves where a user's lock is stuck, until that user is alone.
    async fn perform(&self, batch: Batch) {
        let lane = &*self.lane;
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            let done = lane.resilience.run("ledger", Repeat::Safe, || lane.store.perform(&part)).await;
            match done {
                Ok(Performed::Done(answers)) => answer(part, Ok(answers)),
                Ok(Performed::Locked) => match part.split() {
                    Ok((left, right)) => parts.extend([right, left]),
                    Err(alone) => lane.put_aside(alone),
                },
                Err(error) => answer(part, Err(error)),
            }
        }
    }

    /// Those who were answered just now may have more to do: they are let run, so that it is done together.
    async fn gather(&self) {
        let mut waiting = 0;
        for _ in 0..LET_RUN {
            tokio::task::yield_now().await;
            let now = self.lane.lock().turns.waiting();
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
            queue.turns = Turns::default();
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
