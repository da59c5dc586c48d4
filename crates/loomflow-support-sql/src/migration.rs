//! Versioned changes of a schema, embedded in the program.

use loomflow_core::{Error, ErrorKind, Result};

/// One change of a schema. Its statements and the new version number are committed together, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migration {
    /// The version the schema has afterwards; the first is 1, and none is left out.
    pub version: u32,
    /// What it does, in a few words.
    pub name: &'static str,
    /// Its statements.
    pub sql: &'static str,
}

impl Migration {
    /// A change to `version`.
    #[must_use]
    pub const fn new(version: u32, name: &'static str, sql: &'static str) -> Self {
        Self { version, name, sql }
    }
}

/// The changes that a schema of version `stored` still lacks; 0 is an empty database.
///
/// # Errors
///
/// [`ErrorKind::Config`] when the schema is newer than `all`: an older program would misread it, and must not touch it.
pub fn pending<'m>(all: &'m [Migration], stored: u32, store: &str) -> Result<&'m [Migration]> {
    let known = all.last().map_or(0, |m| m.version);
    if stored > known {
        let message = format!(
            "the schema of {store} is version {stored}, and this program knows versions up to {known}: it was written by a \
             newer program and is left untouched. Upgrade this program"
        );
        return Err(Error::new(ErrorKind::Config, message).with_operation("migrate"));
    }
    let at = all.iter().position(|m| m.version > stored).unwrap_or(all.len());
    Ok(&all[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Migration; 2] = [Migration::new(1, "first", ""), Migration::new(2, "second", "")];

    #[test]
    fn what_is_lacking_is_done_and_what_is_newer_is_refused() {
        let versions =
            |stored| pending(&ALL, stored, "x").map(|m| m.iter().map(|m| m.version).collect::<Vec<_>>());
        assert_eq!(versions(0).unwrap(), [1, 2]);
        assert_eq!(versions(1).unwrap(), [2]);
        assert!(versions(2).unwrap().is_empty());
        let error = versions(3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("version 3") && error.to_string().contains("up to 2"), "{error}");
    }
}
