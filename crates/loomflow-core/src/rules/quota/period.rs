//! Windows as numbers: a later window has a greater one.

use crate::clock::Timestamp;
use crate::ledger::Window;

/// A rolling window counts the slice it is in and this many before it.
const SLICES: i64 = 60;

/// Numbers the windows: a later window has a greater number.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    window: Window,
    /// Microseconds of a slice (rolling windows), an hour or a day.
    size: i64,
}

impl Periods {
    /// One window that never ends.
    pub const LIFETIME: Self = Self { window: Window::Lifetime, size: 1 };

    /// The windows of `window`.
    #[must_use]
    pub fn new(window: Window) -> Self {
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
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }

    /// Microseconds of a slice of a rolling window, of an hour or of a day; 1 for windows of other kinds.
    #[must_use]
    pub fn size(&self) -> i64 {
        self.size
    }

    /// Whether usage leaves slice by slice.
    #[must_use]
    pub fn rolls(&self) -> bool {
        matches!(self.window, Window::Rolling(_))
    }

    /// The number of the window (or the slice) that `at` lies in.
    #[must_use]
    pub fn number(&self, at: Timestamp) -> i64 {
        match self.window {
            Window::Month => {
                let (year, month, _) = at.date();
                i64::from(year) * 12 + i64::from(month) - 1
            }
            Window::Hour | Window::Day | Window::Rolling(_) => at.as_micros().div_euclid(self.size),
            _ => 0,
        }
    }

    /// When the window (or the slice) of this number begins.
    #[must_use]
    pub fn starts_at(&self, number: i64) -> Timestamp {
        match self.window {
            Window::Lifetime => Timestamp::MIN,
            Window::Month => {
                let month = u8::try_from(number.rem_euclid(12) + 1).unwrap_or(1);
                let year = i32::try_from(number.div_euclid(12)).unwrap_or(i32::MAX);
                let out = if number < 0 { Timestamp::MIN } else { Timestamp::MAX };
                Timestamp::from_date(year, month, 1).unwrap_or(out)
            }
            _ => Timestamp::from_micros(number.saturating_mul(self.size)),
        }
    }

    /// Whether what was counted in `window` counts no more at `now`.
    #[must_use]
    pub fn ended(&self, window: i64, now: i64) -> bool {
        if self.rolls() { window < now.saturating_sub(SLICES) } else { window < now }
    }

    /// When a rolling window lets go of what was counted in `slice`.
    #[must_use]
    pub fn leaves_at(&self, slice: i64) -> Timestamp {
        Timestamp::from_micros(slice.saturating_add(SLICES + 1).saturating_mul(self.size))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
            let number = periods.number(at(first));
            assert_eq!(periods.number(at(last)) + 1, number, "{window}");
            assert_eq!(periods.starts_at(number), at(first), "{window}");
        }
    }
}
