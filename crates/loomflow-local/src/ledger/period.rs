//! Time as the ledger sees it: a wall clock that never goes back, and the numbered windows it falls into.

use std::sync::Arc;
use std::time::Duration;

use loomflow_core::{Clock, Timestamp, Window};
use parking_lot::Mutex;
use tokio::time::Instant;

/// A rolling window counts the slice it is in and this many before it.
pub(super) const SLICES: i64 = 60;

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

/// Numbers the windows: a later window has a greater number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Periods {
    window: Window,
    /// Microseconds of a slice (rolling windows), an hour or a day.
    size: i64,
}

impl Periods {
    /// One window that never ends.
    pub(super) const LIFETIME: Self = Self { window: Window::Lifetime, size: 1 };

    pub(super) fn new(window: Window) -> Self {
        const HOUR: i64 = 3_600_000_000;
        let size = match window {
            Window::Hour => HOUR,
            Window::Day => 24 * HOUR,
            // Rounded up, so that usage never leaves a rolling window early.
            Window::Rolling(d) => {
                i64::try_from(d.as_micros().div_ceil(SLICES as u128)).unwrap_or(i64::MAX).max(1)
            }
            _ => 1,
        };
        Self { window, size }
    }

    /// The configured window.
    pub(super) fn window(&self) -> Window {
        self.window
    }

    /// Whether usage leaves slice by slice.
    pub(super) fn rolls(&self) -> bool {
        matches!(self.window, Window::Rolling(_))
    }

    /// The number of the window (or the slice) that `at` lies in.
    pub(super) fn number(&self, at: Timestamp) -> i64 {
        match self.window {
            Window::Month => {
                let (year, month, _) = at.date();
                i64::from(year) * 12 + i64::from(month) - 1
            }
            Window::Hour | Window::Day | Window::Rolling(_) => at.as_micros().div_euclid(self.size),
            _ => 0,
        }
    }

    /// Whether what was counted in `window` counts no more at `now`.
    pub(super) fn ended(&self, window: i64, now: i64) -> bool {
        if self.rolls() { window < now.saturating_sub(SLICES) } else { window < now }
    }

    /// When a rolling window lets go of what was counted in `slice`.
    pub(super) fn leaves_at(&self, slice: i64) -> Timestamp {
        Timestamp::from_micros(slice.saturating_add(SLICES + 1).saturating_mul(self.size))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

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

    #[test]
    fn usage_leaves_a_rolling_window_at_most_one_slice_late_and_never_early() {
        for seconds in [60, 61, 100, 3_600, 86_400] {
            let window = Duration::from_secs(seconds);
            let periods = Periods::new(Window::Rolling(window));
            let slice = Duration::from_micros(u64::try_from(window.as_micros().div_ceil(60)).unwrap());
            for micros in [0_i64, 1, 999_999, 1_000_000, 59_999_999, -1, -7_000_001] {
                let at = Timestamp::from_micros(micros);
                let leaves = periods.leaves_at(periods.number(at));
                let late = leaves.saturating_since(at.saturating_add(window));
                assert!(
                    leaves >= at.saturating_add(window) && late <= slice * 2,
                    "{seconds} {micros} {late:?}"
                );
                let before = Timestamp::from_micros(leaves.as_micros() - 1);
                assert!(!periods.ended(periods.number(at), periods.number(before)));
                assert!(periods.ended(periods.number(at), periods.number(leaves)));
            }
        }
    }

    #[test]
    fn calendar_windows_have_their_own_numbers() {
        let at = |s: &str| s.parse::<Timestamp>().unwrap();
        for (window, last, first) in [
            (Window::Hour, "2026-02-28T23:59:59.999999Z", "2026-03-01T00:00:00Z"),
            (Window::Day, "2026-02-28T23:59:59.999999Z", "2026-03-01T00:00:00Z"),
            (Window::Month, "2024-02-29T23:59:59.999999Z", "2024-03-01T00:00:00Z"),
            (Window::Month, "2026-12-31T23:59:59.999999Z", "2027-01-01T00:00:00Z"),
        ] {
            let periods = Periods::new(window);
            assert_eq!(periods.number(at(last)) + 1, periods.number(at(first)), "{window}");
        }
    }
}
