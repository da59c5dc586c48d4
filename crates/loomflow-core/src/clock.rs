//! Time as plain data, and the one place that reads the wall clock.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// A moment in UTC, in whole microseconds since the Unix epoch. Written as RFC 3339 with six digits and `Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The earliest moment that can be written.
    pub const MIN: Self = Self(-62_135_596_800_000_000);
    /// The last moment that can be written: the end of year 9999.
    pub const MAX: Self = Self(253_402_300_799_999_999);

    /// From microseconds since the Unix epoch, clamped to the years 1..=9999.
    #[must_use]
    pub fn from_micros(micros: i64) -> Self {
        Self(micros.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// This moment plus `d`, stopping at [`Timestamp::MAX`].
    #[must_use]
    pub fn saturating_add(self, d: Duration) -> Self {
        let micros = i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_add(micros))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Year, month (1..=12) and day (1..=31) in UTC.
    #[must_use]
    pub fn date(self) -> (i32, u8, u8) {
        let date = self.to_time().date();
        (date.year(), u8::from(date.month()), date.day())
    }

    /// Midnight UTC of this date, or `None` for a date that does not exist.
    #[must_use]
    pub fn from_date(year: i32, month: u8, day: u8) -> Option<Self> {
        let month = time::Month::try_from(month).ok()?;
        let date = time::Date::from_calendar_date(year, month, day).ok()?;
        let seconds = date.midnight().assume_utc().unix_timestamp();
        Some(Self::from_micros(seconds.saturating_mul(1_000_000)))
    }

    fn to_time(self) -> time::OffsetDateTime {
        time::OffsetDateTime::from_unix_timestamp(self.0.div_euclid(1_000_000))
            .expect("a timestamp is clamped to the years 1..=9999")
    }

    /// Appends the RFC 3339 form to `out`, without going through a formatter.
    pub fn write_rfc3339(self, out: &mut String) {
        let t = self.to_time();
        let (hour, minute, second) = t.to_hms();
        let micros = u32::try_from(self.0.rem_euclid(1_000_000)).unwrap_or(0);
        let mut put = |mut n: u32, digits: usize, after: char| {
            let mut text = [b'0'; 6];
            for slot in text[..digits].iter_mut().rev() {
                *slot = b'0' + (n % 10) as u8;
                n /= 10;
            }
            out.push_str(std::str::from_utf8(&text[..digits]).expect("digits are ASCII"));
            out.push(after);
        };
        put(t.year().unsigned_abs(), 4, '-');
        put(u32::from(u8::from(t.month())), 2, '-');
        put(u32::from(t.day()), 2, 'T');
        put(u32::from(hour), 2, ':');
        put(u32::from(minute), 2, ':');
        put(u32::from(second), 2, '.');
        put(micros, 6, 'Z');
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(27);
        self.write_rfc3339(&mut text);
        f.write_str(&text)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = Error;

    /// Parses RFC 3339 in UTC (`Z`), with up to six digits of a second's fraction.
    fn from_str(s: &str) -> Result<Self> {
        parse_rfc3339(s).ok_or_else(|| {
            Error::invalid_input(format!(
                "{s:?} is not an RFC 3339 time in UTC, such as 2026-11-20T08:00:00Z"
            ))
        })
    }
}

fn parse_rfc3339(s: &str) -> Option<Timestamp> {
    let body = s.strip_suffix('Z')?;
    let (date, clock) = body.split_once('T')?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let numbers = |text: &str, sep: char| -> Option<[u32; 3]> {
        let mut parts = text.split(sep);
        let mut next = || parts.next()?.parse().ok();
        let three = [next()?, next()?, next()?];
        parts.next().is_none().then_some(three)
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    if hour > 23
        || minute > 59
        || second > 59
        || fraction.len() > 6
        || !fraction.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let micros: i64 = if fraction.is_empty() { 0 } else { format!("{fraction:0<6}").parse().ok()? };
    let midnight =
        Timestamp::from_date(i32::try_from(year).ok()?, u8::try_from(month).ok()?, u8::try_from(day).ok()?)?;
    let seconds = i64::from(hour * 3_600 + minute * 60 + second);
    Some(Timestamp::from_micros(midnight.0 + seconds * 1_000_000 + micros))
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where the framework reads the time, so that a test can turn the clock.
///
/// Durations (deadlines, wall-clock budgets) never come from here: they use the runtime's monotonic clock, which
/// an administrator cannot set back.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Now, in UTC.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit that is what its name says")]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_round_trips() {
        for text in [
            "2026-11-20T08:00:00.000000Z",
            "1969-12-31T23:59:59.999999Z",
            "0001-01-01T00:00:00.000000Z",
            "9999-12-31T23:59:59.999999Z",
            "2024-02-29T12:34:56.000789Z",
        ] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), text);
        }
        assert_eq!(
            "2026-11-20T08:00:00.5Z".parse::<Timestamp>().unwrap().to_string(),
            "2026-11-20T08:00:00.500000Z"
        );
        for bad in [
            "",
            "2026-02-30T00:00:00Z",
            "2026-11-20T24:00:00Z",
            "2026-11-20T08:00:00+01:00",
            "2026-11-20 08:00:00Z",
        ] {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
    }
}
