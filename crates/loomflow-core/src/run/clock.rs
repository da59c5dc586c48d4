//! A run's clock: a monotonic deadline that stands still while the run waits for a person.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Counts the time a run is really running.
#[derive(Debug)]
pub(crate) struct RunClock {
    began: Instant,
    inner: Mutex<Inner>,
    resumed: Notify,
}

#[derive(Debug)]
struct Inner {
    deadline: Instant,
    /// How many tool calls wait for somebody; the clock stands while it is not zero.
    waiting: u32,
    since: Instant,
    waited: Duration,
}

impl RunClock {
    pub(crate) fn new(limit: Duration) -> Self {
        let began = Instant::now();
        let inner = Inner { deadline: began + limit, waiting: 0, since: began, waited: Duration::ZERO };
        Self { began, inner: Mutex::new(inner), resumed: Notify::new() }
    }

    /// Brings the deadline forward to `limit` from the beginning, if that is sooner.
    pub(crate) fn shorten(&self, limit: Duration) {
        let mut inner = self.inner();
        inner.deadline = inner.deadline.min(self.began + limit);
    }

    /// When the run must be over; later than now for ever while it waits for somebody.
    pub(crate) fn deadline(&self) -> Instant {
        let inner = self.inner();
        if inner.waiting == 0 { inner.deadline } else { inner.deadline + inner.since.elapsed() }
    }

    /// How long the run may still go on.
    pub(crate) fn remaining(&self) -> Duration {
        self.deadline().saturating_duration_since(Instant::now())
    }

    /// The time spent, waiting for people left out.
    pub(crate) fn running(&self) -> Duration {
        let inner = self.inner();
        let waiting = if inner.waiting == 0 { Duration::ZERO } else { inner.since.elapsed() };
        self.began.elapsed().saturating_sub(inner.waited + waiting)
    }

    /// Stops the clock until the pause is dropped.
    pub(crate) fn pause(&self) -> Pause<'_> {
        let mut inner = self.inner();
        if inner.waiting == 0 {
            inner.since = Instant::now();
        }
        inner.waiting += 1;
        Pause(self)
    }

    /// Ends when the deadline has passed, however often the clock was stopped.
    pub(crate) async fn expired(&self) {
        loop {
            let resumed = self.resumed.notified();
            let (deadline, waiting) = {
                let inner = self.inner();
                (inner.deadline, inner.waiting > 0)
            };
            if waiting {
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

/// While this lives, the clock stands.
pub(crate) struct Pause<'c>(&'c RunClock);

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.inner();
        inner.waiting -= 1;
        if inner.waiting == 0 {
            let waited = inner.since.elapsed();
            inner.waited += waited;
            inner.deadline += waited;
            self.0.resumed.notify_waiters();
        }
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
            let _first = clock.pause();
            tokio::time::advance(Duration::from_secs(50)).await;
            let _second = clock.pause();
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
            let _pause = clock.pause();
            tokio::time::sleep(Duration::from_secs(100)).await;
        };
        futures_util::future::join(clock.expired(), pause).await;
        assert_eq!(began.elapsed(), Duration::from_secs(110));
    }
}
