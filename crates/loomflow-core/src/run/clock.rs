//! A run's clock: a monotonic deadline that stands still while the run waits for a person.
//!
//! Clocks nest: a tool call has one within its run's, and a run that the tool delegates to has one within the call's. A
//! clock that stands counts as waiting in the one around it, and one that goes counts as working; so a whole tree of runs
//! stands exactly when a person is waited for somewhere and nothing is at work anywhere.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// The clock around this one.
    outer: Option<Arc<RunClock>>,
}

#[derive(Debug)]
struct Inner {
    deadline: Instant,
    /// How many wait for somebody: calls that ask, and clocks within that stand.
    waiting: u32,
    /// How many clocks within go.
    working: u32,
    /// Since when the clock stands, if it stands.
    standing: Option<Instant>,
    stood: Duration,
    /// Whether the clock around this one counts it.
    counted: bool,
}

impl RunClock {
    pub(crate) fn new(limit: Duration) -> Self {
        Self::starting(limit, None)
    }

    /// A clock within `outer`, at work in it until what is returned is dropped.
    pub(crate) fn within(outer: &Arc<Self>, limit: Duration) -> Within {
        outer.change(&|inner| inner.working += 1);
        let clock = Self::starting(limit, Some(outer.clone()));
        clock.inner().counted = true;
        Within(Arc::new(clock))
    }

    fn starting(limit: Duration, outer: Option<Arc<Self>>) -> Self {
        let began = Instant::now();
        let inner = Inner {
            deadline: began + limit,
            waiting: 0,
            working: 0,
            standing: None,
            stood: Duration::ZERO,
            counted: false,
        };
        Self { began, inner: Mutex::new(inner), resumed: Notify::new(), outer }
    }

    /// Brings the deadline forward to `limit` from the beginning, if that is sooner.
    pub(crate) fn shorten(&self, limit: Duration) {
        let mut inner = self.inner();
        inner.deadline = inner.deadline.min(self.began + limit);
    }

    /// When the run must be over, and everything around it; it moves while the clock stands.
    pub(crate) fn deadline(&self) -> Instant {
        let own = {
            let inner = self.inner();
            inner.deadline + inner.standing.map(|since| since.elapsed()).unwrap_or_default()
        };
        self.outer.as_ref().map_or(own, |outer| own.min(outer.deadline()))
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
        self.change(&|inner| inner.waiting += 1);
        Share { clock: self, done: |inner| inner.waiting -= 1 }
    }

    fn change(&self, change: &dyn Fn(&mut Inner)) {
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
            _ => return,
        }
        // Locks are taken from the inside out, never the other way.
        if let Some(outer) = self.outer.as_ref().filter(|_| inner.counted) {
            outer.change(&|outer| outer.turn(stands));
        }
    }

    /// Ends when this clock's own deadline has passed, however often it stood. The clocks around it have timers of their own.
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

impl Inner {
    /// A clock within came to stand, or goes again.
    fn turn(&mut self, stands: bool) {
        if stands {
            self.working -= 1;
            self.waiting += 1;
        } else {
            self.waiting -= 1;
            self.working += 1;
        }
    }
}

/// A clock that counts in the one around it until this is dropped.
#[derive(Debug)]
pub(crate) struct Within(Arc<RunClock>);

impl Within {
    pub(crate) fn clock(&self) -> &Arc<RunClock> {
        &self.0
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        let mut inner = self.0.inner();
        inner.counted = false;
        let stands = inner.standing.is_some();
        if let Some(outer) = &self.0.outer {
            outer.change(&|outer| if stands { outer.waiting -= 1 } else { outer.working -= 1 });
        }
    }
}

/// What a tool call does to the clock while it does it.
pub(crate) struct Share<'c> {
    clock: &'c RunClock,
    done: fn(&mut Inner),
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.clock.change(&self.done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(clock: &RunClock) -> u32 {
        let inner = clock.inner();
        inner.working + inner.waiting
    }

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
        let clock = Arc::new(RunClock::new(Duration::from_secs(100)));
        let _waiting = clock.waiting();
        {
            let _working = RunClock::within(&clock, Duration::from_secs(99));
            tokio::time::advance(Duration::from_secs(30)).await;
        }
        tokio::time::advance(Duration::from_secs(500)).await;
        assert_eq!(clock.running(), Duration::from_secs(30));
        assert_eq!(clock.remaining(), Duration::from_secs(70));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tree_of_clocks_stands_when_somebody_is_waited_for_and_nothing_is_at_work() {
        let second = Duration::from_secs(1);
        let run = Arc::new(RunClock::new(100 * second));
        let call = RunClock::within(&run, 50 * second);
        let (one, other) =
            (RunClock::within(call.clock(), 40 * second), RunClock::within(call.clock(), 40 * second));
        let waits = one.clock().waiting();
        tokio::time::advance(10 * second).await;
        let ran = || [one.clock(), other.clock(), call.clock(), &run].map(|clock| clock.running().as_secs());
        assert_eq!(ran(), [0, 10, 10, 10], "the other one works");
        drop(other.clock().waiting());
        let both = other.clock().waiting();
        tokio::time::advance(100 * second).await;
        assert_eq!(ran(), [0, 10, 10, 10], "nobody works");
        assert_eq!(run.remaining(), 90 * second);
        let parallel = RunClock::within(&run, 50 * second);
        tokio::time::advance(5 * second).await;
        assert_eq!(
            ran(),
            [0, 10, 10, 15],
            "another call of the run works, and the delegating one still waits"
        );
        drop((parallel, both));
        tokio::time::advance(5 * second).await;
        assert_eq!(ran(), [0, 15, 15, 20]);
        assert_eq!(one.clock().remaining(), 35 * second, "no longer than the call around it");
        drop(waits);
        drop((one, other));
        tokio::time::advance(second).await;
        assert_eq!((call.clock().running(), run.running()), (16 * second, 21 * second));
        drop(call);
        assert_eq!(shares(&run), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_dropped_while_it_stands_no_longer_counts() {
        let run = Arc::new(RunClock::new(Duration::from_secs(100)));
        let call = RunClock::within(&run, Duration::from_secs(100));
        let kept = call.clock().clone();
        let waits = kept.waiting();
        drop(call);
        assert_eq!(shares(&run), 0);
        drop(waits);
        assert_eq!(shares(&run), 0, "nor does it count again when it goes on");
    }
}
