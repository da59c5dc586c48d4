//! What the server's error means to a caller, without a credential in it.

use loomflow_core::{Error, ErrorKind};
use qdrant_client::QdrantError;

/// gRPC status codes, by number.
mod code {
    pub(super) const CANCELLED: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const DEADLINE_EXCEEDED: i32 = 4;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const ALREADY_EXISTS: i32 = 6;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const INTERNAL: i32 = 13;
    pub(super) const UNAVAILABLE: i32 = 14;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// Classifies an error of the server during `operation`: what is transient is retryable.
///
/// The server's own text is not handed on: when a connection fails the client puts the URL into it, and a URL may hold a
/// password.
pub(crate) fn server_error(error: &QdrantError, operation: &'static str) -> Error {
    let (kind, message) = classify(error);
    Error::new(kind, message).with_operation(operation)
}

/// Whether what was to be created is there already.
pub(crate) fn already_exists(error: &QdrantError) -> bool {
    matches!(error, QdrantError::ResponseError { status } if status.code() as i32 == code::ALREADY_EXISTS)
}

fn classify(error: &QdrantError) -> (ErrorKind, &'static str) {
    let status = match error {
        QdrantError::ResponseError { status } => status,
        QdrantError::ResourceExhaustedError { .. } => {
            return (ErrorKind::Overloaded, "Qdrant limits how much may be asked of it at a time");
        }
        QdrantError::InvalidUri(_) => return (ErrorKind::Config, "the URL of Qdrant cannot be used"),
        QdrantError::Io(_) => return (ErrorKind::Transport, "the connection to Qdrant was lost"),
        _ => return (ErrorKind::Internal, "Qdrant answered with something that was not expected"),
    };
    match status.code() as i32 {
        code::UNAUTHENTICATED | code::PERMISSION_DENIED => {
            (ErrorKind::Config, "Qdrant does not accept the API key, or does not permit this with it")
        }
        code::NOT_FOUND => (
            ErrorKind::Config,
            "Qdrant does not have the collection any more; connect again to have it created, or restore it",
        ),
        code::DEADLINE_EXCEEDED => (ErrorKind::Timeout, "Qdrant did not answer in time"),
        code::RESOURCE_EXHAUSTED => (ErrorKind::Overloaded, "Qdrant is short of resources"),
        code::INTERNAL if status.message().starts_with("Failed to connect") => (
            ErrorKind::Unreachable,
            "Qdrant cannot be reached: is it up, and is this the port of its gRPC (6334 by default)?",
        ),
        // The client makes these of what happens to its connection.
        code::INTERNAL | code::UNKNOWN | code::CANCELLED | code::UNAVAILABLE => {
            (ErrorKind::Transport, "the connection to Qdrant was lost, or it failed on its side")
        }
        code::INVALID_ARGUMENT if status.message().starts_with("Unsupported schema") => {
            (ErrorKind::Config, "the URL of Qdrant begins with neither http:// nor https://")
        }
        code::INVALID_ARGUMENT => (ErrorKind::Internal, "Qdrant refused a request as malformed"),
        code::UNIMPLEMENTED => {
            (ErrorKind::Config, "Qdrant is too old, or something else answers at its address")
        }
        _ => (ErrorKind::Internal, "Qdrant refused a request"),
    }
}

/// A record that this program cannot have written.
pub(crate) fn unreadable(operation: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "Qdrant holds a record that cannot be read").with_operation(operation)
}

/// Others were faster too many times in a row.
pub(crate) fn busy(operation: &'static str) -> Error {
    let message = "others wrote to the same memory each time it was tried; nothing was done";
    Error::new(ErrorKind::Overloaded, message).with_operation(operation)
}
