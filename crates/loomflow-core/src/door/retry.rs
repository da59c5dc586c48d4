//! When a failed model call is made again, and after how long.

use std::time::Duration;

use crate::error::Error;

/// Bounded retries with full jitter. Each attempt is reserved and settled on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Attempts in all, the first included; 1 never retries.
    pub attempts: u32,
    /// The longest wait before the second attempt; doubled for each further one.
    pub base: Duration,
    /// The longest wait of all. A provider that asks for a longer one is not retried.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    /// Three attempts, 1 s, at most 30 s.
    fn default() -> Self {
        Self { attempts: 3, base: Duration::from_secs(1), cap: Duration::from_secs(30) }
    }
}

impl RetryPolicy {
    /// Never retries.
    #[must_use]
    pub fn none() -> Self {
        Self { attempts: 1, ..Self::default() }
    }

    /// At most `attempts` attempts, waiting up to `base`, doubled each time, but never longer than `cap`.
    #[must_use]
    pub fn new(attempts: u32, base: Duration, cap: Duration) -> Self {
        Self { attempts: attempts.max(1), base, cap }
    }

    /// How long to wait after `failed` attempts, the last with `error`; `None` to give up.
    #[must_use]
    pub fn wait(&self, failed: u32, error: &Error) -> Option<Duration> {
        if failed >= self.attempts || !error.is_retryable() {
            return None;
        }
        let longest =
            self.base.saturating_mul(1_u32.checked_shl(failed - 1).unwrap_or(u32::MAX)).min(self.cap);
        let jittered = longest.mul_f64(rand::random::<f64>());
        match error.retry_after() {
            Some(asked) if asked > self.cap => None,
            Some(asked) => Some(asked.max(jittered)),
            None => Some(jittered),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn waits_are_bounded_and_the_provider_sets_the_floor() {
        let policy = RetryPolicy::new(5, Duration::from_secs(1), Duration::from_secs(30));
        let busy = || Error::new(ErrorKind::Overloaded, "busy");
        for failed in 1..5 {
            let wait = policy.wait(failed, &busy()).unwrap();
            assert!(wait <= Duration::from_secs(1 << (failed - 1)), "{failed}: {wait:?}");
        }
        assert_eq!(policy.wait(5, &busy()), None);
        let asked = policy.wait(1, &busy().with_retry_after(Duration::from_secs(9))).unwrap();
        assert!(asked >= Duration::from_secs(9));
        assert_eq!(policy.wait(1, &busy().with_retry_after(Duration::from_secs(31))), None);
        assert_eq!(policy.wait(1, &Error::new(ErrorKind::BadRequest, "no")), None);
        assert_eq!(RetryPolicy::none().wait(1, &busy()), None);
    }
}
