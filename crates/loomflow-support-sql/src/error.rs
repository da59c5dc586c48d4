//! What a database's error means to a caller, without a credential or a row's content in it.

use std::fmt;

use loomflow_core::{Error, ErrorKind};
use sqlx::error::ErrorKind as Constraint;

/// Classifies an error of `server` (`PostgreSQL`) during `operation`: what is transient is retryable.
///
/// - The message is ours. Of what a database says of a row, its code and the name of a constraint stay as the source, and
///   nothing else: its texts quote values. A connection string is never part of an error: sqlx does not put it there.
#[must_use]
pub fn store_error(error: sqlx::Error, server: &'static str, operation: &'static str) -> Error {
    let (kind, message) = classify(&error, server);
    let told = Error::new(kind, message).with_operation(operation);
    match &error {
        sqlx::Error::Database(db) => told.with_source(Refused {
            code: db.code().map(|code| code.into_owned()).unwrap_or_default(),
            constraint: db.constraint().map(str::to_owned),
        }),
        _ => told.with_source(error),
    }
}

/// What may be told of a database's refusal.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) code: String,
    constraint: Option<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "code {}", self.code)?;
        self.constraint.iter().try_for_each(|name| write!(f, ", constraint {name}"))
    }
}

impl std::error::Error for Refused {}

fn classify(error: &sqlx::Error, server: &str) -> (ErrorKind, String) {
    use sqlx::Error as E;
    match error {
        E::Database(db) => database(&**db, server),
        E::PoolTimedOut => (
            ErrorKind::Overloaded,
            format!(
                "no connection to {server} became free in time; raise `max_connections` or lower the load"
            ),
        ),
        E::Io(e) if never_sent(e.kind()) => {
            (ErrorKind::Unreachable, format!("{server} cannot be reached: {}", e.kind()))
        }
        // A connection that is accepted and closed at once shows as a protocol error.
        E::Io(_) | E::Protocol(_) | E::PoolClosed | E::WorkerCrashed => {
            (ErrorKind::Transport, format!("the connection to {server} was lost"))
        }
        E::Tls(_) => (ErrorKind::Config, format!("{server} and this program agree on no TLS")),
        E::Configuration(_) => {
            (ErrorKind::Config, format!("the connection string of {server} cannot be used"))
        }
        _ => (ErrorKind::Internal, format!("{server} answered with something that was not expected")),
    }
}

fn never_sent(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(kind, ConnectionRefused | AddrNotAvailable | HostUnreachable | NetworkUnreachable)
}

fn database(db: &dyn sqlx::error::DatabaseError, server: &str) -> (ErrorKind, String) {
    let code = db.code().unwrap_or_default();
    match &*code {
        // SQLSTATE classes of PostgreSQL (appendix A of its manual).
        "28000" | "28P01" => {
            (ErrorKind::Config, format!("{server} refused the user or the password of the connection string"))
        }
        "3D000" => {
            (ErrorKind::Config, format!("{server} has no such database; create it or correct the name"))
        }
        "42501" => (ErrorKind::Config, format!("{server} does not permit this to the connecting role")),
        "40001" | "40P01" | "55P03" => {
            (ErrorKind::Overloaded, format!("{server} gave up waiting for a lock"))
        }
        "57014" => (ErrorKind::Overloaded, format!("{server} cancelled a statement that took too long")),
        "53300" | "57P03" => (ErrorKind::Unreachable, format!("{server} takes no more connections now")),
        c if c.starts_with("08") || c.starts_with("57P") => {
            (ErrorKind::Transport, format!("the connection to {server} was ended by it"))
        }
        c if c.starts_with("53") => (ErrorKind::Overloaded, format!("{server} is short of resources")),
        // Result codes of SQLite: busy and locked, in all their forms; full; I/O error; not a database.
        "5" | "261" | "517" | "773" | "6" | "262" => {
            (ErrorKind::Overloaded, format!("{server} is busy with another writer"))
        }
        "13" => (ErrorKind::Capacity, format!("the disk of {server} is full; nothing was written")),
        "26" | "11" => (ErrorKind::Config, format!("the file is no database that {server} can read")),
        "8" | "1032" | "1544" => (ErrorKind::Config, format!("{server} cannot write to the file")),
        "14" => (ErrorKind::Config, format!("{server} cannot open the file; does its folder exist?")),
        // The shared-memory file beside the database could not grow.
        "4874" => (ErrorKind::Capacity, format!("the disk of {server} is full; nothing was written")),
        c if c.parse::<u32>().is_ok_and(|c| c & 0xff == 10) && c.len() < 5 => {
            (ErrorKind::Transport, format!("{server} could not read or write its file (code {code})"))
        }
        _ if db.kind() == Constraint::UniqueViolation => {
            (ErrorKind::Conflict, format!("{server} holds such a row already"))
        }
        _ => (ErrorKind::Internal, format!("{server} refused a statement (code {code})")),
    }
}
