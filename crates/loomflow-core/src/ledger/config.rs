//! What an operator caps: the budget's configuration, shared by every ledger.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::usage::NanoUsd;

/// Upper bounds of one entity; `None` is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caps {
    /// Prompt and generated tokens together.
    pub tokens: Option<u64>,
    /// Prompt tokens.
    pub input_tokens: Option<u64>,
    /// Generated tokens.
    pub output_tokens: Option<u64>,
    /// Cost.
    pub cost: Option<NanoUsd>,
    /// Time spent in runs, waiting for people left out. Counted in whole microseconds.
    pub wall_clock: Option<Duration>,
}

impl Caps {
    /// Whether nothing is bounded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Over which time a cap counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Window {
    /// For ever.
    #[default]
    Lifetime,
    /// A clock hour in UTC.
    Hour,
    /// A calendar day in UTC.
    Day,
    /// A calendar month in UTC.
    Month,
    /// The time that just passed. Counted in 60 equal slices, so usage leaves the window at most one slice late and
    /// never early.
    Rolling(Duration),
}

impl Window {
    /// The calendar window `now` lies in: its start and its end (exclusive). `None` for lifetime and rolling windows.
    #[must_use]
    pub fn bounds(self, now: Timestamp) -> Option<(Timestamp, Timestamp)> {
        const HOUR: i64 = 3_600_000_000;
        let floor = |size: i64| now.as_micros().div_euclid(size) * size;
        match self {
            Self::Lifetime | Self::Rolling(_) => None,
            Self::Hour => {
                Some((Timestamp::from_micros(floor(HOUR)), Timestamp::from_micros(floor(HOUR) + HOUR)))
            }
            Self::Day => Some((
                Timestamp::from_micros(floor(24 * HOUR)),
                Timestamp::from_micros(floor(24 * HOUR) + 24 * HOUR),
            )),
            Self::Month => {
                let (year, month, _) = now.date();
                let (next_year, next_month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
                let start = Timestamp::from_date(year, month, 1).expect("the first of a month exists");
                Some((start, Timestamp::from_date(next_year, next_month, 1).unwrap_or(Timestamp::MAX)))
            }
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lifetime => f.write_str("lifetime"),
            Self::Hour => f.write_str("hour"),
            Self::Day => f.write_str("day"),
            Self::Month => f.write_str("month"),
            Self::Rolling(d) => {
                let seconds = d.as_secs();
                match (seconds % 3_600, seconds % 60) {
                    (0, _) => write!(f, "rolling:{}h", seconds / 3_600),
                    (_, 0) => write!(f, "rolling:{}m", seconds / 60),
                    _ => write!(f, "rolling:{seconds}s"),
                }
            }
        }
    }
}

impl FromStr for Window {
    type Err = Error;

    /// `lifetime`, `hour`, `day`, `month` or `rolling:` with a number of `s`, `m`, `h` or `d`.
    fn from_str(s: &str) -> Result<Self> {
        let bad = || {
            Error::invalid_input(format!(
                "{s:?} is not a window: use lifetime, hour, day, month or rolling:24h (s, m, h or d, at least 60s)"
            ))
        };
        Ok(match s {
            "lifetime" => Self::Lifetime,
            "hour" => Self::Hour,
            "day" => Self::Day,
            "month" => Self::Month,
            _ => {
                let text = s.strip_prefix("rolling:").ok_or_else(bad)?;
                let unit = text.chars().last().ok_or_else(bad)?;
                let number: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| bad())?;
                let seconds = match unit {
                    's' => 1,
                    'm' => 60,
                    'h' => 3_600,
                    'd' => 86_400,
                    _ => return Err(bad()),
                };
                let seconds = number
                    .checked_mul(seconds)
                    .filter(|n| (60..=366 * 86_400).contains(n))
                    .ok_or_else(bad)?;
                Self::Rolling(Duration::from_secs(seconds))
            }
        })
    }
}

/// Caps for everybody together, for each user and for each run; their window; and the bounds of the user table.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BudgetConfig {
    /// All users of a namespace together: a namespace is an application of its own.
    pub global: Caps,
    /// Each user.
    pub per_user: Caps,
    /// Each run. Runs have no window: a run's counters begin and end with it.
    pub per_run: Caps,
    /// The window of the global and the per-user caps.
    pub window: Window,
    /// A warning is given once per window when a cap's use reaches this fraction of it (0.8 by default).
    pub soft_warning_at: f64,
    /// Users kept hot in memory (100,000 by default); `None` for no bound.
    pub max_users: Option<usize>,
    /// Compact counters of users that were evicted while their window still runs (1,000,000 by default). When they are
    /// full, new users are refused.
    pub max_spilled_users: usize,
    /// After this long without use a user is evicted (24 h by default); the counters spill, they are not lost.
    pub user_idle_ttl: Option<Duration>,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self {
            global: Caps::default(),
            per_user: Caps::default(),
            per_run: Caps::default(),
            window: Window::Lifetime,
            soft_warning_at: 0.8,
            max_users: Some(100_000),
            max_spilled_users: 1_000_000,
            user_idle_ttl: Some(Duration::from_secs(24 * 3_600)),
        }
    }
}

macro_rules! cap_setters {
    ($($(#[$doc:meta])* $name:ident => $entity:ident . $field:ident : $ty:ty;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(mut self, limit: $ty) -> Self {
            self.$entity.$field = Some(limit);
            self
        })*
    };
}

impl BudgetConfig {
    /// No caps; the default bounds.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    cap_setters! {
        /// Caps all tokens of all users together.
        max_tokens => global.tokens: u64;
        /// Caps the prompt tokens of all users together.
        max_input_tokens => global.input_tokens: u64;
        /// Caps the generated tokens of all users together.
        max_output_tokens => global.output_tokens: u64;
        /// Caps the cost of all users together.
        max_cost => global.cost: NanoUsd;
        /// Caps the time all users together spend in runs.
        max_wall_clock => global.wall_clock: Duration;
        /// Caps all tokens of each user.
        per_user_max_tokens => per_user.tokens: u64;
        /// Caps the prompt tokens of each user.
        per_user_max_input_tokens => per_user.input_tokens: u64;
        /// Caps the generated tokens of each user.
        per_user_max_output_tokens => per_user.output_tokens: u64;
        /// Caps the cost of each user.
        per_user_max_cost => per_user.cost: NanoUsd;
        /// Caps the time each user spends in runs.
        per_user_max_wall_clock => per_user.wall_clock: Duration;
        /// Caps all tokens of each run.
        per_run_max_tokens => per_run.tokens: u64;
        /// Caps the prompt tokens of each run.
        per_run_max_input_tokens => per_run.input_tokens: u64;
        /// Caps the generated tokens of each run.
        per_run_max_output_tokens => per_run.output_tokens: u64;
        /// Caps the cost of each run.
        per_run_max_cost => per_run.cost: NanoUsd;
        /// Caps the time each run takes.
        per_run_max_wall_clock => per_run.wall_clock: Duration;
    }

    /// Sets the window of the global and the per-user caps.
    #[must_use]
    pub fn window(mut self, window: Window) -> Self {
        self.window = window;
        self
    }

    /// Sets the fraction of a cap at which a warning is given.
    #[must_use]
    pub fn soft_warning_at(mut self, fraction: f64) -> Self {
        self.soft_warning_at = fraction;
        self
    }

    /// Sets how many users are kept hot; `None` for no bound.
    #[must_use]
    pub fn max_users(mut self, users: impl Into<Option<usize>>) -> Self {
        self.max_users = users.into();
        self
    }

    /// Sets how many evicted users' counters are kept until their window ends.
    #[must_use]
    pub fn max_spilled_users(mut self, users: usize) -> Self {
        self.max_spilled_users = users;
        self
    }

    /// Sets how long an idle user stays hot; `None` for ever.
    #[must_use]
    pub fn user_idle_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.user_idle_ttl = ttl.into();
        self
    }

    /// Checks that the numbers make sense together.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming the key that is wrong.
    pub fn validate(&self) -> Result<()> {
        let bad = |why: &str| Err(Error::new(crate::ErrorKind::Config, why.to_owned()));
        if !(self.soft_warning_at > 0.0 && self.soft_warning_at <= 1.0) {
            return bad("soft_warning_at must be above 0 and at most 1");
        }
        if self.max_users == Some(0) {
            return bad(
                "max_users must be at least 1; leave it out for the default, or switch bounding off with none",
            );
        }
        if self.user_idle_ttl == Some(Duration::ZERO) {
            return bad("user_idle_ttl must be above zero; switch expiry off with none");
        }
        if matches!(self.window, Window::Rolling(d) if d < Duration::from_secs(60)) {
            return bad("a rolling window must be at least 60 seconds long");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar_windows_are_exact_at_their_borders() {
        let at = |s: &str| s.parse::<Timestamp>().unwrap();
        for (window, now, start, end) in [
            (Window::Hour, "2026-02-28T23:59:59.999999Z", "2026-02-28T23:00:00Z", "2026-03-01T00:00:00Z"),
            (Window::Day, "2026-03-01T00:00:00Z", "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z"),
            (Window::Month, "2024-02-29T12:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
            (Window::Month, "2026-12-31T23:59:59.999999Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            (Window::Day, "1969-12-31T23:00:00Z", "1969-12-31T00:00:00Z", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(window.bounds(at(now)), Some((at(start), at(end))), "{window} {now}");
        }
        assert_eq!(Window::Lifetime.bounds(at("2026-01-01T00:00:00Z")), None);
    }

    #[test]
    fn windows_round_trip_as_text() {
        for text in ["lifetime", "hour", "day", "month", "rolling:24h", "rolling:90m", "rolling:61s"] {
            assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
        }
        for bad in
            ["", "week", "rolling:", "rolling:0h", "rolling:1x", "rolling:59s", "rolling:-1h", "rolling:9é"]
        {
            assert!(bad.parse::<Window>().is_err(), "{bad}");
        }
    }
}
