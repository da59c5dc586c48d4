//! Doubles of the wall clock.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use loomflow_core::{Clock, Timestamp};

/// A double of [`Clock`] that always says the same time.
#[derive(Clone, Copy, Debug)]
pub struct FixedClock(Timestamp);

impl FixedClock {
    /// A clock that stands still at `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self(now)
    }
}

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        self.0
    }
}

/// A double of [`Clock`] that moves when it is told to, forwards or backwards. Share it in an `Arc`.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that says `now` until it is moved.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self(AtomicI64::new(now.as_micros()))
    }

    /// What the clock says.
    #[must_use]
    pub fn read(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }

    /// Turns the clock to `now`, which may lie before what it says.
    pub fn set(&self, now: Timestamp) {
        self.0.store(now.as_micros(), Ordering::SeqCst);
    }

    /// Turns the clock forwards by `d`, to the end of time at most.
    pub fn advance(&self, d: Duration) {
        let ahead = |micros| Some(Timestamp::from_micros(micros).saturating_add(d).as_micros());
        // The closure never declines, so this cannot fail.
        let _before = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, ahead);
    }
}

impl Default for ManualClock {
    /// Noon of the first of March 2021.
    fn default() -> Self {
        Self::new(crate::fixture::at(0))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_when_told() {
        let clock = ManualClock::default();
        let start = clock.now();
        clock.advance(Duration::from_micros(5));
        assert_eq!(clock.now().saturating_since(start), Duration::from_micros(5));
        clock.set(start);
        assert_eq!((clock.now(), FixedClock::new(start).now()), (start, start));
        clock.set(Timestamp::MAX);
        clock.advance(Duration::from_secs(1));
        assert_eq!(clock.now(), Timestamp::MAX);
    }
}
