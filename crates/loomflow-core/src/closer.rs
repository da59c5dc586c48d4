//! Finishes what a dropped future left behind: settles holds and writes terminal records.
//!
//! `Drop` cannot await. Whatever must happen all the same is an owned future with a place in this queue, taken before
//! there was anything to finish. Polled to its end, it gives the place back; dropped before, it is handed over, and the
//! closer's task polls it on from where it stood. So a record is written exactly once, and no queue can be full when a
//! place is needed.
//!
//! What bounds the queue is what can be in flight: a limited number of runs and erasures enter, and the places within a
//! run are as many as its settings let calls be open at once. A place within a run is therefore never waited for: runs
//! that each hold some and wait for another would wait for one another.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::error::{Error, ErrorKind, Result};
use crate::ledger::CLOSING_LIMIT;

/// A boxed future that can be polled by whoever holds it.
pub(crate) type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How many runs and erasures can be in flight at once.
const ENTRIES: usize = 65_536;
/// How many jobs are under way at once, each of another run.
const AT_ONCE: usize = 512;
/// The longest one job may take: a store that hangs must not hold a run's records for ever. A charge that is tried again
/// and again fits in.
const JOB_LIMIT: Duration = CLOSING_LIMIT.saturating_mul(2);

/// The queue and its task. Jobs of one key run in order, so a run's holds are settled before its record is written; those
/// of different keys do not wait for one another.
pub(crate) struct Closer {
    entries: Arc<Semaphore>,
    inbox: RwLock<Option<mpsc::UnboundedSender<Message>>>,
}

enum Message {
    /// A job, with the entry that ends with it.
    Job(u128, Work<()>, Option<OwnedSemaphorePermit>),
    /// Tells when everything of a key that came before is finished.
    Barrier(u128, oneshot::Sender<()>),
    /// Tells when everything that came before is finished.
    Drain(oneshot::Sender<()>),
}

impl Closer {
    pub(crate) fn new() -> Self {
        Self::with_entries(ENTRIES)
    }

    fn with_entries(entries: usize) -> Self {
        Self { entries: Arc::new(Semaphore::new(entries)), inbox: RwLock::new(None) }
    }

    /// Takes an entry, and with it the place in which the run or erasure `key` ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Capacity`] when as many as can be are in flight. Nobody waits here: who enters holds nothing yet, and
    /// can be told to come again.
    pub(crate) fn enter(&self, key: u128) -> Result<Slot> {
        let Ok(entry) = self.entries.clone().try_acquire_owned() else {
            let message = "as many runs and erasures are in flight in this process as can be; try again when some ended";
            return Err(Error::new(ErrorKind::Capacity, message).with_retryable(true));
        };
        Ok(Slot { key, entry: Some(entry), ..self.slot(key) })
    }

    /// A place within the run `key`, which has entered.
    pub(crate) fn slot(&self, key: u128) -> Slot {
        Slot { key, inbox: self.inbox(), entry: None }
    }

    /// Waits until everything handed over so far is finished.
    pub(crate) async fn drain(&self) -> Result<()> {
        let inbox = self.inbox.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(inbox) = inbox else { return Ok(()) };
        let (done, wait) = oneshot::channel();
        // A task that is gone drops the message, and with it the end that would have answered.
        let _gone = inbox.send(Message::Drain(done));
        wait.await.map_err(|_| gone())
    }

    /// Waits until everything that was handed over under `key` so far is finished.
    pub(crate) async fn barrier(&self, key: u128) -> Result<()> {
        let (done, wait) = oneshot::channel();
        // As for a drain.
        let _gone = self.inbox().send(Message::Barrier(key, done));
        wait.await.map_err(|_| gone())
    }

    fn inbox(&self) -> mpsc::UnboundedSender<Message> {
        // The task ends with the runtime that runs it; the next caller's runtime runs another.
        type Inbox = Option<mpsc::UnboundedSender<Message>>;
        let alive = |inbox: &Inbox| inbox.as_ref().filter(|inbox| !inbox.is_closed()).cloned();
        if let Some(inbox) = alive(&self.inbox.read().unwrap_or_else(PoisonError::into_inner)) {
            return inbox;
        }
        let mut inbox = self.inbox.write().unwrap_or_else(PoisonError::into_inner);
        alive(&inbox).unwrap_or_else(|| inbox.insert(spawn()).clone())
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Internal, "the closer's task is gone: its runtime was shut down")
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closer")
    }
}

fn spawn() -> mpsc::UnboundedSender<Message> {
    // Bounded by what is in flight: see the top of this file.
    let (sender, mut inbox) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut jobs = Jobs::default();
        while let Some(next) = jobs.next(&mut inbox).await {
            match next {
                Next::Came(message) => jobs.take(message),
                Next::Ended(key, number) => jobs.ended(key, number),
            }
        }
    });
    sender
}

/// A job and the number it came with.
type Numbered = (u64, Work<()>, Option<OwnedSemaphorePermit>);

#[derive(Default)]
struct Jobs {
    /// The ones under way, one of each key, each ending with its key and number.
    running: FuturesUnordered<Work<(u128, u64)>>,
    /// Those behind the one of their key that is under way, or that is next to be.
    behind: HashMap<u128, VecDeque<Numbered>>,
    /// The first ones of their keys, when there are more than can be under way at once.
    next: VecDeque<(u128, Numbered)>,
    last_number: u64,
    open: BTreeSet<u64>,
    /// Who waits until the jobs up to a number have ended.
    drains: Vec<(u64, oneshot::Sender<()>)>,
}

enum Next {
    Came(Message),
    Ended(u128, u64),
}

impl Jobs {
    /// What happens next; nothing more when nobody can hand anything over and everything is finished.
    async fn next(&mut self, inbox: &mut mpsc::UnboundedReceiver<Message>) -> Option<Next> {
        if self.running.is_empty() {
            return inbox.recv().await.map(Next::Came);
        }
        let came = match select(pin!(inbox.recv()), self.running.next()).await {
            Either::Left((came, _)) => came,
            Either::Right((ended, _)) => return ended.map(|(key, number)| Next::Ended(key, number)),
        };
        match came {
            Some(message) => Some(Next::Came(message)),
            None => self.running.next().await.map(|(key, number)| Next::Ended(key, number)),
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Job(key, work, entry) => {
                self.last_number += 1;
                self.open.insert(self.last_number);
                let job = (self.last_number, work, entry);
                match self.behind.get_mut(&key) {
                    Some(behind) => behind.push_back(job),
                    None => {
                        self.behind.insert(key, VecDeque::new());
                        self.begin(key, job);
                    }
                }
            }
            // Behind what is left under the key, and at once where nothing is: nobody waits for what others left.
            Message::Barrier(key, done) => {
                if let Some(behind) = self.behind.get_mut(&key) {
                    self.last_number += 1;
                    self.open.insert(self.last_number);
                    // Who waited may have been dropped.
                    let told: Work<()> = Box::pin(async move {
                        let _gone = done.send(());
                    });
                    behind.push_back((self.last_number, told, None));
                } else {
                    let _gone = done.send(());
                }
            }
            Message::Drain(done) => self.drains.push((self.last_number, done)),
        }
        self.tell();
    }

    fn begin(&mut self, key: u128, job: Numbered) {
        if self.running.len() >= AT_ONCE {
            self.next.push_back((key, job));
            return;
        }
        let (number, work, entry) = job;
        self.running.push(Box::pin(async move {
            // A job that panics or hangs costs itself, not the others; the lease of its hold covers the rest.
            let _ended = tokio::time::timeout(JOB_LIMIT, AssertUnwindSafe(work).catch_unwind()).await;
            drop(entry);
            (key, number)
        }));
    }

    fn ended(&mut self, key: u128, number: u64) {
        self.open.remove(&number);
        // The next of this key lines up behind the others: no key keeps a place that others wait for.
        match self.behind.get_mut(&key).and_then(VecDeque::pop_front) {
            Some(job) => self.next.push_back((key, job)),
            None => drop(self.behind.remove(&key)),
        }
        if let Some((key, job)) = self.next.pop_front() {
            self.begin(key, job);
        }
        self.tell();
    }

    fn tell(&mut self) {
        let oldest = self.open.first().copied().unwrap_or(u64::MAX);
        for (_, done) in self.drains.extract_if(.., |(upto, _)| *upto < oldest) {
            // Who waited may have been dropped.
            let _gone = done.send(());
        }
    }
}

/// A place in the queue.
pub(crate) struct Slot {
    key: u128,
    inbox: mpsc::UnboundedSender<Message>,
    /// What the run or erasure entered with; given back when this place is.
    entry: Option<OwnedSemaphorePermit>,
}

impl Slot {
    fn hand_over(self, job: Work<()>) {
        // Fails when the runtime that would finish it was shut down; leases cover what is left.
        let _gone = self.inbox.send(Message::Job(self.key, job, self.entry));
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
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn leave(closer: &Closer, key: u128, work: impl Future<Output = ()> + Send + 'static) {
        drop(Handoff::new(closer.slot(key), Box::pin(work)));
    }

    #[tokio::test]
    async fn a_dropped_handoff_is_finished_from_where_it_stood() {
        let closer = Closer::new();
        let steps = Arc::new(AtomicU32::new(0));
        for polled in [false, true] {
            let steps_of_job = steps.clone();
            let mut handoff = Handoff::new(
                closer.slot(1),
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
    async fn a_panicking_job_does_not_end_the_others() {
        let closer = Closer::new();
        leave(&closer, 1, async { panic!("on purpose") });
        closer.drain().await.unwrap();
        let done = Handoff::new(closer.slot(1), Box::pin(async { 7 })).await;
        assert_eq!(done, 7);
    }

    /// Every job of a few keys takes a random time; of each key they end in the order in which they came.
    #[tokio::test(start_paused = true)]
    async fn of_one_key_in_order_and_of_many_at_once() {
        let closer = Closer::new();
        let ended = Arc::new(Mutex::new(Vec::new()));
        for n in 0..2_000_u128 {
            let (key, ended) = (n % 700, ended.clone());
            let pause = Duration::from_millis(rand::random_range(0..20));
            leave(&closer, key, async move {
                tokio::time::sleep(pause).await;
                ended.lock().unwrap().push((key, n));
            });
        }
        closer.drain().await.unwrap();
        let ended = ended.lock().unwrap();
        assert_eq!(ended.len(), 2_000);
        for key in 0..700 {
            let order: Vec<_> = ended.iter().filter(|(of, _)| *of == key).map(|(_, n)| *n).collect();
            assert!(order.is_sorted(), "{key}: {order:?}");
        }
        assert!(!ended.iter().is_sorted_by_key(|(_, n)| *n), "they did not wait for one another");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_job_holds_up_its_own_key_alone_and_not_for_ever() {
        let closer = Closer::new();
        leave(&closer, 1, std::future::pending());
        closer.barrier(2).await.unwrap();
        let held = tokio::time::timeout(JOB_LIMIT - Duration::from_secs(1), closer.barrier(1)).await;
        assert!(held.is_err(), "the jobs of one key are in order");
        closer.barrier(1).await.unwrap();
        closer.drain().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_what_came_before_it() {
        let closer = Closer::new();
        let ended = Arc::new(AtomicU32::new(0));
        for key in 0..(2 * AT_ONCE as u128) {
            let ended = ended.clone();
            leave(&closer, key, async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                ended.fetch_add(1, Ordering::SeqCst);
            });
        }
        closer.drain().await.unwrap();
        assert_eq!(ended.load(Ordering::SeqCst), 2 * AT_ONCE as u32);
    }

    #[tokio::test]
    async fn an_entry_is_given_back_with_its_place_and_not_before() {
        let closer = Closer::with_entries(1);
        let first = closer.enter(1).unwrap();
        assert_eq!(closer.enter(2).map(drop).unwrap_err().kind(), ErrorKind::Capacity);
        // Places within a run are not entries.
        drop((closer.slot(1), closer.slot(1)));
        let (go, wait) = oneshot::channel::<()>();
        drop(Handoff::new(first, Box::pin(async { drop(wait.await) })));
        tokio::task::yield_now().await;
        assert!(closer.enter(2).is_err(), "what was handed over is in flight still");
        go.send(()).unwrap();
        closer.drain().await.unwrap();
        let second = Handoff::new(closer.enter(2).unwrap(), Box::pin(async {}));
        second.await;
        drop(closer.enter(3).unwrap());
    }
}
