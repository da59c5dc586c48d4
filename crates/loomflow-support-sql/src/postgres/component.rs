//! What a component (the memory, a ledger, an audit log) keeps in a database.

use super::check::OWN;
use crate::Migration;

/// A component of LoomFlow in a PostgreSQL database. Several share one schema, each with a version of its own.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Component {
    /// Its name in `schema_versions`.
    pub name: &'static str,
    /// Its schema. Names in it are not qualified.
    pub migrations: &'static [Migration],
    /// Its tables, all of them.
    pub tables: &'static [Table],
    /// The extensions it needs. One that is missing is created in the schema.
    pub extensions: &'static [&'static str],
}

impl Component {
    /// A component without extensions.
    #[must_use]
    pub const fn new(name: &'static str, migrations: &'static [Migration], tables: &'static [Table]) -> Self {
        Self { name, migrations, tables, extensions: &[] }
    }

    /// Names the extensions it needs.
    #[must_use]
    pub const fn with_extensions(mut self, extensions: &'static [&'static str]) -> Self {
        self.extensions = extensions;
        self
    }

    /// The newest version of its schema.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.migrations.last().map_or(0, |m| m.version)
    }
}

/// A table of tenants' rows. Row-level security shows a transaction the rows that its policies name, and no other.
///
/// By default these are the rows of its own partition: the column `partition` holds
/// [`Owner::partition`](loomflow_core::Owner::partition).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// What the application may do with it: `SELECT, INSERT`, ...
    pub privileges: &'static str,
    /// Which rows a transaction sees and writes.
    pub(super) own: &'static str,
    /// Which further rows it sees and does not write.
    pub(super) seen: Option<&'static str>,
}

impl Table {
    /// A table of which the application has these privileges.
    #[must_use]
    pub const fn new(name: &'static str, privileges: &'static str) -> Self {
        Self { name, privileges, own: OWN, seen: None }
    }

    /// Says by an expression which rows a transaction sees and writes, in place of those of its own partition.
    ///
    /// It has to be written as the server says it back (`pg_get_expr`), to the letter: connecting compares it.
    #[must_use]
    pub const fn with_rows(mut self, expression: &'static str) -> Self {
        self.own = expression;
        self
    }

    /// Says by an expression which further rows a transaction sees, and does not write. Written as for
    /// [`Table::with_rows`].
    #[must_use]
    pub const fn with_seen(mut self, expression: &'static str) -> Self {
        self.seen = Some(expression);
        self
    }
}
