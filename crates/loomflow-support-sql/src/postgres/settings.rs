//! Where the database is, and as whom it is used.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::{Error, ErrorKind, Result, Secret};
use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;

/// Where the database is, and as whom it is used. `Debug` does not show the connection string.
#[derive(Clone)]
#[non_exhaustive]
pub struct PgSettings {
    /// `postgres://user:password@host:port/database`, with the parameters of libpq (`sslmode`, `sslrootcert`, ...).
    pub url: Arc<Secret<String>>,
    /// The schema that holds the tables. `loomflow` by default.
    pub schema: String,
    /// The role that the application acts as. `loomflow_app` by default.
    pub role: String,
    /// The most connections at once; 16 by default.
    pub max_connections: usize,
    /// How long to wait for a connection, a free one or a new one; 5 s by default.
    pub connect_timeout: Duration,
    /// How long one statement may run, and twice that how long a transaction may stand idle; 30 s by default.
    pub statement_timeout: Duration,
}

impl PgSettings {
    /// The defaults for a database.
    #[must_use]
    pub fn new(url: Arc<Secret<String>>) -> Self {
        Self {
            url,
            schema: "loomflow".into(),
            role: "loomflow_app".into(),
            max_connections: 16,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
        }
    }

    /// Whether the names can stand in a statement: they cannot be parameters there.
    pub(super) fn check(&self) -> Result<()> {
        for (what, name) in [("schema", &self.schema), ("app_role", &self.role)] {
            let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
            let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if !first || !rest || name.len() > 63 || name.starts_with("pg_") {
                let message = format!(
                    "`{what}` is {name:?}; use at most 63 of a-z 0-9 _ that begin with no digit and not with pg_"
                );
                return Err(Error::new(ErrorKind::Config, message).with_operation("connect"));
            }
        }
        Ok(())
    }

    /// What to connect with. An error shows nothing of the connection string.
    pub(super) fn options(&self) -> Result<PgConnectOptions> {
        let options = PgConnectOptions::from_str(self.url.expose()).map_err(|_| {
            let message = "the connection string of PostgreSQL cannot be read; write it as \
                           postgres://user:password@host:5432/database, with special characters of the password as %XX";
            Error::new(ErrorKind::Config, message).with_operation("connect")
        })?;
        Ok(options.application_name("loomflow").disable_statement_logging())
    }
}

impl fmt::Debug for PgSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgSettings")
            .field("url", &"(secret)")
            .field("schema", &self.schema)
            .field("role", &self.role)
            .field("max_connections", &self.max_connections)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> PgSettings {
        PgSettings::new(Arc::new(Secret::new(url.to_owned())))
    }

    #[test]
    fn a_connection_string_is_never_shown() {
        for url in ["postgres://u:hunter2@h:x/d", "hunter2", "postgres://u:hunter2@h/d?sslmode=hunter2"] {
            let settings = settings(url);
            let error = settings.options().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let shown = format!("{settings:?} {error} {error:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn names_that_cannot_stand_in_a_statement_are_refused() {
        let with = |schema: &str| {
            let mut settings = settings("postgres://h/d");
            settings.schema = schema.to_owned();
            settings.check().map_err(|e| e.kind())
        };
        let long = "x".repeat(64);
        for bad in ["", "A", "a-b", "1a", "a\"b", "a b", "pg_x", "\u{e9}", &long] {
            assert_eq!(with(bad), Err(ErrorKind::Config), "{bad:?}");
        }
        assert!(with("loomflow_2").is_ok());
    }
}
