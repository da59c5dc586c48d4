//! What a component (the memory, a ledger, an audit log) keeps in a database.

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

/// A table of tenants' rows. Its column `partition` holds [`Owner::partition`](loomflow_core::Owner::partition), and
/// row-level security shows a transaction the rows of its own partition alone.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// What the application may do with it: `SELECT, INSERT`, ...
    pub privileges: &'static str,
}

impl Table {
    /// A table of which the application has these privileges.
    #[must_use]
    pub const fn new(name: &'static str, privileges: &'static str) -> Self {
        Self { name, privileges }
    }
}
