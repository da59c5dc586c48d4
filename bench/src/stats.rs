//! Order statistics of latencies, and a straight line through memory samples.

use std::time::Duration;

use serde::Serialize;

/// Latency of a run, in whole microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Latency {
    /// Half of all runs were at least this fast.
    pub p50: u64,
    /// 90 of 100.
    pub p90: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1,000.
    pub p999: u64,
    /// The slowest.
    pub max: u64,
}

impl Latency {
    /// The order statistics of `sorted`, ascending.
    #[must_use]
    pub fn of(sorted: &[Duration]) -> Self {
        let Some(last) = sorted.len().checked_sub(1) else { return Self::default() };
        let at = |q: f64| micros(sorted[((q * sorted.len() as f64) as usize).min(last)]);
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: micros(sorted[last]) }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A memory sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Sample {
    /// Tenants who had run at least once.
    pub users: u64,
    /// Resident memory then, in bytes.
    pub rss: u64,
    /// What the audit log said it took of that.
    pub audit: u64,
}

impl Sample {
    /// A sample.
    #[must_use]
    pub fn new(users: u64, rss: u64, audit: u64) -> Self {
        Self { users, rss, audit }
    }
}

/// A line through samples by least squares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Fit {
    /// How many bytes one more tenant takes, the audit log left out.
    pub slope_bytes_per_user: f64,
    /// How well the line fits: 1 is perfectly.
    pub r2: f64,
}

impl Fit {
    /// The line through what is not the audit log's. Fewer than three samples fit nothing.
    #[must_use]
    pub fn through(samples: &[Sample]) -> Self {
        if samples.len() < 3 {
            return Self::default();
        }
        let n = samples.len() as f64;
        let points: Vec<(f64, f64)> =
            samples.iter().map(|s| (s.users as f64, s.rss as f64 - s.audit as f64)).collect();
        let (mx, my) =
            (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
        let (mut sxx, mut sxy, mut syy) = (0.0, 0.0, 0.0);
        for (x, y) in &points {
            sxx += (x - mx) * (x - mx);
            sxy += (x - mx) * (y - my);
            syy += (y - my) * (y - my);
        }
        if sxx == 0.0 {
            return Self::default();
        }
        let r2 = if syy == 0.0 { 1.0 } else { sxy * sxy / (sxx * syy) };
        Self { slope_bytes_per_user: sxy / sxx, r2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_known_list() {
        let sorted: Vec<_> = (1..=1_000).map(Duration::from_micros).collect();
        let latency = Latency::of(&sorted);
        assert_eq!((latency.p50, latency.p90, latency.p99), (501, 901, 991));
        assert_eq!((latency.p999, latency.max), (1_000, 1_000));
        assert_eq!(Latency::of(&[]), Latency::default());
    }

    #[test]
    fn a_line_is_found_and_the_audit_log_is_left_out() {
        let line: Vec<_> = (1..20).map(|n| Sample::new(n, 1_000 + 50 * n + 7 * n, 7 * n)).collect();
        let fit = Fit::through(&line);
        assert!((fit.slope_bytes_per_user - 50.0).abs() < 1e-9 && fit.r2 > 0.999_999, "{fit:?}");
        assert_eq!(Fit::through(&line[..2]), Fit::default());
        assert_eq!(Fit::through(&[line[0]; 5]), Fit::default());
    }
}
