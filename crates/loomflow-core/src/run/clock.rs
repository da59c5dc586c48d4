//! A run's clock: a monotonic deadline that stands still while the run waits for a person.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Counts the time a run is really running. It stands while somebody is waited for and nothing else is done: a call that
/// works in parallel with one that asks is not free.
#[derive(Debug)]
pub(crate) struct RunClock {
    began: Instant,
    inner: Mutex<Inner>,
    resumed: Notify,
}

#[derive(Debug)]
struct Inner {
    deadline: Instant,
    /// How many tool calls wait for somebody.
    waiting: u32,
    /// How many tool calls are at work.
    working: u32,
    /// Since when the clock stands, if it stands.
    standing: Option<Instant>,
    stood: Duration,
}

impl RunClock {
    pub(crate) fn new(limit: Duration) -> Self {
        let began = Instant::now();
        let inner =
            Inner { deadline: began + limit, waiting: 0, working: 0, standing: None, stood: Duration::ZERO };
        Self { began, inner: Mutex::new(inner), resumed: Notify::new() }
    }

    /// Brings the deadline forward to `limit` from the beginning, if that is sooner.
    pub(crate) fn shorten(&self, limit: Duration) {
        let mut inner = self.inner();
        inner.deadline = inner.deadline.min(self.began + limit);
    }

    /// When the run must be over; it moves while the clock stands.
    pub(crate) fn deadline(&self) -> Instant {
        let inner = self.inner();
        inner.deadline + inner.standing.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// How long the run may still go on.
    pub(crate) fn remaining(&self) -> Duration {
        self.deadline().saturating_duration_since(Instant::now())
    }

    /// The time spent, waiting for people left out.
    pub(crate) fn running(&self) -> Duration {
        let inner = self.inner();
        let standing = inner.standing.map(|since| since.elapsed()).unwrap_or_default();
        self.began.elapsed().saturating_sub(inner.stood + standing)
    }

    /// Says that somebody is waited for, until what is returned is dropped.
    pub(crate) fn waiting(&self) -> Share<'_> {
        self.change(|inner| inner.waiting += 1);
        Share { clock: self, done: |inner| inner.waiting -= 1 }
    }

    /// Says that a tool is at work, until what is returned is dropped.
    pub(crate) fn working(&self) -> Share<'_> {
        self.change(|inner| inner.working += 1);
        Share { clock: self, done: |inner| inner.working -= 1 }
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.inner();
        change(&mut inner);
        let stands = inner.waiting > 0 && inner.working == 0;
        match inner.standing {
            None if stands => inner.standing = Some(Instant::now()),
            Some(since) if !stands => {
                let stood = since.elapsed();
                inner.standing = None;
                inner.stood += stood;
                inner.deadline += stood;
                self.resumed.notify_waiters();
            }
            _ => {}
        }
    }

    /// Ends when the deadline has passed, however often the clock stood.
    pub(crate) async fn expired(&self) {
        loop {
            let resumed = self.resumed.notified();
            let (deadline, stands) = {
                let inner = self.inner();
                (inner.deadline, inner.standing.is_some())
            };
            if stands {
                resumed.await;
            } else if Instant::now() >= deadline {
                return;
            } else {
                tokio::time::sleep_until(deadline).await;
            }
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a tool call does to the clock while it does it.
pub(crate) struct Share<'c> {
    clock: &'c RunClock,
    done: fn(&mut Inner),
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.clock.change(self.done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_person_does_not_count() {
        let clock = RunClock::new(Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(4)).await;
        {
            let _first = clock.waiting();
            tokio::time::advance(Duration::from_secs(50)).await;
            let _second = clock.waiting();
            tokio::time::advance(Duration::from_secs(50)).await;
            assert_eq!(clock.running(), Duration::from_secs(4));
            assert_eq!(clock.remaining(), Duration::from_secs(6));
        }
        assert_eq!(clock.running(), Duration::from_secs(4));
        let began = Instant::now();
        clock.expired().await;
        assert_eq!(began.elapsed(), Duration::from_secs(6));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_begins_while_the_timer_sleeps_moves_the_deadline() {
        let clock = RunClock::new(Duration::from_secs(10));
        let began = Instant::now();
        let pause = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let _pause = clock.waiting();
            tokio::time::sleep(Duration::from_secs(100)).await;
        };
        futures_util::future::join(clock.expired(), pause).await;
        assert_eq!(began.elapsed(), Duration::from_secs(110));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_at_work_keeps_the_clock_going_whoever_else_waits() {
        let clock = RunClock::new(Duration::from_secs(100));
        let _waiting = clock.waiting();
        {
            let _working = clock.working();
            tokio::time::advance(Duration::from_secs(30)).await;
        }
        tokio::time::advance(Duration::from_secs(500)).await;
        assert_eq!(clock.running(), Duration::from_secs(30));
        assert_eq!(clock.remaining(), Duration::from_secs(70));
    }
}
