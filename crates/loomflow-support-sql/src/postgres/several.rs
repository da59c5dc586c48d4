//! A transaction of several partitions of one namespace: what it names, and in which order it locks.

use std::time::Duration;

use loomflow_core::{Namespace, Result};
use sqlx::{AssertSqlSafe, Executor as _};

use super::component::Policy;
use super::failed;
use super::transaction::{Access, Transaction};
use crate::hex;

/// Rows of the partitions that a transaction lists, for [`Table::with_rows`](super::Table::with_rows).
pub const LISTED: &str = "(encode(partition, 'hex'::text) = ANY \
    (string_to_array(current_setting('loomflow.partitions'::text, true), ','::text)))";

/// Rows of the namespace that a transaction names, whoever's they are: for what belongs to all users together.
pub const NAMESPACE: &str = "(namespace = \
    convert_from(decode(current_setting('loomflow.namespace'::text, true), 'hex'::text), 'UTF8'::name))";

/// Rows of the namespace whose time is over, in a transaction that says it sweeps and as of when: the column `until` holds
/// the moment, in microseconds. They are seen, and not written. For [`Table::with_policies`](super::Table::with_policies).
pub const PAST: &[Policy] = &[Policy::select("loomflow_seen", IS_PAST)];

const IS_PAST: &str = "((namespace = \
    convert_from(decode(current_setting('loomflow.namespace'::text, true), 'hex'::text), 'UTF8'::name)) \
    AND (until <= (NULLIF(current_setting('loomflow.sweep'::text, true), ''::text))::bigint))";

/// Rows are always found by a key. A table that was empty when the server last looked (holds come and go) would be read as
/// a whole, by a plan that is kept while it grows.
const BY_INDEX: &str = "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true), \
    set_config('enable_mergejoin', 'off', true)";

/// What a transaction of several partitions of one namespace names. Tables whose rows are [`LISTED`] show it the rows of
/// these partitions; the [`NAMESPACE`]'s own rows, too.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Several<'a> {
    namespace: &'a Namespace,
    partitions: &'a [[u8; 32]],
    whole: bool,
    patience: Option<Duration>,
}

/// Which of the partitions nobody else has locked. They are locked by asking.
const TRY: &str = "
SELECT partition FROM unnest($1::bytea[], $2::int[], $3::int[]) AS keys(partition, a, b) WHERE pg_try_advisory_xact_lock(a, b)";

impl<'a> Several<'a> {
    /// These partitions, which are of this namespace.
    #[must_use]
    pub fn new(namespace: &'a Namespace, partitions: &'a [[u8; 32]]) -> Self {
        Self { namespace, partitions, whole: false, patience: None }
    }

    /// How long to wait for the lock of a partition, and for any lock after it: then the transaction fails with what
    /// [`is_locked`](super::is_locked) knows. The lock of all users together is waited for as long as any statement may take.
    #[must_use]
    pub fn with_patience(mut self, limit: Duration) -> Self {
        self.patience = Some(limit);
        self
    }

    /// Whether to lock what belongs to all users of the namespace together.
    #[must_use]
    pub fn with_whole(mut self, yes: bool) -> Self {
        self.whole = yes;
        self
    }

    /// Begins, names and, to write, locks: in one round trip.
    pub(super) fn begin(&self, access: Access) -> String {
        let (mode, locks) = match access {
            Access::Read => ("REPEATABLE READ READ ONLY", String::new()),
            // Of several partitions all are the transaction's own, so that a foreign one has no other meaning here.
            Access::Write | Access::Exclusive | Access::Foreign => {
                ("READ COMMITTED READ WRITE", self.locks())
            }
        };
        format!("BEGIN ISOLATION LEVEL {mode}; {BY_INDEX}; {}{locks}", self.naming())
    }

    /// Names these partitions in place of those that the transaction named, locks them, and ends its sweep.
    #[must_use]
    pub fn again(&self) -> String {
        format!("SELECT set_config('loomflow.sweep', '', true); {}{}", self.naming(), self.locks())
    }

    /// As [`Several::again`], of those partitions that nobody has locked: the others are neither named nor waited for.
    /// Answers which it named.
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub async fn again_where_free(
        self,
        tx: &mut Transaction,
        operation: &'static str,
    ) -> Result<Vec<[u8; 32]>> {
        let (a, b): (Vec<i32>, Vec<i32>) = self.partitions.iter().map(partition_key).unzip();
        let tried = sqlx::query_scalar(TRY).bind(self.partitions).bind(a).bind(b);
        let free: Vec<[u8; 32]> = tried.fetch_all(tx.conn()).await.map_err(failed(operation))?;
        let named = Several { partitions: &free, ..self }.naming();
        let named = format!("SELECT set_config('loomflow.sweep', '', true); {named}");
        tx.conn().execute(sqlx::raw_sql(AssertSqlSafe(named))).await.map_err(failed(operation))?;
        Ok(free)
    }

    /// In the text, and not as parameters: several statements travel at once only so. It is hex and nothing else.
    fn naming(&self) -> String {
        let partitions: Vec<String> = self.partitions.iter().map(|p| hex(p)).collect();
        format!(
            "SELECT set_config('loomflow.namespace', '{}', true), set_config('loomflow.partitions', '{}', true)",
            hex(self.namespace.as_str().as_bytes()),
            partitions.join(",")
        )
    }

    /// The locks, which a transaction waits for one after the other: that of all users together first, then the
    /// partitions' in ascending order. Everybody asks in this order, so nobody waits in a circle.
    ///
    /// They are advisory ones: a partition that has no row yet is locked as well, and nothing is written for it. Two keys
    /// that shared one would wait for each other and do nothing worse.
    fn locks(&self) -> String {
        let mut keys: Vec<(i32, i32)> = self.partitions.iter().map(partition_key).collect();
        keys.sort_unstable();
        keys.dedup();
        let whole = self.whole.then(|| namespace_key(self.namespace));
        let lock = |(a, b): (i32, i32)| format!("pg_advisory_xact_lock({a}, {b})");
        let patience = self
            .patience
            .map(|limit| format!("set_config('lock_timeout', '{}ms', true)", limit.as_millis().max(1)));
        // In the order in which they are written: that is how a list is computed that reads no table.
        let calls: Vec<String> =
            whole.map(lock).into_iter().chain(patience).chain(keys.into_iter().map(lock)).collect();
        if calls.is_empty() { String::new() } else { format!("; SELECT {}", calls.join(", ")) }
    }
}

/// Keys in two numbers are never those in one, by which a [`Transaction`](super::Transaction) of one partition locks.
fn partition_key(partition: &[u8; 32]) -> (i32, i32) {
    let part = |at: usize| {
        i32::from_be_bytes([partition[at], partition[at + 1], partition[at + 2], partition[at + 3]])
    };
    (part(0), part(4))
}

fn namespace_key(namespace: &Namespace) -> (i32, i32) {
    partition_key(loomflow_core::Digest::of(&[b"namespace", namespace.as_str().as_bytes()]).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_never_reach_the_statement() {
        let namespace = Namespace::new("'); DROP TABLE x; --").unwrap();
        let partitions = [[7; 32], [1; 32]];
        let several = Several::new(&namespace, &partitions).with_whole(true);
        for sql in [several.begin(Access::Write), several.begin(Access::Read), several.again()] {
            assert!(!sql.contains("DROP") && sql.contains(&hex(&partitions[0])), "{sql}");
        }
        assert!(!several.begin(Access::Read).contains("lock"));
    }

    #[test]
    fn everybody_locks_in_one_order_and_all_together_first() {
        let namespace = Namespace::new("app").unwrap();
        let (one, other) = ([[7; 32], [0xff; 32], [1; 32], [7; 32]], [[1; 32], [7; 32], [0xff; 32]]);
        let locks = |partitions| Several::new(&namespace, partitions).with_whole(true).locks();
        assert_eq!(locks(&one), locks(&other));
        let (a, b) = namespace_key(&namespace);
        assert!(
            locks(&one).starts_with(&format!("; SELECT pg_advisory_xact_lock({a}, {b}), ")),
            "{}",
            locks(&one)
        );
        assert_eq!(Several::new(&namespace, &[]).locks(), "");
    }
}
