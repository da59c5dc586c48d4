//! Time as the ledger sees it: a wall clock that never goes back.

use std::sync::Arc;
use std::time::Duration;

use loomflow_core::rules::quota::Periods;
use loomflow_core::{Clock, Timestamp};
use parking_lot::Mutex;
use tokio::time::Instant;

/// One reading of both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tick {
    /// UTC, never before an earlier reading.
    pub(super) wall: Timestamp,
    /// Nanoseconds since the ledger began, on the runtime's monotonic clock.
    pub(super) mono: u64,
    /// The number of the window (or the slice) that `wall` lies in.
    pub(super) window: i64,
}

/// Reads the clocks.
///
/// The wall clock decides as long as it goes forward. When it is found behind what was seen before, time goes on from
/// there at the pace of the monotonic clock: a clock set back opens no old window again, and prolongs none.
#[derive(Debug)]
pub(super) struct Time {
    clock: Arc<dyn Clock>,
    origin: Instant,
    seen: Mutex<(Timestamp, u64)>,
}

impl Time {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, origin: Instant::now(), seen: Mutex::new((Timestamp::MIN, 0)) }
    }

    pub(super) fn read(&self, periods: &Periods) -> Tick {
        let now = self.clock.now();
        let mono = nanos(Instant::now().saturating_duration_since(self.origin));
        let wall = {
            let mut seen = self.seen.lock();
            let since = Duration::from_nanos(mono.saturating_sub(seen.1));
            let wall = if now < seen.0 { seen.0.saturating_add(since) } else { now };
            *seen = (wall, mono.max(seen.1));
            wall
        };
        Tick { wall, mono, window: periods.number(wall) }
    }
}

/// A duration in whole nanoseconds, stopping at the largest number.
pub(super) fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use loomflow_core::Window;

    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering};

    #[derive(Debug, Default)]
    struct Hand(AtomicI64);
    impl Clock for Hand {
        fn now(&self) -> Timestamp {
            Timestamp::from_micros(self.0.load(Ordering::SeqCst))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_set_back_goes_on_at_the_monotonic_pace() {
        let hand = Arc::new(Hand::default());
        let time = Time::new(hand.clone());
        let periods = Periods::new(Window::Hour);
        let read = |micros: i64| {
            hand.0.store(micros, Ordering::SeqCst);
            time.read(&periods).wall.as_micros()
        };
        assert_eq!(read(7_200_000_000), 7_200_000_000);
        assert_eq!(read(10), 7_200_000_000);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(read(20), 7_205_000_000);
        assert_eq!(read(7_204_000_000), 7_205_000_000);
        assert_eq!(read(9_000_000_000), 9_000_000_000);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(read(9_000_000_000), 9_000_000_000, "a clock that stands still is believed");
    }
}
