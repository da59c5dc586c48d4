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

/// A table of tenants' rows. Row-level security shows a transaction the rows that are its own, and those that a [`Policy`]
/// opens.
///
/// By default its own are the rows of its partition: the column `partition` holds
/// [`Owner::partition`](loomflow_core::Owner::partition).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// What the application may do with it: `SELECT, INSERT`, ...
    pub privileges: &'static str,
    /// Which rows are a transaction's own.
    pub(super) own: &'static str,
    /// What else row-level security lets through.
    pub policies: &'static [Policy],
}

impl Table {
    /// A table of which the application has these privileges.
    #[must_use]
    pub const fn new(name: &'static str, privileges: &'static str) -> Self {
        Self { name, privileges, own: OWN, policies: &[] }
    }

    /// Says by an expression which rows are a transaction's own, in place of those of its own partition.
    ///
    /// It has to be written as the server says it back (`pg_get_expr`), to the letter: connecting compares it.
    #[must_use]
    pub const fn with_rows(mut self, expression: &'static str) -> Self {
        self.own = expression;
        self
    }

    /// Opens rows of other partitions.
    #[must_use]
    pub const fn with_policies(mut self, policies: &'static [Policy]) -> Self {
        self.policies = policies;
        self
    }
}

/// The partition that a transaction named, as an expression of PostgreSQL, just as the server writes it back. It equals
/// nothing where none was named.
#[macro_export]
macro_rules! own_partition {
    () => {
        "decode(current_setting('loomflow.partition'::text, true), 'hex'::text)"
    };
}

/// Rows of other partitions that a transaction sees or writes: for what one tenant may decide about another's.
///
/// The expressions are written as the server writes them back (`pg_get_expr`): connecting compares them, and refuses a
/// table whose policies say a word more.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Policy {
    /// Its name.
    pub name: &'static str,
    /// For which command: `SELECT`, `UPDATE` or `DELETE`.
    pub command: &'static str,
    /// Which rows are found.
    pub finds: &'static str,
    /// Which rows may be written; `None` for a command that writes none.
    pub writes: Option<&'static str>,
}

impl Policy {
    /// Lets a transaction see the rows for which `finds` holds.
    #[must_use]
    pub const fn select(name: &'static str, finds: &'static str) -> Self {
        Self { name, command: "SELECT", finds, writes: None }
    }

    /// Lets a transaction change the rows for which `finds` holds into rows for which `writes` holds.
    #[must_use]
    pub const fn update(name: &'static str, finds: &'static str, writes: &'static str) -> Self {
        Self { name, command: "UPDATE", finds, writes: Some(writes) }
    }

    /// Lets a transaction delete the rows for which `finds` holds.
    #[must_use]
    pub const fn delete(name: &'static str, finds: &'static str) -> Self {
        Self { name, command: "DELETE", finds, writes: None }
    }

    /// As it is found in the catalogue: `r`, `w` or `d`.
    pub(super) fn letter(&self) -> &'static str {
        match self.command {
            "SELECT" => "r",
            "UPDATE" => "w",
            _ => "d",
        }
    }

    pub(super) fn create(&self, table: &str) -> String {
        let Self { name, command, finds, writes } = self;
        let check = writes.map(|writes| format!(" WITH CHECK ({writes})")).unwrap_or_default();
        format!(
            "DROP POLICY IF EXISTS {name} ON \"{table}\"; \
             CREATE POLICY {name} ON \"{table}\" FOR {command} USING ({finds}){check};"
        )
    }
}
