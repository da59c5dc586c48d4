//! What a server's error means to a caller, without a credential or a tenant's data in it.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use loomflow_core::{Error, ErrorKind};
use redis::{ErrorKind as Kind, RedisError, ServerErrorKind as Server};

/// Classifies an error of Redis during `operation`: what is transient is retryable.
///
/// - The message is ours. The server's own text stays the source, but for a refused login, whose text is left out.
#[must_use]
pub fn store_error(error: RedisError, operation: &'static str) -> Error {
    let (kind, message) = classify(&error);
    let classified = Error::new(kind, message).with_operation(operation);
    if kind == ErrorKind::Config { classified } else { classified.with_source(error) }
}

fn classify(error: &RedisError) -> (ErrorKind, &'static str) {
    match error.kind() {
        Kind::AuthenticationFailed => login(),
        Kind::Io => io_error(error),
        Kind::Parse => (ErrorKind::Transport, "the connection to Redis was lost in the middle of an answer"),
        Kind::InvalidClientConfig => (ErrorKind::Config, "the URL of Redis cannot be used"),
        Kind::Client if error.source().is_some() => {
            (ErrorKind::Config, "Redis and this program agree on no TLS, or its certificate is not trusted")
        }
        Kind::Server(server) => of_server(server, error),
        Kind::Extension => by_code(error),
        _ => (ErrorKind::Internal, "Redis answered with something that was not expected"),
    }
}

fn login() -> (ErrorKind, &'static str) {
    (ErrorKind::Config, "Redis refused the user or the password of its URL")
}

fn io_error(error: &RedisError) -> (ErrorKind, &'static str) {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable, NotFound};
    // The client shares its causes, and the share is what it names as the source.
    let shared = error.source().and_then(|e| e.downcast_ref::<Arc<dyn StdError + Send + Sync>>());
    let cause = shared.and_then(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind);
    match cause {
        // Only an attempt to connect fails like this.
        Some(ConnectionRefused | AddrNotAvailable | HostUnreachable | NetworkUnreachable | NotFound) => (
            ErrorKind::Unreachable,
            "Redis cannot be reached: is it up, and are host and port of its URL right?",
        ),
        _ => (ErrorKind::Transport, "the connection to Redis was lost"),
    }
}

fn of_server(server: Server, error: &RedisError) -> (ErrorKind, &'static str) {
    match server {
        Server::BusyLoading => (ErrorKind::Overloaded, "Redis is loading its data and serves nobody yet"),
        Server::TryAgain | Server::MasterDown | Server::ClusterDown => {
            (ErrorKind::Overloaded, "Redis cannot serve this now: its cluster or its master is not ready")
        }
        Server::ReadOnly => (
            ErrorKind::Overloaded,
            "this Redis is a read-only replica; after a failover this passes, otherwise give the master's URL",
        ),
        Server::Moved | Server::Ask | Server::CrossSlot => (
            ErrorKind::Config,
            "this Redis is one node of a cluster and does not hold the key; a cluster needs a proxy that routes",
        ),
        // It was told the script, and forgot it again before it was to run it.
        Server::NoScript => (ErrorKind::Transport, "Redis forgot its scripts just now"),
        Server::NoPerm => (ErrorKind::Config, "Redis does not permit this to the user of its URL"),
        Server::ResponseError => by_text(error),
        _ => (ErrorKind::Internal, "Redis refused a command"),
    }
}

fn by_code(error: &RedisError) -> (ErrorKind, &'static str) {
    match error.code().unwrap_or_default() {
        "WRONGPASS" | "NOAUTH" => login(),
        "OOM" => full(),
        "BUSY" => (ErrorKind::Overloaded, "Redis is busy with a script that takes too long"),
        "MISCONF" | "NOREPLICAS" => {
            (ErrorKind::Overloaded, "Redis takes no writes now: it cannot save them, or has too few replicas")
        }
        "WRONGTYPE" => {
            (ErrorKind::Config, "a key of this memory holds something else: another program uses its prefix")
        }
        _ => (ErrorKind::Internal, "Redis refused a command"),
    }
}

/// Inside a script some errors lose their code and keep their words.
fn by_text(error: &RedisError) -> (ErrorKind, &'static str) {
    let said = error.detail().unwrap_or_default();
    if said.contains("OOM ") || said.contains("maxmemory") {
        full()
    } else if said.contains("max number of clients") {
        (ErrorKind::Unreachable, "Redis takes no more connections now")
    } else if said.contains("WRONGTYPE") {
        (ErrorKind::Config, "a key of this memory holds something else: another program uses its prefix")
    } else if said.contains("DB index is out of range") || said.contains("SELECT") {
        (ErrorKind::Config, "Redis has no database of the number in its URL")
    } else {
        (ErrorKind::Internal, "Redis refused a command")
    }
}

fn full() -> (ErrorKind, &'static str) {
    (ErrorKind::Capacity, "Redis has reached its `maxmemory`; nothing was written")
}

#[cfg(test)]
mod tests {
    use redis::make_extension_error;

    use super::*;

    fn kind(code: &str) -> ErrorKind {
        store_error(make_extension_error(code.into(), Some("said".into())), "remember").kind()
    }

    #[test]
    fn codes_have_their_meaning() {
        assert_eq!(
            ["WRONGPASS", "NOAUTH", "OOM", "BUSY", "MISCONF", "WRONGTYPE", "ODD"].map(kind),
            [
                ErrorKind::Config,
                ErrorKind::Config,
                ErrorKind::Capacity,
                ErrorKind::Overloaded,
                ErrorKind::Overloaded,
                ErrorKind::Config,
                ErrorKind::Internal
            ]
        );
        for (kind, expected) in [
            (io::ErrorKind::ConnectionRefused, ErrorKind::Unreachable),
            (io::ErrorKind::ConnectionReset, ErrorKind::Transport),
            (io::ErrorKind::BrokenPipe, ErrorKind::Transport),
        ] {
            assert_eq!(store_error(io::Error::from(kind).into(), "x").kind(), expected);
        }
        let loading = RedisError::from((Kind::Server(Server::BusyLoading), "loading"));
        assert!(store_error(loading, "x").is_retryable());
    }

    #[test]
    fn a_refused_login_says_nothing_of_the_password() {
        let error = store_error(
            make_extension_error("WRONGPASS".into(), Some("user u password hunter2".into())),
            "connect",
        );
        assert!(error.source().is_none() && !format!("{error} {error:?}").contains("hunter2"));
    }
}
