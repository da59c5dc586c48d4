//! Windows: when a quota comes back, and that it never comes back early.

use std::time::Duration;

use loomflow_core::{BudgetConfig, Hold, Timestamp, Window};

use super::{Harness, key};
use crate::Outcome::{self, Passed};
use crate::fixture::World;

macro_rules! needs_clock {
    ($instance:expr) => {
        match $instance.clock() {
            Some(clock) => clock,
            None => return Outcome::unsupported("windows (the harness has no settable clock)"),
        }
    };
}

fn moment(text: &str) -> Timestamp {
    text.parse().unwrap_or_else(|e| panic!("the suite's own time {text:?} is invalid: {e}"))
}

/// A quota by the hour, day or month comes back at the calendar border in UTC, and not a microsecond before.
pub async fn calendar_windows_reset_at_their_border(h: &Harness) -> Outcome {
    for (window, start, last, next) in [
        (Window::Hour, "2024-02-28T23:10:00Z", "2024-02-28T23:59:59.999999Z", "2024-02-29T00:00:00Z"),
        (Window::Day, "2024-02-29T00:00:00Z", "2024-02-29T23:59:59.999999Z", "2024-03-01T00:00:00Z"),
        (Window::Month, "2024-02-01T12:00:00Z", "2024-02-29T23:59:59.999999Z", "2024-03-01T00:00:00Z"),
        (Window::Month, "2023-12-31T12:00:00Z", "2023-12-31T23:59:59.999999Z", "2024-01-01T00:00:00Z"),
    ] {
        let l = h.open(BudgetConfig::new().per_user_max_tokens(100).max_tokens(100).window(window)).await;
        let clock = needs_clock!(l);
        let alice = World::new().user("alice");
        clock.set(moment(start));
        l.spend(&alice, 60, 40).await;
        clock.set(moment(last));
        let no = l.refused(&alice, &Hold::tokens(key(), 1, 0), "the window has not ended").await;
        assert_eq!((no.resets_at, no.used), (Some(moment(next)), 100), "the {window} ends at {next}");
        let line = l.line(&alice, "per_user_max_tokens").await;
        assert_eq!((line.used, line.resets_at, line.window), (100, Some(moment(next)), window.to_string()));
        clock.set(moment(next));
        let got = l.held(&alice, &Hold::tokens(key(), 60, 40)).await;
        assert_eq!(got.output_tokens, 40, "at {next} the whole quota is back");
        assert_eq!(l.line(&alice, "per_user_max_tokens").await.used, 0);
    }
    Passed
}

/// A quota for a lifetime never comes back.
pub async fn a_lifetime_never_resets(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    let clock = needs_clock!(l);
    let alice = World::new().user("alice");
    l.spend(&alice, 60, 40).await;
    for _ in 0..3 {
        clock.advance(Duration::from_secs(400 * 86_400));
        let no = l.refused(&alice, &Hold::tokens(key(), 1, 0), "a lifetime does not end").await;
        assert_eq!((no.used, no.resets_at), (100, None));
    }
    Passed
}

/// In a rolling window usage leaves after its length, at most one slice (a sixtieth) late, and never early.
pub async fn a_rolling_window_forgets_late_and_never_early(h: &Harness) -> Outcome {
    let length = Duration::from_secs(3_600);
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100).window(Window::Rolling(length))).await;
    let clock = needs_clock!(l);
    let alice = World::new().user("alice");
    let start = moment("2024-02-28T23:10:17.5Z");
    clock.set(start);
    l.spend(&alice, 30, 10).await;
    clock.set(start.saturating_add(length / 2));
    l.spend(&alice, 40, 20).await;
    clock.set(start.saturating_add(length - Duration::from_secs(1)));
    let no = l.refused(&alice, &Hold::tokens(key(), 1, 0), "nothing has left the window").await;
    assert_eq!(no.used, 100);
    assert!(no.resets_at.is_none_or(|at| at > clock.read()), "a reset lies in the future");
    clock.set(start.saturating_add(length + length / 60 + Duration::from_secs(1)));
    let got = l.held(&alice, &Hold::tokens(key(), 30, 10)).await;
    assert_eq!(got.output_tokens, 10, "the first use has left, one slice late at most");
    l.refused(&alice, &Hold::tokens(key(), 1, 0), "the second use has not").await;
    Passed
}

/// A warning is given once per window, so the next window warns again.
pub async fn warnings_come_back_in_the_next_window(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100).window(Window::Day)).await;
    let clock = needs_clock!(l);
    let alice = World::new().user("alice");
    clock.set(moment("2024-02-28T12:00:00Z"));
    for day in 0..3 {
        let got = l.held(&alice, &Hold::tokens(key(), 60, 25)).await;
        assert_eq!(got.warnings.len(), 1, "day {day} warns");
        let more = l.held(&alice, &Hold::tokens(key(), 1, 0)).await;
        assert!(more.warnings.is_empty(), "day {day} warns once");
        for hold in [got.id, more.id] {
            l.close(&alice, hold, loomflow_core::Charge::Refund).await;
        }
        clock.advance(Duration::from_secs(86_400));
    }
    Passed
}

/// A clock that is turned back, and forth again, gives nobody a second quota.
pub async fn turning_the_clock_back_gives_nothing_away(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100).window(Window::Day)).await;
    let clock = needs_clock!(l);
    let alice = World::new().user("alice");
    clock.set(moment("2024-02-28T12:00:00Z"));
    l.spend(&alice, 60, 40).await;
    for elsewhere in ["2024-02-27T12:00:00Z", "2024-02-28T11:00:00Z"] {
        clock.set(moment(elsewhere));
        let _answer = l.ledger().reserve(&alice, &Hold::tokens(key(), 1, 0)).await;
        let _answer = l.ledger().usage(&alice).await;
        clock.set(moment("2024-02-28T13:00:00Z"));
        l.refused(&alice, &Hold::tokens(key(), 1, 0), "today's quota was spent before the clock was turned")
            .await;
    }
    Passed
}
