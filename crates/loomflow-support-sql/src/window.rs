//! The kind of a window as part of a key, read back.

use std::time::Duration;

use loomflow_core::Window;

/// The window that a key was written for: as [`Window`] writes itself, or a rolling one told to the microsecond
/// (`rolling:60500000us`). `None` where this program knows no such kind.
#[must_use]
pub fn window_of(kind: &str) -> Option<Window> {
    let micros = kind.strip_prefix("rolling:").and_then(|length| length.strip_suffix("us"));
    match micros {
        Some(micros) => micros.parse().ok().map(|micros| Window::Rolling(Duration::from_micros(micros))),
        None => kind.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_window_is_read_as_it_was_written() {
        let rolling = |micros| Window::Rolling(Duration::from_micros(micros));
        for window in [Window::Lifetime, Window::Hour, Window::Day, Window::Month, rolling(3_600_000_000)] {
            assert_eq!(window_of(&window.to_string()), Some(window));
        }
        assert_eq!(window_of("rolling:60500001us"), Some(rolling(60_500_001)));
        for unknown in ["", "fortnight", "rolling:us", "rolling:-1us", "Day"] {
            assert_eq!(window_of(unknown), None, "{unknown}");
        }
    }
}
