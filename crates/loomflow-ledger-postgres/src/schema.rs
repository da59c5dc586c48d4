//! The one place where a scope becomes a row's key and a filter.

use loomflow_core::{Owner, UserId, Window};
use loomflow_support_sql::Migration;
use loomflow_support_sql::postgres::{Component, LISTED, NAMESPACE, PAST, Table};

/// The ledger's part of the schema.
pub(crate) const LEDGER: Component = Component::new("ledger", &MIGRATIONS, &TABLES);

const MIGRATIONS: [Migration; 1] =
    [Migration::new(1, "counters and holds", include_str!("../migrations/0001_ledger.sql"))];

const TABLES: [Table; 5] = [
    Table::new("ledger_meta", "SELECT").with_rows("true"),
    Table::new("ledger_totals", "SELECT, INSERT, UPDATE").with_rows(NAMESPACE),
    Table::new("ledger_users", "SELECT, INSERT, UPDATE, DELETE").with_rows(LISTED).with_policies(PAST),
    Table::new("ledger_runs", "SELECT, INSERT, UPDATE, DELETE").with_rows(LISTED).with_policies(PAST),
    Table::new("ledger_holds", "SELECT, INSERT, UPDATE, DELETE").with_rows(LISTED).with_policies(PAST),
];

/// The rate limiter's part of the schema.
pub(crate) const RATE_LIMITS: Component = Component::new("rate_limit", &LIMIT_MIGRATIONS, &LIMIT_TABLES);

const LIMIT_MIGRATIONS: [Migration; 1] =
    [Migration::new(1, "limits", include_str!("../migrations/rate_limit_0001.sql"))];

const LIMIT_TABLES: [Table; 2] = [
    Table::new("rate_limits", "SELECT, INSERT, UPDATE, DELETE").with_rows(LISTED).with_policies(PAST),
    Table::new("rate_limit_totals", "SELECT, INSERT, UPDATE").with_rows(NAMESPACE),
];

/// A partition, by which rows are found.
pub(crate) type Partition = [u8; 32];

/// The kind of a window, as part of a key. A rolling window is told by all of its length, of which its text shows a part.
pub(crate) fn period(window: Window) -> String {
    match window {
        Window::Rolling(length) => format!("rolling:{}us", length.as_micros()),
        other => other.to_string(),
    }
}

/// The column that names a user; none for the anonymous bucket, and for a name that was taken off.
pub(crate) fn user_column(name: Option<&Owner>) -> Option<&str> {
    name.and_then(Owner::user_id).map(UserId::as_str)
}

/// An id as a column holds it.
pub(crate) fn id_column(id: u128) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use loomflow_support_sql::window_of;

    use super::*;

    #[test]
    fn a_kind_of_window_is_read_as_it_was_written() {
        let rolling = |micros| Window::Rolling(Duration::from_micros(micros));
        for window in [
            Window::Lifetime,
            Window::Hour,
            Window::Day,
            Window::Month,
            rolling(60_000_000),
            rolling(60_500_001),
        ] {
            assert_eq!(window_of(&period(window)), Some(window));
        }
    }
}
