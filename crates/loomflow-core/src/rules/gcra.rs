//! GCRA, the generic cell rate algorithm, in whole nanoseconds: one number for each limit, and no timers.
//!
//! The number is the *theoretical arrival time*: the moment at which everything that was taken has come back. How far it lies
//! ahead of now is the *level*: how much of the burst is out, as the time it takes to come back. Every backend has this
//! arithmetic, in Rust, in Lua or in SQL; it is written down here once, and judged against a bucket that leaks in fractions.

use std::time::Duration;

/// A limit beyond this takes longer to come back than anybody waits, and than doubles in a script count exactly.
const MAX_CAPACITY: u64 = 30 * 86_400 * 1_000_000_000;

/// One limit: a burst at once, and one more unit every interval.
///
/// In every span of time, what was taken (less what was given back in it) is at most the burst and one for each interval of
/// the span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gcra {
    interval: u64,
    burst: u64,
}

/// Why nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "later or never")]
pub enum Wait {
    /// It fits after this many nanoseconds, if nobody else takes anything.
    Nanos(u64),
    /// It is more than the whole burst, and never fits.
    Never,
}

impl Gcra {
    /// A limit of `burst` at once and one more every `interval`. `None` when either is zero, or when the whole burst takes
    /// longer than 30 days to come back.
    #[must_use]
    pub fn new(interval: Duration, burst: u64) -> Option<Self> {
        let interval = u64::try_from(interval.as_nanos()).ok()?;
        let capacity = interval.checked_mul(burst)?;
        (1..=MAX_CAPACITY).contains(&capacity).then_some(Self { interval, burst })
    }

    /// How long one unit takes to come back.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_nanos(self.interval)
    }

    /// The most that can be taken at once.
    #[must_use]
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// The level at which nothing is left, in nanoseconds.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.interval * self.burst
    }

    /// How far `tat` lies ahead of `now`, in nanoseconds.
    ///
    /// - Never more than two bursts: that is the deepest debt. A clock that was set back thus delays nobody for longer.
    #[must_use]
    pub fn level(&self, tat: u64, now: u64) -> u64 {
        tat.saturating_sub(now).min(2 * self.capacity())
    }

    /// Takes `n` units at `now`: the new arrival time, or how long it takes until they fit.
    ///
    /// # Errors
    ///
    /// [`Wait`], and nothing was taken.
    pub fn take(&self, tat: u64, now: u64, n: u64) -> Result<u64, Wait> {
        if n > self.burst {
            return Err(Wait::Never);
        }
        let level = self.level(tat, now) + n * self.interval;
        match level.checked_sub(self.capacity()) {
            Some(over) if over > 0 => Err(Wait::Nanos(over)),
            _ => Ok(now + level),
        }
    }

    /// Corrects what was taken by what was really used: gives back, or owes.
    ///
    /// - Never gives back more than is out, so a limit is never better than fresh.
    /// - Never owes more than one burst beyond an empty bucket.
    #[must_use]
    pub fn settle(&self, tat: u64, now: u64, taken: u64, used: u64) -> u64 {
        let nanos = |n: u64| n.saturating_mul(self.interval);
        let level = self.level(tat, now).saturating_add(nanos(used)).saturating_sub(nanos(taken));
        now + level.min(2 * self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A bucket that leaks: how much is in it, in fractions of a unit with the interval as denominator, since when.
    struct Leaky {
        interval: i128,
        burst: i128,
        content: i128,
        at: i128,
    }

    impl Leaky {
        fn leak(&mut self, now: i128) {
            self.content = (self.content - (now - self.at)).max(0);
            self.at = now;
        }

        fn take(&mut self, now: i128, n: i128) -> bool {
            self.leak(now);
            let fits = self.content + n * self.interval <= self.burst * self.interval;
            if fits {
                self.content += n * self.interval;
            }
            fits
        }

        fn settle(&mut self, now: i128, taken: i128, used: i128) {
            self.leak(now);
            self.content = (self.content + (used - taken) * self.interval).max(0);
            self.content = self.content.min(2 * self.burst * self.interval);
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Pass(u64),
        Take(u64),
        Settle(u64, u64),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            (0_u64..5_000).prop_map(Op::Pass),
            (0_u64..12).prop_map(Op::Take),
            (0_u64..12, 0_u64..40).prop_map(|(taken, used)| Op::Settle(taken, used)),
        ];
        prop::collection::vec(op, 1..120)
    }

    proptest! {
        /// Against the bucket, step by step; and what a refusal says is exactly when it fits.
        #[test]
        fn it_is_a_leaky_bucket(interval in 1_u64..1_500, burst in 1_u64..10, ops in ops()) {
            let limit = Gcra::new(Duration::from_nanos(interval), burst).unwrap();
            let mut bucket =
                Leaky { interval: interval.into(), burst: burst.into(), content: 0, at: 7 };
            let (mut now, mut tat) = (7_u64, 0_u64);
            for op in ops {
                match op {
                    Op::Pass(nanos) => now += nanos,
                    Op::Take(n) => {
                        let fits = bucket.take(now.into(), n.into());
                        match limit.take(tat, now, n) {
                            Ok(after) => {
                                prop_assert!(fits);
                                tat = after;
                            }
                            Err(Wait::Never) => prop_assert!(!fits && n > burst),
                            Err(Wait::Nanos(after)) => {
                                prop_assert!(!fits && after > 0);
                                prop_assert!(limit.take(tat, now + after, n).is_ok());
                                prop_assert!(limit.take(tat, now + after - 1, n).is_err());
                            }
                        }
                    }
                    Op::Settle(taken, used) => {
                        bucket.settle(now.into(), taken.into(), used.into());
                        tat = limit.settle(tat, now, taken, used);
                    }
                }
                bucket.leak(now.into());
                prop_assert_eq!(i128::from(limit.level(tat, now)), bucket.content);
            }
        }

        /// In no window is more taken, less what was given back, than the rate and the burst allow.
        #[test]
        fn no_window_has_more_than_rate_and_burst(interval in 1_u64..500, burst in 1_u64..8, ops in ops()) {
            let limit = Gcra::new(Duration::from_nanos(interval), burst).unwrap();
            let (mut now, mut tat, mut log) = (0_u64, 0_u64, Vec::<(u64, i128)>::new());
            for op in ops {
                match op {
                    Op::Pass(nanos) => now += nanos,
                    Op::Take(n) => if let Ok(after) = limit.take(tat, now, n) {
                        tat = after;
                        log.push((now, n.into()));
                    },
                    Op::Settle(taken, used) => {
                        // Only what gives back: a debt is a fact, and not admitted.
                        let before = limit.level(tat, now);
                        tat = limit.settle(tat, now, taken, used.min(taken));
                        let back = before - limit.level(tat, now);
                        log.push((now, -i128::from(back / interval)));
                    }
                }
            }
            for (i, (since, _)) in log.iter().enumerate() {
                let mut sum = 0;
                for (until, n) in &log[i..] {
                    sum += n;
                    let allowed = u64::from(burst > 0) * burst + (until - since) / interval;
                    // What is given back in part of a unit rounds to nothing above, one for each time at most.
                    let parts = log[i..].iter().filter(|(at, n)| *at <= *until && *n <= 0).count();
                    prop_assert!(sum <= i128::from(allowed) + parts as i128, "{sum} since {since} until {until}");
                }
            }
        }
    }

    #[test]
    fn extremes_are_refused_or_exact() {
        assert_eq!(Gcra::new(Duration::ZERO, 5), None);
        assert_eq!(Gcra::new(Duration::from_secs(1), 0), None);
        assert_eq!(Gcra::new(Duration::from_secs(86_400), 31), None);
        assert_eq!(Gcra::new(Duration::MAX, u64::MAX), None);
        let month = Gcra::new(Duration::from_secs(86_400), 30).unwrap();
        assert_eq!(month.take(u64::MAX, 0, 1), Err(Wait::Nanos(MAX_CAPACITY + month.interval)));
        assert_eq!(month.settle(0, 5, u64::MAX, 0), 5, "more than was taken is not given back");
        assert_eq!(month.level(month.settle(0, 5, 0, u64::MAX), 5), 2 * MAX_CAPACITY);
        assert_eq!(month.take(0, 0, u64::MAX), Err(Wait::Never));
    }
}
