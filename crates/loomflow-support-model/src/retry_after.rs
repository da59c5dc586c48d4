//! When a provider wants to be asked again, in all the forms it is said in.

use std::time::{Duration, UNIX_EPOCH};

use loomflow_core::Timestamp;

/// The longest wait that is believed.
const LONGEST: Duration = Duration::from_secs(86_400);

/// What the headers of an answer say about trying again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RetryAdvice {
    /// After how long.
    pub(crate) after: Option<Duration>,
    /// Whether at all; it outweighs what the status says.
    pub(crate) should: Option<bool>,
}

/// Reads `x-should-retry`, `retry-after-ms`, `retry-after` (seconds or a date) and, of a refusal for its rate only, when the
/// provider's own buckets are full again. What cannot be read is ignored; what is absurd is a day.
pub(crate) fn advice<'h>(
    status: u16,
    header: impl Fn(&str) -> Option<&'h str>,
    now: Timestamp,
) -> RetryAdvice {
    let should = header("x-should-retry").and_then(|value| value.trim().parse().ok());
    let after = header("retry-after-ms")
        .and_then(|ms| decimal(ms).map(|ms| ms / 1_000.0))
        .and_then(seconds)
        .or_else(|| header("retry-after").and_then(|value| seconds_or_date(value, now)))
        .or_else(|| if status == 429 { buckets(&header, now) } else { None });
    RetryAdvice { after, should }
}

fn seconds_or_date(value: &str, now: Timestamp) -> Option<Duration> {
    if let Some(number) = decimal(value) {
        return seconds(number);
    }
    let at = httpdate::parse_http_date(value.trim()).ok()?;
    let micros = i64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_micros()).ok()?;
    Some(Timestamp::from_micros(micros).saturating_since(now).min(LONGEST))
}

/// A plain decimal number; neither signs nor exponents nor words such as `inf`.
fn decimal(value: &str) -> Option<f64> {
    let value = value.trim();
    let plain = value.len() <= 32 && value.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    plain.then(|| value.parse().ok()).flatten()
}

fn seconds(number: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(number.min(LONGEST.as_secs_f64())).ok()
}

/// The last of the buckets that are said to be empty, or the first of all when none is: those refill on their own.
fn buckets<'h>(header: &impl Fn(&str) -> Option<&'h str>, now: Timestamp) -> Option<Duration> {
    let openai = ["requests", "tokens"].map(|bucket| {
        (
            header(&format!("x-ratelimit-remaining-{bucket}")),
            header(&format!("x-ratelimit-reset-{bucket}")).and_then(units),
        )
    });
    let anthropic = ["requests", "tokens", "input-tokens", "output-tokens"].map(|bucket| {
        let reset = header(&format!("anthropic-ratelimit-{bucket}-reset"));
        let reset = reset.and_then(|at| at.trim().parse::<Timestamp>().ok());
        (
            header(&format!("anthropic-ratelimit-{bucket}-remaining")),
            reset.map(|at| at.saturating_since(now).min(LONGEST)),
        )
    });
    let known = || openai.iter().chain(&anthropic).filter_map(|(left, reset)| Some((*left, (*reset)?)));
    let empty = known().filter(|(left, _)| left.is_some_and(|left| left.trim() == "0"));
    empty.map(|(_, reset)| reset).max().or_else(|| known().map(|(_, reset)| reset).min())
}

/// A time such as `6m0s`, `1.5s` or `120ms`.
fn units(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text.trim(), 0.0);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number = decimal(&rest[..digits])?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "d" => 86_400.0,
                "h" => 3_600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    seconds(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Sun, 06 Nov 1994 08:49:37 GMT`, the example of RFC 9110.
    const EXAMPLE: i64 = 784_111_777;

    fn read(status: u16, headers: &[(&str, &str)]) -> RetryAdvice {
        let now = Timestamp::from_micros((EXAMPLE - 7) * 1_000_000);
        advice(status, |name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v), now)
    }

    fn after(status: u16, headers: &[(&str, &str)]) -> Option<Duration> {
        read(status, headers).after
    }

    #[test]
    fn seconds_milliseconds_and_all_three_dates() {
        let ms = Duration::from_millis;
        assert_eq!(after(503, &[("retry-after", "3")]), Some(ms(3_000)));
        assert_eq!(after(503, &[("retry-after", " 0.25 ")]), Some(ms(250)));
        assert_eq!(after(503, &[("retry-after-ms", "120")]), Some(ms(120)));
        assert_eq!(
            after(503, &[("retry-after-ms", "1.5"), ("retry-after", "9")]),
            Some(Duration::from_micros(1_500))
        );
        for date in
            ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
        {
            assert_eq!(after(503, &[("retry-after", date)]), Some(ms(7_000)), "{date}");
        }
        assert_eq!(after(503, &[("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT")]), Some(ms(0)), "past");
    }

    #[test]
    fn what_is_absurd_is_bounded_and_what_cannot_be_read_is_ignored() {
        let day = Some(LONGEST);
        assert_eq!(after(429, &[("retry-after", "99999999999999999999")]), day);
        assert_eq!(after(429, &[("retry-after-ms", "99999999999999999999")]), day);
        assert_eq!(after(429, &[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")]), day);
        assert_eq!(after(429, &[("x-ratelimit-reset-tokens", "99999999999d")]), day);
        for bad in ["", "-1", "soon", "inf", "NaN", "1e9", "1.2.3", "."] {
            assert_eq!(after(429, &[("retry-after", bad)]), None, "{bad}");
            assert_eq!(after(429, &[("retry-after-ms", bad)]), None, "{bad}");
            assert_eq!(after(429, &[("x-ratelimit-reset-tokens", bad)]), None, "{bad}");
        }
        assert_eq!(
            after(429, &[("retry-after-ms", "x"), ("retry-after", "2")]),
            Some(Duration::from_secs(2))
        );
    }

    #[test]
    fn buckets_speak_of_refused_rates_only() {
        let openai = [
            ("x-ratelimit-reset-requests", "120ms"),
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "6m1.5s"),
        ];
        assert_eq!(after(429, &openai), Some(Duration::from_millis(361_500)), "the empty one");
        assert_eq!(after(503, &openai), None);
        assert_eq!(after(429, &openai[..1]), Some(Duration::from_millis(120)));
        let both = [("x-ratelimit-reset-requests", "1h"), ("x-ratelimit-reset-tokens", "1s")];
        assert_eq!(after(429, &both), Some(Duration::from_secs(1)), "none said to be empty");
        let anthropic = [
            ("anthropic-ratelimit-requests-reset", "1994-11-06T08:50:37Z"),
            ("anthropic-ratelimit-input-tokens-remaining", "0"),
            ("anthropic-ratelimit-input-tokens-reset", "1994-11-06T08:49:40Z"),
        ];
        assert_eq!(after(429, &anthropic), Some(Duration::from_secs(10)));
        let with = [("retry-after", "2"), anthropic[1], anthropic[2]];
        assert_eq!(after(429, &with), Some(Duration::from_secs(2)), "what is said outright comes first");
    }

    #[test]
    fn a_provider_may_say_whether_at_all() {
        assert_eq!(read(500, &[("x-should-retry", "false")]).should, Some(false));
        assert_eq!(read(400, &[("x-should-retry", "true")]).should, Some(true));
        assert_eq!(read(400, &[("x-should-retry", "maybe")]).should, None);
    }
}
